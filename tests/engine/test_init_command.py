"""``pspnet-fast init``: what it makes of folders as people keep them (training on them: test_own_data_page.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_files import call, refused, save_pixels

from pspnet_fast.data import DatasetError
from pspnet_fast.data.guess import find_classes
from pspnet_fast.data.pairing import find_pairs
from pspnet_fast.engine.config_io import load_config

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 255, (24, 32, 3), np.uint8)
LABEL = RNG.integers(0, 3, (24, 32), np.uint8)


def folder(root: Path, labels: list[np.ndarray]) -> Path:
    for index, label in enumerate(labels):
        save_pixels(root / f"photos/{index}.jpg", PHOTO)
        save_pixels(root / f"masks/{index}.png", label)
    return root


@pytest.mark.parametrize(
    ("image", "label", "expected"),
    [
        ("images/{}.jpg", "labels/{}.png", ("images", "labels", (".jpg",), ".png")),
        ("{}.jpg", "{}.png", (".", ".", (".jpg",), ".png")),
        ("{}.png", "{}_mask.png", (".", ".", (".png",), "_mask.png")),
        ("a/{}.png", "a/gt/{}_gt.png", ("a", "a", (".png",), None)),
        ("train/img/{}.png", "train/ann/{}.png", ("train/img", "train/ann", (".png",), ".png")),
        ("img/{}_rgb.png", "gt/{}_label.png", ("img", "gt", ("_rgb.png",), "_label.png")),
        ("photos/b/{}.tif", "masks/b/{}.tif", ("photos", "masks", (".tif",), ".tif")),
    ],
)
def test_layouts(tmp_path: Path, image: str, label: str, expected: tuple[object, ...]) -> None:
    for name in ("one", "two", "three"):
        save_pixels(tmp_path / image.format(name), PHOTO)
        save_pixels(tmp_path / label.format(name), LABEL)
    if expected[-1] is None:
        with pytest.raises(DatasetError, match=r"no label maps.*_mask"):
            find_pairs(tmp_path)
        return
    call("init", tmp_path)
    data = load_config(tmp_path / "data.yaml").data
    assert (data.image_folder, data.label_folder, data.image_suffixes, data.label_suffix) == expected
    assert "2 images" in call("check", "--data", tmp_path / "data.yaml")


def test_splits_are_found(tmp_path: Path) -> None:
    for split, names in {"training": "abc", "valid": "de", "test": "f"}.items():
        for name in names:
            save_pixels(tmp_path / f"images/{split}/{name}.jpg", PHOTO)
            if split != "test":
                save_pixels(tmp_path / f"labels/{split}/{name}.png", LABEL)
    call("init", tmp_path)
    data = load_config(tmp_path / "data.yaml").data
    found = data.image_folder, data.train_split, data.val_split, data.val_fraction
    assert found == ("images/{split}", "training", "valid", 0.0)
    output = call("check", "--data", tmp_path / "data.yaml")
    assert "training, 3 images" in output
    assert "valid, 2 images" in output
    assert "--overwrite" in refused("init", tmp_path)


@pytest.mark.parametrize(
    ("values", "classes", "mapping", "ignore"),
    [
        ([0, 1, 2], ["class 0", "class 1", "class 2"], {}, 255),
        ([0, 1, 255], ["class 0", "class 1"], {}, 255),
        ([0, 255], ["background", "foreground"], {0: "background", 255: "foreground"}, None),
        ([5, 9], ["class 5", "class 9"], {5: "class 5", 9: "class 9"}, 255),
        ([300, 301, 65535], ["class 300", "class 301"], {300: "class 300", 301: "class 301"}, 65535),
    ],
)
def test_values(tmp_path: Path, values: list[int], classes: list[str], mapping: dict[int, str], ignore: int) -> None:
    save_pixels(tmp_path / "a.png", np.array([values, values], np.uint16 if max(values) > 255 else np.uint8))
    found = find_classes(tmp_path, [tmp_path / "a.png"])
    assert (list(found.classes), found.values, found.ignore_value) == (classes, mapping, ignore)
    assert found.pixels[classes[0]] == 2


def test_names_from_a_text_file(tmp_path: Path) -> None:
    save_pixels(tmp_path / "a.png", np.array([[0, 1, 2]], np.uint8))
    (tmp_path / "classes.txt").write_text("void\nroad\ngreen tree\n")
    found = find_classes(tmp_path, [tmp_path / "a.png"])
    assert (list(found.classes), found.values) == (["road", "green tree"], {0: "ignore", 1: "road", 2: "green tree"})
    save_pixels(tmp_path / "offset.png", np.array([[1000, 1001, 1007, 65535]], np.uint16))
    found = find_classes(tmp_path, [tmp_path / "offset.png"])  # as many values as names
    assert found.values == {1000: "ignore", 1001: "road", 1007: "green tree"}
    (tmp_path / "of another folder").write_text("sky\nsea\nsand\n")
    found = find_classes(tmp_path, [tmp_path / "a.png"], names_file=tmp_path / "of another folder")
    assert list(found.classes) == ["sky", "sea", "sand"]
    (tmp_path / "of another folder").write_text("7, 8\n")
    with pytest.raises(DatasetError, match="of another folder: holds no names of classes"):
        find_classes(tmp_path, [tmp_path / "a.png"], names_file=tmp_path / "of another folder")
    save_pixels(tmp_path / "b.png", np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8))
    (tmp_path / "colors.csv").write_text("name,r,g,b\nroad,9,8,7\nVoid,1,2,3\nother,4,5,6")
    found = find_classes(tmp_path, [tmp_path / "b.png"])
    assert (found.classes, found.values) == ({"road": (9, 8, 7)}, {"#010203": "ignore"})


def test_names_of_other_systems_and_files_without_a_partner(tmp_path: Path) -> None:
    root = tmp_path / "my pictures"
    for index, name in enumerate(("Straße (1)", "b", "c d", "e", "f")):
        save_pixels(root / f"Eigene Bilder/{name}.{('JPG', 'jpg')[index % 2]}", PHOTO)
        save_pixels(root / f"Masken/{name}.{('PNG', 'png')[index % 2]}", LABEL)
    (root / "Eigene Bilder/Thumbs.db").write_bytes(b"")
    assert "no partner" not in call("init", root)
    assert "4 images" in call("check", "--data", root / "data.yaml")
    save_pixels(root / "Masken/lost.png", LABEL)
    assert "1 files have no partner (Masken/lost.png)" in call("init", root, "--overwrite")
    assert "lost" in refused("check", "--data", root / "data.yaml")


def test_too_few_pictures_and_classes(tmp_path: Path) -> None:
    call("init", folder(tmp_path, [LABEL] * 2))
    data = load_config(tmp_path / "data.yaml").data
    assert (data.val_split, data.val_fraction) == (None, 0)
    folder(tmp_path, [0 * LABEL] * 2)
    assert "fewer than two classes (class 0); add" in refused("init", tmp_path, "--overwrite")
    assert "is a file; name the folder" in refused("init", tmp_path / "masks/0.png")
    assert "no such folder" in refused("init", tmp_path / "nowhere")
    one = folder(tmp_path / "one", [LABEL])
    assert "1 picture with a label; training takes 2 at least" in refused("init", one)


def test_slips_are_pointed_out(tmp_path: Path) -> None:
    """One pixel of a colour that no other label has becomes a class, but not without a word."""
    large = np.kron(LABEL, np.ones((4, 4), np.uint8))
    slip = large.copy()
    slip[0, 0] = 9
    output = call("init", folder(tmp_path, [large] * 3 + [slip]))
    assert "hardly any pixels are of class 9: if these are slips" in output
    slip[:9] = 9
    save_pixels(tmp_path / "masks/3.png", slip)
    assert "hardly" not in call("init", tmp_path, "--overwrite")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (np.arange(300, dtype=np.uint16).reshape(20, 15), "0.png: holds more than 254 values: no classes"),
        (PHOTO, "0.png: holds more than 254 colours; masks have hard edges"),
        (None, "0.png: corrupt or no picture"),
    ],
)
def test_why_labels_are_refused(tmp_path: Path, label: np.ndarray | None, reason: str) -> None:
    folder(tmp_path, [LABEL if label is None else label] * 3)
    if label is None:
        (tmp_path / "masks/0.png").write_bytes(b"nothing")
    output = refused("init", tmp_path)
    assert "The most likely ones cannot be used" in output
    assert reason in output
    assert not (tmp_path / "data.yaml").exists()


def test_as_many_classes_as_there_may_be(tmp_path: Path) -> None:
    label = np.append(np.arange(254), [255, 255]).astype(np.uint8).reshape(16, 16)
    call("init", folder(tmp_path, [label] * 2))
    assert len(load_config(tmp_path / "data.yaml").data.classes) == 254  # type: ignore[arg-type]
    data = ("--data", "folder", "--root", tmp_path, "data.image_folder=photos", "data.label_folder=masks")
    assert "class 254" in refused("check", *data, "data.val_split=null", "data.classes=255")  # sizes differ
    assert "less than or equal to 255" in refused("check", *data, "data.classes=256")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("road\ntree\nroad", "names 'road' twice; give each class a name of its own"),
        ("road\ntree", "its 2 names do not fit the 3 values in the labels, from 0 to 2; write a name for each value"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, names: str, message: str) -> None:
    folder(tmp_path, [LABEL] * 3)
    (tmp_path / "classes.txt").write_text(names)
    assert message in refused("init", tmp_path, "--names", tmp_path / "classes.txt")
    assert "class 2" in call("init", tmp_path)  # nobody said that the file holds the names

"""Predictions on disk: what they may replace, which pictures they take, and what happens when one fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import save_picture, save_pixels, untrained

from pspnet_fast.data import ReadOptions
from pspnet_fast.engine import EvalConfig, InferenceError, TrainedModel, predict_paths
from pspnet_fast.engine.outputs import MANIFEST, OutputFolder
from pspnet_fast.engine.predict import IncompleteError, find_images

KINDS = ("labels", "colors", "overlay")


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return untrained("scenes")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """CamVid's layout: two pictures and their label maps."""
    for name in ("a", "b"):
        save_picture(tmp_path / f"set/images/val/{name}.png")
        save_pixels(tmp_path / f"set/labels/val/{name}.png", np.zeros((9, 13), np.uint8))
    return tmp_path / "set"


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_label_maps_of_a_data_set_are_kept(trained: TrainedModel, dataset: Path) -> None:
    before = content(dataset)
    with pytest.raises(InferenceError, match=r"labels/val/a.png and 1 more: exists and was not written by predict"):
        predict_paths(trained, [dataset / "images"], dataset)
    assert content(dataset) == before

    predict_paths(trained, [dataset / "images"], dataset, overwrite=True)
    assert content(dataset).items() >= {name: data for name, data in before.items() if "images" in name}.items()
    assert content(dataset)["labels/val/a.png"] != before["labels/val/a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["same path", "symbolic link", "hard link", "linked folder"])
def test_inputs_are_never_replaced(trained: TrainedModel, tmp_path: Path, kind: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    if kind == "same path":
        picture = save_picture(out / "labels" / "a.png")
    else:
        picture = save_picture(tmp_path / "in" / "a.png")
        if kind == "linked folder":
            out.mkdir()
            (out / "labels").symlink_to(picture.parent)
        elif kind == "symbolic link":
            _made(out / "labels" / "a.png").symlink_to(picture)
        else:
            _made(out / "labels" / "a.png").hardlink_to(picture)
    before = content(tmp_path)
    for paths in ([picture], [picture.parent]):
        with pytest.raises(InferenceError, match=r"labels/a.png would replace the input .*a.png: choose another --out"):
            predict_paths(trained, paths, out, overwrite=overwrite)
    assert content(tmp_path) == before


@pytest.fixture
def predicted(trained: TrainedModel, tmp_path: Path) -> tuple[Path, Path]:
    """A picture, and the folder with its predictions."""
    picture = save_picture(tmp_path / "a.png")
    predict_paths(trained, [picture], tmp_path / "out")
    return picture, tmp_path / "out"


def test_own_files_are_replaced_and_edited_ones_kept(trained: TrainedModel, predicted: tuple[Path, Path]) -> None:
    picture, out = predicted
    (first,) = predict_paths(trained, [picture], out)
    save_picture(picture, seed=1)
    predict_paths(trained, [picture], out)  # its own
    assert parts(out) == []

    edited = np.array(Image.open(first.labels))
    edited[0, 0] = 10 - edited[0, 0]  # a correction by hand
    Image.fromarray(edited).save(first.labels)
    before = content(out)
    with pytest.raises(InferenceError, match=r"labels/a.png: exists and was not written by predict, or was changed"):
        predict_paths(trained, [picture], out)
    assert content(out) == before
    predict_paths(trained, [picture], out, overwrite=True)
    assert content(out) != before


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe garbage", b"[1]\n{}\nnull\n", b'{"file": "labels/a.png"}\n'])
def test_a_damaged_manifest_owns_nothing(trained: TrainedModel, predicted: tuple[Path, Path], damage: bytes) -> None:
    picture, out = predicted
    (out / MANIFEST).write_bytes(damage)
    with pytest.raises(InferenceError, match="not written by predict"):
        predict_paths(trained, [picture], out)


def test_a_truncated_manifest_is_continued(trained: TrainedModel, predicted: tuple[Path, Path]) -> None:
    picture, out = predicted
    with (out / MANIFEST).open("a") as manifest:
        manifest.write('{"file": "labels/a.p')
    save_picture(picture, seed=1)
    predict_paths(trained, [picture], out)
    predict_paths(trained, [picture], out)


def test_links_that_lead_nowhere_are_kept(trained: TrainedModel, tmp_path: Path) -> None:
    link = _made(tmp_path / "out/labels/a.png")
    link.symlink_to(tmp_path / "unmounted")
    with pytest.raises(InferenceError, match=r"labels/a.png: exists and was not written by predict"):
        predict_paths(trained, [save_picture(tmp_path / "a.jpg")], tmp_path / "out")
    assert link.is_symlink()


@pytest.mark.parametrize("out", ["in/predictions", "in", "in/x/y"])
def test_predictions_are_not_predicted_again(trained: TrainedModel, tmp_path: Path, out: str) -> None:
    save_picture(tmp_path / "in/a.png")
    save_picture(tmp_path / "in/x/b.png")
    for _ in range(3):
        written = predict_paths(trained, [tmp_path / "in"], tmp_path / out)
        assert [file.image.name for file in written] == ["a.png", "b.png"]
    predict_paths(trained, [tmp_path / "in"], tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere/labels").rglob("*.png"))) == 2
    with pytest.raises(InferenceError, match=r"holds no pictures except 6 predictions"):
        find_images([tmp_path / "elsewhere"])
    assert find_images([tmp_path / "elsewhere/overlay/a.png"])  # named, hence meant


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_results_lie_as_the_picture_is_displayed(trained: TrainedModel, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    picture = save_picture(tmp_path / "a.png", (9, 13), exif=exif)
    displayed = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    with Image.open(picture) as stored:
        turned = stored.transpose(displayed[orientation])
    turned.save(tmp_path / "turned.png", exif=b"")
    shown, upright = predict_paths(trained, [picture, tmp_path / "turned.png"], tmp_path / "out")
    for kind in KINDS:
        assert getattr(shown, kind).read_bytes() == getattr(upright, kind).read_bytes()
    assert Image.open(shown.overlay).size == turned.size


def test_one_bad_picture_does_not_end_the_others(trained: TrainedModel, tmp_path: Path) -> None:
    for name in ("a.png", "c.png", "e.png"):
        save_picture(tmp_path / "in" / name)
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:60])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "in/d.tif")
    with pytest.raises(IncompleteError) as error:
        predict_paths(trained, [tmp_path / "in"], tmp_path / "out")
    lines = str(error.value).splitlines()
    assert lines[0] == f"2 of 5 pictures could not be predicted; 3 are in {tmp_path / 'out'}:"
    assert "b.png: corrupt or no picture" in lines[1]
    assert "d.tif: mode F with values 0 .. 0" in lines[2]
    assert [file.image.name for file in error.value.written] == ["a.png", "c.png", "e.png"]
    assert all(file.overlay.is_file() for file in error.value.written)

    reading = ReadOptions(value_range=(0, 1))
    assert len(predict_paths(trained, [tmp_path / "in/d.tif"], tmp_path / "out", reading=reading)) == 1


def test_a_picture_too_large_for_memory(trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = TrainedModel.predict

    def too_large(trained: TrainedModel, image: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        if image.shape[1] > 20:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return predict(trained, image, *rest, **options)

    monkeypatch.setattr(TrainedModel, "predict", too_large)
    paths = [save_picture(tmp_path / "large.png", (21, 8)), save_picture(tmp_path / "small.png")]
    with pytest.raises(IncompleteError, match=r"large.png: not enough memory.*--crop") as raised:
        predict_paths(trained, paths, tmp_path / "out")
    assert len(raised.value.written) == 1


@pytest.mark.parametrize(
    ("there", "out"),
    [
        ("out", "out"),
        ("out", "out/below a file"),
        ("out/labels", "out"),
        ("out/overlay/a.png/a folder", "out"),
        (f"out/{MANIFEST}/a folder", "out"),
        ("elsewhere", "/proc/x"),
    ],
)
def test_outputs_are_checked_first(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, out: str
) -> None:
    monkeypatch.setattr(TrainedModel, "predict", lambda *_, **__: pytest.fail("worked before the check"))
    _made(tmp_path / there).touch()
    with pytest.raises(InferenceError, match=rf"{tmp_path / out}.*(cannot be written|is a folder)"):
        predict_paths(trained, [save_picture(tmp_path / "a.png")], tmp_path / out)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_full_disk_leaves_no_part(
    trained: TrainedModel, predicted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    picture, out = predicted
    before = content(out)

    def fail(path: Path, *_: object) -> None:
        if step == "write":
            with open(path, "wb") as file:
                file.write(b"half")
        raise OSError(code, os.strerror(code))

    save_picture(picture, seed=1)
    monkeypatch.setattr(*((Path, "write_bytes") if step == "write" else (os, "replace")), fail)
    with pytest.raises(InferenceError, match=rf"labels/a.png: cannot be written \({os.strerror(code)}\); free space"):
        predict_paths(trained, [picture], out)
    assert parts(out) == []
    assert content(out) == before

    monkeypatch.undo()
    predict_paths(trained, [picture], out)  # still its own


def test_a_crash_between_manifest_and_file_owns_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutputFolder(tmp_path)
    folder.write(tmp_path / "a.png", b"first")
    monkeypatch.setattr(os, "replace", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        folder.write(tmp_path / "a.png", b"second")
    assert parts(tmp_path) == []
    monkeypatch.undo()
    OutputFolder(tmp_path).prepare([tmp_path / "a.png"], [])
    (tmp_path / "a.png").write_bytes(b"third")
    with pytest.raises(InferenceError, match="changed since"):
        OutputFolder(tmp_path).prepare([tmp_path / "a.png"], [])


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (40, 1)])
def test_tiny_pictures(trained: TrainedModel, tmp_path: Path, size: tuple[int, int]) -> None:
    picture = save_picture(tmp_path / "a.png", size)
    for options in (EvalConfig(), EvalConfig(crop=9, flip=True, scales=(0.5, 1.0))):
        (files,) = predict_paths(trained, [picture], tmp_path / "out", options)
        assert np.array(Image.open(files.labels)).shape == size

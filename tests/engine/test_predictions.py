"""What predict writes besides labels and colours: legends, probabilities, and a benchmark server's ids."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import save_picture, untrained

from pspnet_fast.data import read_image
from pspnet_fast.data.classes import CAMVID
from pspnet_fast.engine import InferenceError, predict_paths
from pspnet_fast.engine.distributed import World
from pspnet_fast.engine.outputs import OutputFolder
from pspnet_fast.engine.predict import IncompleteError, file_values, legend

SIZE = (48, 96)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return save_picture(tmp_path / "a.png", SIZE)


def test_probabilities_and_legend(picture: Path, tmp_path: Path) -> None:
    trained = untrained("camvid")
    (written,) = predict_paths(trained, [picture], tmp_path / "out", probabilities=True, with_legend=True)
    assert written.probabilities is not None
    content = np.load(written.probabilities)
    assert content["probabilities"].shape == (11, *SIZE)
    assert content["probabilities"].dtype == np.float16
    np.testing.assert_allclose(content["probabilities"].astype(np.float32).sum(0), 1, atol=0.01)
    assert content["classes"].tolist() == list(trained.info.classes)
    labels = np.array(Image.open(written.labels))
    assert (content["probabilities"].argmax(0) == labels).mean() > 0.98  # float16 has ties

    drawn = np.array(Image.open(written.overlay))
    assert drawn.shape[0] > SIZE[0]
    assert drawn.shape[1] == SIZE[1]
    shown = {tuple(color) for color in drawn[SIZE[0] :].reshape(-1, 3).tolist()}
    present = {trained.info.palette[index] for index in np.unique(labels)}
    assert present <= shown
    absent = set(trained.info.palette) - present
    assert not {color for color in absent & shown if len(set(color)) > 1}  # letters have greys of all kinds
    predict_paths(trained, [picture], tmp_path / "out", probabilities=True)  # its own files may be replaced


def test_the_labels_of_an_image(picture: Path, tmp_path: Path) -> None:
    trained = untrained("camvid")
    image = read_image(picture)
    labels = trained.predict(image)
    assert (labels.shape, labels.dtype) == (SIZE, torch.uint8)
    torch.testing.assert_close(labels, trained.probabilities(image).argmax(0).to(torch.uint8), rtol=0, atol=0)
    (written,) = predict_paths(trained, [picture], tmp_path / "out")
    assert (np.array(Image.open(written.labels)) == labels.numpy()).mean() > 0.98  # of folded normalisations
    for wrong in (image.float(), image[:1], image.permute(1, 2, 0), image[None], image[:, :0]):
        for method in (trained.predict, trained.probabilities):
            with pytest.raises(InferenceError, match=r"image is \w+ \[.*\]; it must be uint8 \[3, H, W\], RGB"):
                method(wrong)


def test_the_legend_names_the_most_frequent_first() -> None:
    labels = torch.full((20, 60), 3)
    labels[:2] = 5
    strip = legend(labels, CAMVID)
    assert strip.shape[1] == 60
    colors = [tuple(color) for color in strip[8, :].tolist() if tuple(color) in CAMVID.palette]
    assert colors[0] == CAMVID.palette[3]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("cityscapes", {}, {0: 7, 1: 8, 18: 33}),
        ("ade20k", {}, {0: 1, 149: 150}),
        ("voc", {}, {0: 0, 20: 20}),
        ("folder", {"classes": ["a", "b"], "values": {5: "b", 9: "a", 0: "ignore"}}, {0: 9, 1: 5}),
        ("folder", {"classes": 2, "values": {1000: 0, 1001: 1}, "ignore_value": 65535}, {0: 1000, 1: 1001}),
    ],
)
def test_ids_are_the_data_sets_values(
    picture: Path, tmp_path: Path, name: str, data: dict[str, object], expected: dict[int, int]
) -> None:
    trained = untrained(name, **data)
    values = file_values(trained)
    assert {index: int(values[index]) for index in expected} == expected
    (written,) = predict_paths(trained, [picture], tmp_path / "out", ids=True)
    labels, ids = (np.array(Image.open(file)) for file in (written.labels, written.ids))
    assert ids.dtype == (np.uint16 if max(expected.values()) > 255 else np.uint8)
    np.testing.assert_array_equal(values[labels], ids)


def test_ids_that_there_are_not() -> None:
    colors = untrained("folder", classes={"a": [0, 0, 0], "b": [1, 1, 1]}, labels="colors")
    with pytest.raises(InferenceError, match="hold colours, as colors/ does"):
        file_values(colors)
    trained = untrained("voc")
    with pytest.raises(InferenceError, match="elsewhere: the values in its label files are not known"):
        file_values(replace(trained, info=replace(trained.info, name="elsewhere")))


@dataclass(frozen=True)
class Thread(World):
    """A rank that is a thread; the ranks exchange values over a shared list."""

    barrier: Any = None
    box: Any = None

    def gather(self, value: Any) -> list[Any]:
        self.box[self.rank] = value
        self.barrier.wait()
        values = list(self.box)
        self.barrier.wait()
        return values

    def agree(self, value: Any) -> Any:
        return self.gather(value)[0]


def test_ranks_share_the_pictures(tmp_path: Path) -> None:
    names = ["0.png", "1.png", "2.png", "4.png"]
    for name in names:
        save_picture(tmp_path / "in" / name, SIZE)
    (tmp_path / "in/3.png").write_text("no picture")
    trained, barrier, box = untrained("camvid"), threading.Barrier(2), [None, None]

    def run(rank: int) -> list[str]:
        world = Thread(torch.device("cpu"), rank, 2, barrier, box)
        with pytest.raises(IncompleteError) as error:
            predict_paths(trained, [tmp_path / "in"], tmp_path / "out", world=world)
        return [file.image.name for file in error.value.written]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [names, names]
    labels = sorted((tmp_path / "out/labels").iterdir())
    assert [path.name for path in labels] == names
    OutputFolder(tmp_path / "out").prepare(labels, [])  # all in one manifest

"""docs/own_data.md: its commands run as they are written, and print what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from run_files import call, invoke

from pspnet_fast import PSPNet
from pspnet_fast.data import DatasetInfo
from pspnet_fast.data.classes import CAMVID
from pspnet_fast.engine import TrainConfig, TrainedModel

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")
HOME = "/home/me"  # of the reader
INFO = DatasetInfo("shades", ("dark", "bright"), ((0, 0, 0), (255, 255, 255)))
ROOT = os.environ.get("PSPNET_FAST_CAMVID")
WALKS = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
TRAINING, VIDEO, RASTER = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def entries(walk: str) -> list[tuple[list[str], str]]:
    """The commands of a walk, and what each prints."""
    parts = re.split(r"^\$ (.*)\n", walk, flags=re.MULTILINE)[1:]
    return [(shlex.split(command), output) for command, output in zip(parts[::2], parts[1::2], strict=True)]


def comparable(text: str, *, measured: bool) -> str:
    """Without what follows the width of the terminal or of a number; without numbers if they are measured."""
    plain = re.sub(r"[\s─━┏┳┓┡╇┩├┼┤└┴┘]+", "", text)
    return re.sub(r"\d+\.?\d*|nan", "#", plain) if measured else plain


@pytest.fixture
def home(own_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page's folders lie."""
    shutil.copytree(own_pictures / "colors", tmp_path / "street")
    shutil.copytree(own_pictures / "offset", tmp_path / "scans")
    (tmp_path / "scans/classes.txt").write_text("\n".join(CAMVID.classes))
    (file,) = re.findall(r"`camvid\.txt`[^`]*```text\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "camvid.txt").write_text(file)
    (tmp_path / "data").mkdir()
    if ROOT is not None:
        (tmp_path / "data/camvid").symlink_to(ROOT, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("walk", WALKS, ids=["colors", "offset", "camvid"])
def test_a_walk(walk: str, home: Path) -> None:
    if "data/camvid" in walk and ROOT is None:
        pytest.skip("PSPNET_FAST_CAMVID does not name the folder of CamVid")
    commands = entries(walk)
    assert [words[1] for words, _ in commands] == ["init", "train", "predict"]
    for words, shown in commands:
        done = invoke(*words[1:], columns=100)
        assert done.exit_code == 0, done.output
        printed = done.stdout.replace(str(home), HOME)
        measured = words[1] == "train"  # the numbers depend on the machine
        assert comparable(printed, measured=measured) == comparable(shown, measured=measured)
    overlays = list((home / words[words.index("--out") + 1] / "overlay").iterdir())
    assert len(overlays) == int(shown.split()[0])

    checkpoint = words[words.index("--checkpoint") + 1]
    if (split := Path(checkpoint).with_name("split.yaml")).exists():  # what the run held out is evaluated
        assert f", {len(yaml.safe_load(split.read_text())['val'])} images" in call("evaluate", checkpoint)


def run(code: str, **names: Any) -> dict[str, Any]:
    """The names that a piece of the page leaves."""
    exec(compile(code, "own_data.md", "exec"), names)
    return names


def test_what_init_writes(home: Path) -> None:
    """The lines of data.yaml that the page shows."""
    call("init", "scans")
    (excerpt,) = re.findall(r"`scans/data\.yaml`[^`]*```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert excerpt in (home / "scans/data.yaml").read_text()


def test_the_code_runs(home: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 70, 80), dtype=torch.uint8, generator=generator)
    samples = [(image, (image[0] > 127).long()) for image in images]
    names = run(TRAINING, my_dataset=samples, my_validation=samples[:1])
    assert names["metrics"].miou == pytest.approx(names["result"].best_miou)
    assert len(names["written"]) == 12


@pytest.fixture
def labelled(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with a trained network, whose prediction of a picture is whether it is bright."""
    trained = TrainedModel(PSPNet(layers=18, classes=2, pretrained=False), TrainConfig(), INFO, 0)
    monkeypatch.setattr(TrainedModel, "load", lambda _: trained)
    monkeypatch.setattr(TrainedModel, "predict", lambda _, image: (image[0] > 127).to(torch.uint8))
    return home


def test_a_video(labelled: Path) -> None:
    av = pytest.importorskip("av")
    shades = (30, 220, 90)
    with av.open("street.mp4", "w") as video:
        stream = video.add_stream("libx264", rate=10, width=32, height=48)
        for shade in shades:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 32, 3), shade, np.uint8), format="rgb24")))
        video.mux(stream.encode())
    run(VIDEO)
    with av.open("street_overlay.mp4") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    for frame, shade in zip(frames, shades, strict=True):
        assert frame.shape == (48, 32, 3)
        assert abs(int(frame.mean()) - (shade + 255 * (shade > 127)) // 2) < 5


def test_a_raster(labelled: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1040, 1100), np.uint8)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 5e5, 0, -2, 6e6)}
    with rasterio.open("city.tif", "w", driver="GTiff", width=1100, height=1040, count=3, dtype="uint8", **place) as f:
        f.write(pixels)
    run(RASTER)
    with rasterio.open("city_labels.tif") as written:
        np.testing.assert_array_equal(written.read(1), pixels[0] > 127)
        assert (written.crs, written.transform) == (place["crs"], place["transform"])

"""The command line, from drawing a data set to overlays."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import SHORT, call, refused, saved_step, untrained

from pspnet_fast.data import DATASETS
from pspnet_fast.deploy.runtimes import onnxruntime_run, openvino_run
from pspnet_fast.engine import checkpoint, load_trained, network_commands, progress
from pspnet_fast.engine.models import DATASET

EVALUATE = ("evaluate", "{run}/best.pt")


def test_scenes_then_train_by_data_alone(tmp_path: Path) -> None:
    call("scenes", tmp_path / "s", "--train", 2, "--val", 1, "--height", 64, "--width", 80)
    call("train", *SHORT, "--data", "scenes", "--root", tmp_path / "s", "--folder", tmp_path / "r")
    assert (tmp_path / "r" / "best.pt").exists()


def test_resume_needs_the_folder_alone(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    call("train", "--resume", "--folder", folder, "run.max_steps=3")
    assert saved_step(folder) == 3


def test_evaluate(run: Path, tmp_path: Path) -> None:
    record = tmp_path / "metrics.json"
    output = call("evaluate", run / "best.pt", "--json", record)
    metrics = json.loads(record.read_text())
    assert f"{100 * metrics['miou']:.2f}" in output
    assert metrics["miou"] == pytest.approx(checkpoint.load(run / "best.pt")["metrics"]["miou"])
    assert np.sum(metrics["confusion"]) <= 3 * 64 * 96


def test_evaluate_options(run: Path, tmp_path: Path) -> None:
    record = tmp_path / "metrics.json"
    call("evaluate", run / "best.pt", "eval.batch_size=2", "--json", record, "--split", "train",
         "--backend", "reference", "--scales", "0.5,1", "--flip", "--crop", 49, "--amp", "none")  # fmt: skip
    assert 7 * 64 * 96 < np.sum(json.loads(record.read_text())["confusion"]) <= 8 * 64 * 96


def test_bfloat16_on_a_cpu_without_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requested, it is an error; taken from the training, a warning."""
    monkeypatch.setattr(network_commands, "cpu_multiplies_bfloat16", lambda: False)
    words = "neither AMX nor AVX512-BF16"
    assert words in refused("evaluate", run / "best.pt", "--device", "cpu", "--amp", "bf16")
    assert words not in call("evaluate", run / "best.pt", "--device", "cpu", "--amp", "none")
    shown: list[str] = []
    monkeypatch.setattr(network_commands, "warn", shown.append)
    _, options = network_commands.load_for_inference(run / "best.pt", None, ["run.device=cpu"])
    assert options.run.amp == "bf16"
    assert len(shown) == 1
    assert words in shown[0]


def test_evaluate_a_foreign_checkpoint(run: Path, scenes: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "semseg.pth"
    state = {f"module.{key}": value for key, value in checkpoint.load(run / "best.pt")["model"].items()}
    torch.save({"epoch": 7, "state_dict": state}, foreign)
    records = [tmp_path / "own.json", tmp_path / "foreign.json"]
    call("evaluate", run / "best.pt", "--json", records[0])
    call("evaluate", foreign, "--config", "camvid_r18", "--data", "scenes", "--root", scenes, "--json", records[1])
    assert json.loads(records[0].read_text()) == json.loads(records[1].read_text())

    message = refused("evaluate", foreign, "--root", scenes)
    assert "semseg.pth" in message
    assert "--config" in message


def test_predict(run: Path, scenes: Path, tmp_path: Path) -> None:
    single = tmp_path / "street.jpg"
    shutil.copy(scenes / "images" / "val" / "00000.jpg", single)
    out = tmp_path / "[/]out"
    call("predict", single, scenes / "images" / "val", "-c", run / "best.pt", "-o", out)

    names = ["00000.png", "00001.png", "00002.png", "street.png"]
    for kind in ("labels", "colors", "overlay"):
        assert sorted(file.name for file in (out / kind).iterdir()) == names
    labels = np.array(Image.open(out / "labels" / "street.png"))
    assert labels.shape == (64, 96)
    assert labels.max() < 11
    palette = np.array(load_trained(run / "best.pt").info.palette, dtype=np.uint8)
    assert palette.tolist() == [list(color) for color in DATASETS["scenes"].info.palette]
    colors = np.array(Image.open(out / "colors" / "street.png").convert("RGB"))
    np.testing.assert_array_equal(colors, palette[labels])
    picture = np.array(Image.open(single).convert("RGB")).astype(float)
    overlay = np.array(Image.open(out / "overlay" / "street.png")).astype(float)
    assert np.abs(overlay - (picture + colors) / 2).max() <= 0.5


def test_predict_options(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 35 * 40, dtype=np.float32).reshape(35, 40)).save(tmp_path / "a.tif")
    (tmp_path / "b.png").write_text("no picture")
    predict = ("predict", tmp_path / "a.tif", "-c", run / "best.pt", "-o", tmp_path / "out")
    assert "--value-range 0,1" in refused(*predict)
    call(*predict, "--value-range", "0,1", "--crop", 33, "--max-pixels", 1400)
    assert Image.open(tmp_path / "out/labels/a.png").size == (40, 35)
    (tmp_path / "out/labels/a.png").write_text("mine")
    refused(*predict, "--value-range", "0,1")
    call(*predict, "--value-range", "0,1", "--overwrite")

    output = refused(*predict, tmp_path / "b.png", "--value-range", "0,1")
    assert "1 of 2 pictures could not be predicted; 1 are in" in output


def test_check(scenes: Path, tmp_path: Path) -> None:
    output = call("check", "--data", "scenes", "--root", scenes, "data.workers=0", "--images")
    sizes = ("sizes: 96x64 (8)", "image: JPEG RGB (8)")
    for part in ("scenes train, 8 images", "scenes val, 3 images", *sizes, "bicyclist"):
        assert part in output
    folder = tmp_path / "damaged"
    shutil.copytree(scenes, folder)
    labels = folder / "labels/train"
    Image.fromarray(np.full((64, 96), 12, np.uint8)).save(labels / "00001.png")
    Image.fromarray(np.zeros((96, 64), np.uint8)).save(labels / "00002.png")
    output = refused("check", "--data", "scenes", "--root", folder, "data.workers=2")
    assert "2 of 11 samples cannot be used" in output
    assert "00001.png: label value 12" in output
    assert "00002.png: label is 64x96 but its image" in output
    assert "8 images" not in call("check", "--data", "scenes", "--root", folder, "--split", "val")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("train",), ["camvid_r18", "--data"]),
        (("train", "camvid_r81"), ["camvid_r81", "did you mean camvid_r18"]),
        (("train", "camvid_r18"), ["data.root is not set", "--root"]),
        (("train", "camvid_r18", "--root", "/nowhere"), ["/nowhere"]),
        (("train", "camvid_r18", "--root", "{scenes}", "--backend", "cudaa"), ["run.backend = 'cudaa'", "reference"]),
        (("train", "--resume", "--folder", "{tmp}"), ["{tmp}", "config.yaml"]),
        (("evaluate", "{tmp}/[/]no.pt"), ["{tmp}/[/]no.pt", "no such checkpoint"]),
        ((*EVALUATE, "--root", "/nowhere"), ["/nowhere"]),
        (("evaluate", "{run}/config.yaml"), ["config.yaml", "no checkpoint, but a text file"]),
        (("predict", "{tmp}/no.jpg", "-c", "{run}/best.pt"), ["{tmp}/no.jpg", "no such picture"]),
        (("predict", "{tmp}/empty", "-c", "{run}/best.pt"), ["{tmp}/empty", "no pictures"]),
        (("predict", "{tmp}/text.jpg", "-c", "{run}/best.pt", "-o", "{tmp}/out"), ["{tmp}/text.jpg"]),
        (("predict", "{tmp}/a.jpg", "{tmp}/a.png", "-c", "{run}/best.pt"), ["a.jpg", "a.png", "two folders"]),
        (("predict", "{scenes}/images", "-c", "{run}/best.pt", "-o", "{scenes}"), ["00000.png and 10 more"]),
        (("predict", "{tmp}/text.jpg", "-c", "{run}/best.pt", "-o", "{tmp}/a.jpg"), ["{tmp}/a.jpg: cannot be written"]),
        ((*EVALUATE, "model.layers=50"), ["model.layers cannot be changed: {run}/best.pt holds its network"]),
        ((*EVALUATE, "model.weights=x.pth"), ["model.weights is an option of training"]),
        ((*EVALUATE, "optim.lr=0.1"), ["optim.lr is an option of training"]),
        ((*EVALUATE, "data.crop=65"), ["data.crop is an option of training"]),
        ((*EVALUATE, "data.train_list=x"), ["data.train_list is an option of training"]),
        ((*EVALUATE, "run.seed=1"), ["run.seed is an option of training"]),
        ((*EVALUATE, "eval.lr=1"), ["unknown key 'eval.lr'; did you mean optim.lr?"]),
        (("check",), ["data.root is not set"]),
        (("check", "--data", "list", "--root", "{tmp}"), ["data.train_list is not set"]),
        (("scenes", "{run}"), ["{run}", "folder"]),
        (("scenes", "{tmp}/new", "--train", "0"), ["train=0"]),
    ],
)  # fmt: skip
def test_mistakes_get_one_framed_message(
    run: Path, scenes: Path, tmp_path: Path, arguments: tuple[str, ...], parts: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("text.jpg", "a.jpg", "a.png"):
        (tmp_path / name).write_text("no picture")
    places = {"run": run, "scenes": scenes, "tmp": tmp_path}
    output = refused(*(argument.format(**places) for argument in arguments))
    for part in parts:
        assert part.format(**places) in output


def test_evaluate_on_other_classes(run: Path, scenes: Path, tmp_path: Path) -> None:
    """Another number of them is an error, other names are a warning."""
    state = checkpoint.load(run / "best.pt")
    two = {"classes": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]}
    checkpoint.save({**state, "dataset": {**state["dataset"], **two}}, tmp_path / "two.pt")
    assert "two.pt" in refused("evaluate", tmp_path / "two.pt")

    Image.fromarray(np.zeros((64, 96), dtype=np.uint8)).save(tmp_path / "label.png")
    (tmp_path / "pairs.txt").write_text(f"{scenes}/images/val/00000.jpg {tmp_path}/label.png\n")
    lists = ("evaluate", run / "best.pt", "data.name=list", f"data.val_list={tmp_path}/pairs.txt")
    assert "best.pt: has 11 classes (scenes), but list has 12" in refused(*lists, "data.classes=12")
    output = call(*lists, "data.classes=11")
    others = f"the classes of {run}/best.pt (scenes) have other names: 0 is 'sky' there, 'class 0' here"
    assert f"warning: {others}" in output
    assert "and 8 more" in output
    output = refused(*lists, "data.classes=11", "--split", "train")
    assert "--split has no effect with data.name=list" in output
    assert "warning" not in call("evaluate", run / "best.pt")


def test_evaluate_shows_progress_in_a_log(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    output = call("evaluate", run / "best.pt")
    assert "evaluate: 3 images\n" in output
    for done in (1, 2, 3):
        assert f"evaluate: {done} of 3 images, " in output
    assert "0:00:00 left" in output


INFO = DATASETS["scenes"].info


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint, to export."""
    for library in ("onnx", "onnxruntime"):
        pytest.importorskip(library, reason="needs the extra [export]")
    trained, file = untrained("scenes"), tmp_path_factory.mktemp("run") / "best.pt"
    state = {"model": trained.model.state_dict(), "config": trained.config.to_dict()}
    torch.save({**state, "dataset": DATASET.dump_python(trained.info)}, file)
    return file


def test_export_to_onnx_for_decoded_pictures(best: Path) -> None:
    file = best.with_suffix(".onnx")
    text = call("export", best, "--size", "65x81", "--batch", 1, "--normalize")
    assert "1 x 65x81: difference" in text
    assert str(file) in text
    found = {entry.key: entry.value for entry in pytest.importorskip("onnx").load(file).metadata_props}
    assert json.loads(found["classes"]) == list(INFO.classes)
    assert json.loads(found["palette"]) == [list(color) for color in INFO.palette]
    assert onnxruntime_run(file)(np.zeros((1, 65, 81, 3), np.uint8)).shape == (1, 65, 81)

    file.write_bytes(file.read_bytes() + b"edited")
    before = file.read_bytes()
    text = refused("export", best, "--size", "65x81")
    assert "exists and was not written by export, or was changed since" in text
    assert file.read_bytes() == before
    call("export", best, "--size", "33x41", "--batch", 1, "--logits", "--overwrite")
    assert onnxruntime_run(file)(np.zeros((1, 3, 33, 41), np.float32)).shape == (1, INFO.num_classes, 33, 41)


@pytest.mark.parametrize("to", ["openvino", "torch-export"])
def test_export_to_other_formats(best: Path, tmp_path: Path, to: str) -> None:
    if to == "openvino":
        pytest.importorskip("openvino", reason="needs the extra [export]")
    file = tmp_path / ("model.xml" if to == "openvino" else "model.pt2")
    call("export", best, "--to", to, "--size", "33x41", "--batch", 2, "--out", file)
    x = torch.randn(2, 3, 33, 41)
    if to == "openvino":
        assert openvino_run(file)(x.numpy()).shape == (2, 33, 41)
        assert INFO.classes[0] in file.read_text()
    else:
        extra = {"metadata.json": ""}
        assert torch.export.load(file, extra_files=extra).module()(x).shape == (2, 33, 41)
        assert json.loads(json.loads(extra["metadata.json"])["classes"]) == list(INFO.classes)


def test_export_errors_name_the_remedy(best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "as in --size 512x1024" in refused("export", best, "--size", "512")
    assert "would replace the input" in refused("export", best, "--out", best, "--overwrite")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'pspnet-fast[export]'" in refused("export", best, "--out", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()

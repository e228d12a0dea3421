"""``pspnet-fast export``: the formats, what the file says of itself, and what it may replace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import call

from pspnet_fast.data import DATASETS
from pspnet_fast.deploy.runtimes import onnxruntime_run, openvino_run
from pspnet_fast.engine import build_model, config_from_dict
from pspnet_fast.engine.models import DATASET

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
pytest.importorskip("onnxruntime", reason="needs the extra [export]")

INFO = DATASETS["scenes"].info


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves."""
    torch.manual_seed(0)
    config = config_from_dict({"model": {"backbone": "timm/test_resnet"}, "run": {"max_steps": 1}})
    model = build_model(config.model, INFO.num_classes)
    file = tmp_path_factory.mktemp("run") / "best.pt"
    torch.save({"model": model.state_dict(), "config": config.to_dict(), "dataset": DATASET.dump_python(INFO)}, file)
    return file


def test_onnx_of_decoded_pictures(best: Path) -> None:
    file = best.with_suffix(".onnx")
    text = call("export", best, "--size", "65x81", "--batch", 1, "--normalize")
    assert "1 x 65x81: difference" in text
    assert str(file) in text
    found = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(found["classes"]) == list(INFO.classes)
    assert json.loads(found["palette"]) == [list(color) for color in INFO.palette]
    assert onnxruntime_run(file)(np.zeros((1, 65, 81, 3), np.uint8)).shape == (1, 65, 81)

    file.write_bytes(file.read_bytes() + b"edited")
    before = file.read_bytes()
    text = call("export", best, "--size", "65x81", code=2)
    assert "exists and was not written by export, or was changed since" in text
    assert file.read_bytes() == before
    call("export", best, "--size", "33x41", "--batch", 1, "--logits", "--overwrite")
    assert onnxruntime_run(file)(np.zeros((1, 3, 33, 41), np.float32)).shape == (1, INFO.num_classes, 33, 41)


@pytest.mark.parametrize("to", ["openvino", "torch-export"])
def test_other_formats(best: Path, tmp_path: Path, to: str) -> None:
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


def test_errors_name_the_remedy(best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "as in --size 512x1024" in call("export", best, "--size", "512", code=2)
    assert "would replace the input" in call("export", best, "--out", best, "--overwrite", code=2)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert "pip install 'pspnet-fast[export]'" in call("export", best, "--out", tmp_path / "a.onnx", code=2)
    assert not (tmp_path / "a.onnx").exists()

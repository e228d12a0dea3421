"""ONNX files of a PSPNet give its logits and labels in ONNX Runtime and OpenVINO, at any size, or are not written."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from exported import CLASSES, PALETTE, Exported

from pspnet_fast import PSPNet, export_onnx
from pspnet_fast.deploy import ExportError, Options, export_files, formats
from pspnet_fast.deploy.runtimes import onnxruntime_run, openvino_run

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
pytest.importorskip("onnxruntime", reason="needs the extra [export]")

SIZES = [(33, 33), (129, 193), (130, 190)]  # none is the size at which the file was recorded
RUNTIMES = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_logits_and_labels_at_sizes_it_was_not_recorded_at(any_size: Exported, runtime: str) -> None:
    pytest.importorskip(runtime, reason="needs the extra [export]")
    run = RUNTIMES[runtime](any_size.file, threads=1)
    for batch, size in enumerate(SIZES, start=1):
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = any_size.model(images)
        actual = torch.from_numpy(run(images.numpy()))
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
        best, second = expected.topk(2, dim=1).values.unbind(1)
        clear = best - second > 1e-4 * expected.abs().max()
        assert clear.float().mean() > 0.99
        assert torch.equal(actual.argmax(1)[clear], expected.argmax(1)[clear])


def test_it_was_compared_at_three_sizes(any_size: Exported) -> None:
    assert len({comparison.size for comparison in any_size.comparisons}) == 3
    for comparison in any_size.comparisons:
        assert 0 < comparison.difference < 1e-5
        assert comparison.equal_labels > 0.999


def test_the_graph_is_the_reduced_one(any_size: Exported, one_size: Exported) -> None:
    for file, convolutions in ((any_size.file, 29), (one_size.file, 9)):
        loaded = onnx.load(file)
        onnx.checker.check_model(loaded)
        counts = Counter(node.op_type for node in loaded.graph.node)
        assert {node.domain for node in loaded.graph.node} == {""}
        # One convolution for each of the network; normalisation is in them, and only the logits are resized.
        assert (counts["Conv"], counts["BatchNormalization"], counts["Resize"]) == (convolutions, 0, 1)
        shapes = [tuple(tensor.dims) for tensor in loaded.graph.initializer]
        assert (128, 512, 3, 3) in shapes  # the head's convolution over the map alone
        assert all(shape[1] < 1024 for shape in shapes if len(shape) == 4)
    assert len(onnx.load(one_size.file).graph.node) < 100


def test_labels_of_a_decoded_picture(one_size: Exported) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 74, 90, 3), np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((torch.from_numpy(picture) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    labels = onnxruntime_run(one_size.file)(picture)
    assert labels.dtype == np.uint8
    expected = one_size.model.predict(normalised)
    assert (torch.from_numpy(labels) == expected).float().mean() > 0.999
    assert len(expected.unique()) > 1


def test_metadata(any_size: Exported, one_size: Exported) -> None:
    found = {entry.key: entry.value for entry in onnx.load(one_size.file).metadata_props}
    assert json.loads(found["classes"]) == list(CLASSES)
    assert json.loads(found["palette"]) == [list(color) for color in PALETTE]
    assert json.loads(found["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(found["std"]) == [0.229, 0.224, 0.225]
    assert found["image"].startswith("uint8 [N, H, W, 3]")

    graph = onnx.load(any_size.file).graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == ("image", "logits")
    axes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in (image, logits)
    ]
    assert axes == [["batch", 3, "height", "width"], ["batch", 3, "height", "width"]]
    assert b"/pspnet_fast/" not in any_size.file.read_bytes()  # no paths of this machine


def test_the_model_is_left_as_it_is(any_size: Exported) -> None:
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in any_size.model.modules())
    assert all(parameter.requires_grad for parameter in any_size.model.parameters())


@pytest.mark.parametrize(
    ("to", "labels"), [("onnx", False), ("onnx", True), ("openvino", True), ("torch-export", True)]
)
def test_a_file_that_differs_is_refused(to: str, labels: bool, model: PSPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of labels, too, where every pixel has the same one whatever is wrong."""
    if to == "openvino":
        pytest.importorskip(to, reason="needs the extra [export]")
    real, model = formats.reduced_program, copy.deepcopy(model)
    model.get_parameter("cls.4.bias").data[1] += 10 * labels

    def wrong(model: torch.nn.Module, options: Options) -> torch.export.ExportedProgram:
        other = copy.deepcopy(model)
        other.get_parameter("cls.4.weight").data[0] *= 2
        return real(other, options)

    options = Options((41, 49), labels, batch=1)
    if to == "torch-export":  # to the others, which take longer, the fixtures and the tests of the command export
        export_files(model, to, options)
    monkeypatch.setattr(formats, "reduced_program", wrong)
    with pytest.raises(ExportError, match=r"differs from the model: 1 x 41x49: difference .*Nothing was written"):
        export_files(model, to, options)


def test_what_was_there_before_a_refusal_stays(model: PSPNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> NoReturn:
        raise ExportError("differs")

    monkeypatch.setattr(formats, "compare", refused)
    file = tmp_path / "kept.onnx"
    file.write_text("kept")
    with pytest.raises(ExportError, match="differs"):
        export_onnx(model, file, (41, 49), batch=1)
    assert file.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_runtime_names_the_extra(model: PSPNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript is not installed .*pip install 'pspnet-fast\[export\]'"):
        export_onnx(model, tmp_path / "model.onnx", (41, 49))
    assert not list(tmp_path.iterdir())

"""The reduced programs of PSPNet and of other libraries' models give their logits, as do exports by PyTorch alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import small_pair
from torch import Tensor, nn
from torch.export import Dim

import pspnet_fast
from pspnet_fast import PSPNet
from pspnet_fast.deploy import ExportError, Options, decompositions, export_files
from pspnet_fast.deploy.program import exportable, reduced_program
from pspnet_fast.deploy.runtimes import compare, onnxruntime_run


def check(model: nn.Module, **options: Any) -> Counter[str]:
    """Compare ``model`` and its reduced program; the program's operators."""
    chosen = Options(labels=False, **{"size": (50, 66), "batch": 2, **options})
    model = exportable(model)
    program = reduced_program(model, chosen)
    run = program.module(check_guards=False)
    assert max(c.difference for c in compare([lambda x: run(torch.from_numpy(x))], model, chosen, "it", 2e-5)) > 0
    operators = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert not [name for name in operators if not name.startswith(("aten.", "<built-in"))]
    return operators


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[PSPNet], object]]] = {
    "as it is": ({}, PSPNet.eval),
    "zoom 1, bins": ({"zoom_factor": 1, "bins": (2, 5)}, PSPNet.eval),
    "zoom 4, one bin": ({"zoom_factor": 4, "bins": (1,)}, PSPNet.eval),
    "without pyramid": ({"use_ppm": False}, PSPNet.eval),
    "1x1 head": ({}, lambda model: model.set_submodule("cls.0", nn.Conv2d(1024, 128, 1))),
    "level without norm": ({}, lambda model: model.set_submodule("ppm.features.1.2", nn.Identity())),
    "other pooling": ({}, lambda model: model.set_submodule("ppm.features.2.0", nn.AdaptiveAvgPool2d((3, 2)))),
    "hooked": ({}, lambda model: model.ppm.features[0].register_forward_hook(lambda module, args, output: output * 2)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    arguments, change = VARIANTS[name]
    model = small_pair(**arguments)[0]
    change(model)
    operators = check(model.eval())
    assert operators["aten.batch_norm.default"] == 0
    assert operators["aten.adaptive_avg_pool2d.default"] <= (name in ("hooked", "other pooling"))  # to 1x1, a mean


@pytest.mark.parametrize("arguments", [{"layers": 18, "norm": "group"}, {"backbone": "timm/resnet10t"}])
def test_backbones_and_norms(arguments: dict[str, Any]) -> None:
    if "backbone" in arguments:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    check(PSPNet(classes=3, pretrained=False, **arguments).eval())


def test_stock_networks_are_reduced_too() -> None:
    operators = check(small_pair()[1])
    assert operators["aten.upsample_bilinear2d.vec"] == 1  # the logits
    assert operators["aten.batch_norm.default"] == 0


LIBRARIES = {
    "segmentation_models_pytorch-pspnet": 1,  # interpolations that remain
    "transformers-upernet-convnext": 5,
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_accelerated_models_of_other_libraries(name: str) -> None:
    pytest.importorskip(name.split("-")[0])
    from models import build

    model = pspnet_fast.accelerate(build(name).eval())
    operators = check(model, size=(64, 96))
    assert operators["aten.upsample_bilinear2d.vec"] == LIBRARIES[name]
    assert operators["aten.batch_norm.default"] == 0


def test_multiples_for_models_that_refuse_other_sizes() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    from models import build

    model = pspnet_fast.accelerate(build("segmentation_models_pytorch-pspnet").eval())
    assert check(model, size=None, batch=1, multiple=8)["aten.upsample_bilinear2d.vec"] == 1
    with pytest.raises(ExportError, match=r"the model cannot run 2 x 50x66 \(Wrong input shape height=50"):
        check(model, size=(50, 66))


class Writing(nn.Module):
    """Reads what was written after it was made: such results must not be replaced by what they were made from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :2].relu_()
        y = self.norm(y)
        level = nn.functional.adaptive_avg_pool2d(y, 2)
        up = nn.functional.interpolate(level, x.shape[2:], mode="bilinear")
        level.neg_()
        up += 1
        return self.last(torch.cat([y, up], dim=1))


def test_what_is_written_to_is_not_replaced() -> None:
    torch.manual_seed(0)
    operators = check(Writing())
    assert operators["aten.batch_norm.default"] == 1
    assert operators["aten.upsample_bilinear2d.vec"] == 1


def test_outputs_that_are_no_logits_are_refused() -> None:
    with pytest.raises(ExportError, match="no logits"):
        check(nn.Flatten())


# ---- ``torch.onnx.export`` and ``torch.export`` called on a PSPNet itself --------------------------------------------

ANY_SIZE = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)


def test_torch_onnx_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    model, file = small_pair()[0], tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(2, 3, 65, 81),), file, dynamic_shapes=ANY_SIZE, verbose=False)
    run = onnxruntime_run(file)
    for batch, size in ((1, (129, 193)), (2, (130, 190))):
        x = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(torch.from_numpy(run(x.numpy())), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["forward", "predict"])
def test_torch_export_in_standard_operators(method: str) -> None:
    model = small_pair()[0].double()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self.network, method)(x)

    with torch.no_grad():
        program = torch.export.export(Network(), (torch.randn(2, 3, 65, 81).double(),), dynamic_shapes=ANY_SIZE)
    assert any("pspnet_fast" in str(node.target) for node in program.graph.nodes)
    program = program.run_decompositions(decompositions())
    assert not any("pspnet_fast" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(3, 3, 90, 66).double()
    # The interpolation weights of any size are computed in float32.
    torch.testing.assert_close(program.module()(x), getattr(model, method)(x), rtol=0, atol=1e-5)


def test_the_page_compiles_a_program_ahead_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, images = small_pair()[0], torch.randn(1, 3, 41, 49)
    (content,), _ = export_files(model, "torch-export", Options((41, 49), batch=1))
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "best.pt2").write_bytes(content)
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "aoti" in b)
    names: dict[str, Any] = {"images": images}
    exec(compile(block, "deploy.md", "exec"), names)
    assert names["labels"].dtype == torch.uint8
    assert torch.equal(names["labels"].long(), model.predict(images))

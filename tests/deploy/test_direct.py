"""``torch.onnx.export`` and ``torch.export`` called on a PSPNet itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exported import small_pair
from torch.export import Dim

from pspnet_fast import PSPNet
from pspnet_fast.deploy import decompositions
from pspnet_fast.deploy.runtimes import onnxruntime_run

ANY_SIZE = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)


def test_torch_onnx_export(model: PSPNet, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    file = tmp_path / "model.onnx"
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

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return getattr(self.network, method)(x)

    with torch.no_grad():
        program = torch.export.export(Network(), (torch.randn(2, 3, 65, 81).double(),), dynamic_shapes=ANY_SIZE)
    assert any("pspnet_fast" in str(node.target) for node in program.graph.nodes)
    program = program.run_decompositions(decompositions())
    assert not any("pspnet_fast" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(3, 3, 90, 66).double()
    # The interpolation weights of any size are computed in float32.
    torch.testing.assert_close(program.module()(x), getattr(model, method)(x), rtol=0, atol=1e-5)

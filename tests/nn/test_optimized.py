"""PSPNet.optimize_for_inference: the same labels, and nothing that would train or save it."""

from __future__ import annotations

import copy
import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from network_pairs import with_statistics
from torch import Tensor, nn

from pspnet_fast import PSPNet
from pspnet_fast.nn.optimized import FusedConv2d, fuse_convolutions


def network(**options: object) -> PSPNet:
    torch.manual_seed(0)
    return with_statistics(PSPNet(**{"layers": 50, "classes": 19, "pretrained": False, **options}).eval())


VARIANTS = {
    "50": {},
    "18": {"layers": 18},
    "group": {"layers": 18, "norm": "group"},
    "torchvision": {"backbone": "torchvision/resnet50"},
    "timm": {"backbone": "timm/regnetx_002"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_logits_and_labels(variant: str) -> None:
    if variant in ("torchvision", "timm") and importlib.util.find_spec(variant) is None:
        pytest.skip(f"{variant} is not installed")
    net = network(**VARIANTS[variant])
    x = torch.randn(2, 3, 65, 81)
    before = copy.deepcopy(net.state_dict())
    optimized = net.optimize_for_inference()
    with torch.no_grad():
        logits, exact = net(x), copy.deepcopy(net).double()(x.double())
    found = optimized(x)
    allowed = 2 * (logits - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found - exact).abs().max() <= allowed
    assert not found.requires_grad
    assert (optimized.predict(x) == net.predict(x)).double().mean() >= 0.9999
    torch.testing.assert_close(optimized(x.contiguous(memory_format=torch.channels_last)), found)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    if variant not in ("group",):
        assert not any(isinstance(m, nn.BatchNorm2d) for name, m in optimized.named_modules() if "layer" in name)
    if variant == "50":
        fused = [m for m in optimized.modules() if isinstance(m, FusedConv2d)]
        assert len(fused) == 3 + 3 * 16 + 4 + 1  # and the head's
        assert sum(m.in_place for m in fused) == 16 + 1
        assert sum(m.relu for m in fused) == len(fused) - 4


def test_autocast() -> None:
    net = network(layers=18)
    x = torch.randn(1, 3, 65, 81)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, stock = net.optimize_for_inference()(x), net(x)
    exact = net(x).detach()
    assert (found - exact).norm() <= 2 * (stock - exact).norm()


def test_compile_and_copy() -> None:
    optimized = network(layers=18).optimize_for_inference()
    x = torch.randn(1, 3, 65, 81)
    expected = optimized.predict(x)
    for other in (torch.compile(optimized.predict, backend="aot_eager"), copy.deepcopy(optimized).predict):
        assert (other(x) == expected).double().mean() >= 0.9999
    assert optimized.double()(x.double()).dtype == torch.float64


def test_it_neither_trains_nor_saves() -> None:
    optimized = network(layers=18).optimize_for_inference()
    assert optimized.eval() is optimized
    assert optimized.optimize_for_inference() is optimized
    for call, words in (
        (optimized.train, "train the one that it was made from"),
        (optimized.state_dict, "save the one it was made from"),
        (lambda: optimized.load_state_dict({}), "load the weights into a PSPNet"),
    ):
        with pytest.raises(RuntimeError, match=f"optimized for inference.* {words}"):
            call()


class Residual(nn.Module):
    """What is added is read again later, or is the input: it must not be overwritten."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), shortcut

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        same = self.shortcut(x)
        y = torch.relu(self.first(x) + same)
        same = self.shortcut(y)
        return torch.relu(self.second(y) + same), y


@pytest.mark.parametrize("shortcut", [nn.Identity(), nn.Dropout(0.5), nn.Flatten(3)], ids=lambda m: type(m).__name__)
def test_what_is_read_again_is_not_overwritten(shortcut: nn.Module) -> None:
    torch.manual_seed(0)
    module, x = Residual(shortcut).eval(), torch.randn(1, 3, 5, 6)
    given = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(fuse_convolutions(module)(x), module(x))
    torch.testing.assert_close(x, given, rtol=0, atol=0)


def test_other_threads_run_modules_meanwhile() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.elsewhere = nn.Conv2d(3, 4, 1), [nn.Conv2d(3, 5, 1), Residual(nn.Identity())]
            self.found: list[object] = []

        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                self.found += [
                    pool.submit(self.elsewhere[0], torch.zeros(1, 3, 2, 2)).result(),
                    pool.submit(fuse_convolutions, self.elsewhere[1]).result(),
                ]
            return torch.relu(self.conv(x))

    module = Interrupted()
    fused = fuse_convolutions(module)
    result, other = module.found
    assert isinstance(result, Tensor)
    assert isinstance(other, nn.Module)
    assert not any(type(m) is nn.Conv2d for m in other.modules())
    assert [type(m) for m in fused.children()] == [FusedConv2d]
    assert type(module.conv) is nn.Conv2d

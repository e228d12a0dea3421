"""Recomputed activations: the same gradients and buffers as the plain step; frozen modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pspnet_fast import PSPNet
from pspnet_fast.nn.resnet import RECOMPUTE


def step(model: PSPNet, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients and buffers after a step."""
    torch.manual_seed(0)  # dropout
    _, main, aux = model(images, labels)
    (main + 0.4 * aux).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | dict(model.named_buffers())


@pytest.mark.parametrize("backbone", [None, "torchvision/resnet50"])
def test_recomputed_steps_equal_the_plain_one(backbone: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 33, 41, generator=generator)
    labels = torch.randint(0, 3, (2, 33, 41), generator=generator)
    plain = PSPNet(layers=18, classes=3, pretrained=False, backbone=backbone)
    others = {mode: copy.deepcopy(plain) for mode in RECOMPUTE[1:]}
    expected = step(plain, images, labels)
    assert int(expected["layer2.0.bn1.num_batches_tracked"]) == 1
    for mode, model in others.items():
        model.recompute = mode
        convolutions = 0

        def count(*_: object) -> None:
            nonlocal convolutions
            convolutions += 1

        model.layer3[0].conv1.register_forward_hook(count)
        torch.testing.assert_close(step(model, images, labels), expected, rtol=0, atol=0)
        assert convolutions == 2  # the module is called again; whether it computes again is the mode's


def test_selective_keeps_convolutions() -> None:
    """In backward, "full" convolves forward again, and "selective" only where that widens."""
    calls = {}
    for mode in RECOMPUTE:
        model = PSPNet(layers=18, classes=3, pretrained=False, recompute=mode)
        _, main, aux = model(torch.randn(2, 3, 33, 33), torch.zeros(2, 33, 33, dtype=torch.int64))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            (main + aux).backward()
        counts = {event.key: event.count for event in profile.key_averages()}
        calls[mode] = counts.get("aten::_convolution", 0)  # below what the checkpoint intercepts
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    blocks = [module for stage in stages for module in stage.modules() if isinstance(module, nn.Conv2d)]
    widening = sum(module.out_channels > module.in_channels for module in blocks)
    assert (calls["none"], calls["selective"]) == (0, widening)
    assert calls["full"] > 2 * widening > 0


def test_evaluation_and_refusals() -> None:
    model = PSPNet(layers=18, classes=3, pretrained=False, recompute="full").eval()
    assert model(torch.randn(1, 3, 33, 33)).shape == (1, 3, 33, 33)
    with pytest.raises(ValueError, match="recompute must be one of none, selective, full"):
        PSPNet(layers=18, classes=3, pretrained=False, recompute="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs residual blocks"):
        PSPNet(backbone="timm/test_resnet", classes=3, pretrained=False, recompute="full")


@pytest.mark.parametrize("frozen", [("backbone",), ("layer0", "layer1")])
def test_frozen_modules_stay(frozen: tuple[str, ...]) -> None:
    model = PSPNet(layers=18, classes=3, pretrained=False, recompute="selective")
    model.freeze(*frozen)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, torch.randn(2, 3, 33, 33), torch.zeros(2, 33, 33, dtype=torch.int64))
    optimizer.step()
    changed = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"ppm", "cls", "aux"} | (set() if frozen == ("backbone",) else {"layer2", "layer3", "layer4"})
    with pytest.raises(ValueError, match="'layer9' is no part of the network; choose from backbone, layer0"):
        model.freeze("layer9")

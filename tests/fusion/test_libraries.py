"""Unmodified models of transformers, segmentation_models.pytorch and torchvision: values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from heads import accelerated, fused_operators
from models import EXPECTED, LIBRARIES, MODELS, build, data, require_library_of, training_step
from pairs import Recorder

import pspnet_fast

# What must be fused in a training step besides its loss.
CONVOLUTIONS = {
    "transformers-segformer",
    "transformers-upernet-convnext",
    "transformers-upernet-swin",
    "transformers-beit",
    "transformers-data2vec",
    "segmentation_models_pytorch-segformer",
    "segmentation_models_pytorch-pspnet",
    "segmentation_models_pytorch-upernet",
    "torchvision-lraspp",
    "plain-pspnet",
}
# Its decoder ends at the image's size: there is nothing to fuse, and the results are equal.
NOTHING = {"segmentation_models_pytorch-unet"}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3}


def test_expected_libraries_exist():
    assert LIBRARIES >= EXPECTED, "PSPNET_FAST_EXPECT_LIBRARIES names a library that no test needs"


def run(name, model, dtype):
    x, target = data(dtype)
    loss, logits = training_step(name, model, x, target)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), logits.detach() + 0, gradients, dict(model.named_buffers())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_training_step(name, dtype, training):
    require_library_of(name)
    model = build(name).to(dtype).train(training)
    other = accelerated(model)
    loss, logits, gradients, buffers = run(name, model, dtype)
    found = run(name, other, dtype)
    rtol = TOLERANCES[dtype]
    torch.testing.assert_close((*found[:2], found[3]), (loss, logits, buffers), rtol=rtol, atol=rtol)
    assert found[2].keys() == gradients.keys()
    for key, gradient in gradients.items():
        scale = max(gradient.norm().item(), 1e-2 * max(g.norm().item() for g in gradients.values()))
        assert (found[2][key] - gradient).norm() <= rtol * scale, key

    fused = {operator for operator, _ in fused_operators(other)}
    assert ("cross_entropy" in fused) == (name not in NOTHING)
    assert ("conv2d" in fused) or name not in CONVOLUTIONS, str(other.fusion_report())


def logits_of(out):
    if hasattr(out, "logits"):
        return out.logits
    return out["out"] if isinstance(out, dict) else out


@pytest.mark.parametrize("name", MODELS)
def test_prediction(name):
    require_library_of(name)
    model = build(name).eval()
    x, _ = data(torch.float32)

    def upsampled(m):
        return F.interpolate(logits_of(m(x)), x.shape[2:], mode="bilinear", align_corners=False)

    with torch.no_grad():
        stock = upsampled(model)
        with pspnet_fast.fuse() as block:
            labels = upsampled(pspnet_fast.accelerate(model)).argmax(1)
    # The best class, or one that ties with it to rounding.
    torch.testing.assert_close(stock.gather(1, labels.unsqueeze(1)), stock.amax(1, keepdim=True), rtol=1e-4, atol=1e-4)
    fused = {e.operator for report in (block.report, model.fusion_report()) for e in report if e.fused}
    assert ("argmax" in fused) == (name not in NOTHING)


# transformers' hooks take a lock, which Dynamo breaks the graph at, accelerated or not.
COMPILED = {"transformers-segformer": False, "torchvision-lraspp": True}


@pytest.mark.parametrize(("name", "fullgraph"), COMPILED.items(), ids=COMPILED)
def test_compiled_training_step(name, fullgraph):
    require_library_of(name)
    x, target = data(torch.float32)
    model = build(name)
    other = accelerated(model)
    expected, _ = training_step(name, model, x, target)
    expected.backward()

    def step(x, target):
        with pspnet_fast.fuse():
            return training_step(name, other, x, target)[0]

    torch._dynamo.reset()
    backend = Recorder(pspnet_fast.compile_options())
    loss = torch.compile(step, backend=backend, fullgraph=fullgraph)(x, target)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)
    assert backend.has("pspnet_fast.upsample_cross_entropy")
    # The head, which convolves upsampled maps, stands behind the break.
    assert fullgraph or backend.has("pspnet_fast.pyramid_conv")

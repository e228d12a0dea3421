"""The ways in which training scripts run a network: mixed precision, compiled, checkpointed, distributed, frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from network_pairs import Step, assert_near, assert_same_step, assert_trains_alike, make_batch, make_pair, training_step
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pspnet_fast.nn import PSPNet
from pspnet_fast.nn.resnet import RECOMPUTE


def test_autocast_bfloat16() -> None:
    """At most twice the stock operators' own error against float32, plus 1e-2."""
    fast, plain = make_pair(torch.float32)
    x, y = make_batch(dtype=torch.float32)
    exact = training_step(plain, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own, stock = (training_step(model, x, y) for model in (fast, plain))
        logits = fast.eval()(x)
    assert own.main.dtype == own.aux.dtype == torch.float32
    assert logits.isfinite().all()
    for name in ("main", "aux"):
        error, stock_error = ((getattr(step, name) - getattr(exact, name)).abs() for step in (own, stock))
        assert error <= 2 * stock_error + 1e-2, name
    assert _distance(own, exact) <= 2 * _distance(stock, exact) + 1e-2
    assert all(gradient.dtype == torch.float32 for gradient in own.gradients.values())


def _distance(step: Step, exact: Step) -> float:
    names = ("cls.0.weight", "cls.4.weight", "aux.0.weight", "aux.4.weight")
    actual, expected = (torch.cat([s.gradients[name].flatten() for name in names]) for s in (step, exact))
    return ((actual - expected).norm() / expected.norm()).item()


class WideOutput(nn.BatchNorm2d):
    """A normalisation that answers in float32 under autocast, as frozen ones do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def test_autocast_with_levels_of_another_dtype() -> None:
    fast, plain = make_pair(torch.float32)
    x = make_batch(dtype=torch.float32)[0]
    for net in (fast, plain):
        for level in net.ppm.features:
            wide = WideOutput(128)
            wide.load_state_dict(level[2].state_dict())
            level[2] = wide
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_near(fast.eval()(x).float(), plain.eval()(x).float(), 0.05)


def test_compile_fullgraph() -> None:
    fast, plain = make_pair(torch.float32, dropout=0.0)
    x, y = make_batch(batch=2, size=(33, 25), dtype=torch.float32)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    step, expected = training_step(compiled, x, y), training_step(plain, x, y)
    assert_near(step.main, expected.main, 1e-4)
    assert_near(step.aux, expected.aux, 1e-4)
    for name in ("cls.0.weight", "ppm.features.3.1.weight", "layer0.0.weight"):
        assert_near(step.gradients[f"_orig_mod.{name}"], expected.gradients[name], 1e-2, name)
    assert_near(compiled.eval()(x), plain.eval()(x), 1e-4)


class HeadsOnly(PSPNet):
    def __init__(self) -> None:
        super().__init__(layers=18, classes=3, pretrained=False)
        for name in ("layer0", "layer1", "layer2", "layer3", "layer4", "aux"):
            delattr(self, name)

    def forward(self, stage4: Tensor) -> Tensor:
        return self._main_logits(stage4)


@pytest.mark.parametrize(
    ("backend", "hooked"), [("inductor", False), ("aot_eager", False), ("aot_eager", True)], ids=str
)
def test_compile_fullgraph_of_the_heads(backend: str, hooked: bool) -> None:
    net = HeadsOnly().eval()
    if hooked:
        torch.compiler.reset()  # what was compiled for another network is not guarded against hooks in torch 2.11
        net.ppm.register_forward_hook(lambda module, inputs, output: 0.5 * output)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for size in ((7, 8), (9, 6))[: 1 if backend == "inductor" else 2]:
        stage4 = torch.randn(2, 512, *size)
        with torch.no_grad():
            assert_near(compiled(stage4), net(stage4), 1e-5)


@pytest.mark.parametrize("part", ["whole", "stages"])
def test_activation_checkpointing(part: str) -> None:
    fast, plain = make_pair()
    x, y = make_batch()

    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Tensor) -> object:
            return checkpoint(self.inner, *inputs, use_reentrant=False)

    expected = training_step(plain, x, y)
    if part == "stages":
        fast.layer3, fast.layer4, fast.cls[4] = (Checkpointed(m) for m in (fast.layer3, fast.layer4, fast.cls[4]))
        step = training_step(fast, x, y)
    else:
        step = training_step(Checkpointed(fast), x, y)
    gradients = {name.replace("inner.", ""): gradient for name, gradient in step.gradients.items()}
    assert_same_step(step._replace(gradients=gradients), expected)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel() -> None:
    fast, plain = make_pair()
    x, y = make_batch()
    step, expected = training_step(DistributedDataParallel(fast), x, y), training_step(plain, x, y)
    gradients = {name.removeprefix("module."): gradient for name, gradient in step.gradients.items()}
    assert_same_step(step._replace(gradients=gradients), expected)
    dist.all_reduce(step.aux)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("processes", [1, 2])
def test_sync_batchnorm_takes_one_image_a_process(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: processes)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(make_pair()[0]).train()
    if processes == 1:
        with pytest.raises(ValueError, match="batch of at least 2"):
            net.ppm.check_batch(1)
    else:
        net.ppm.check_batch(1)


def test_replicas_share_no_state() -> None:
    """DataParallel runs shallow copies of the modules with tensors in the place of parameters."""
    fast, _ = make_pair()
    x, y = make_batch()
    expected = training_step(fast, x, y)
    torch.manual_seed(7)
    replica = _replicate(fast)
    labels, main, aux = replica(x, y)
    gradient = torch.autograd.grad(main + 0.4 * aux, fast.cls[0].weight)[0]
    assert_near(gradient, expected.gradients["cls.0.weight"], 1e-10)
    torch.testing.assert_close(labels, expected.labels, rtol=0, atol=0)


def _replicate(module: nn.Module) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` does to a module, without its need for GPUs."""
    copies = {m: m._replicate_for_data_parallel() for m in module.modules()}
    for original, replica in copies.items():
        for name, child in original._modules.items():
            replica._modules[name] = None if child is None else copies[child]
        for name, parameter in original._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.view_as(parameter))
        replica._buffers = dict(original._buffers)
    return copies[module]


def test_bfloat16_model_in_evaluation() -> None:
    fast, plain = make_pair(torch.bfloat16)
    x = make_batch(dtype=torch.bfloat16)[0]
    logits = fast.eval()(x)
    assert logits.dtype == torch.bfloat16
    exact = plain.eval().float()(x.float())
    stock_error = (plain.bfloat16()(x).float() - exact).norm() / exact.norm()
    assert (logits.float() - exact).norm() / exact.norm() <= 2 * stock_error + 1e-2


def test_frozen_backbone() -> None:
    """Parameters that need no gradient get none, and the input's is not computed."""
    fast, plain = make_pair()
    for net in (fast, plain):
        for name in ("layer0", "layer1", "layer2", "layer3", "layer4"):
            net.get_submodule(name).requires_grad_(False)
        net.cls[0].requires_grad_(False)
    assert_trains_alike(fast, plain)
    assert fast.layer0[0].weight.grad is None
    assert fast.cls[0].weight.grad is None


@pytest.mark.parametrize("backbone", [None, "torchvision/resnet50"])
def test_recomputed_steps_equal_the_plain_one(backbone: str | None) -> None:
    plain = PSPNet(layers=18, classes=3, pretrained=False, backbone=backbone)
    others = {mode: copy.deepcopy(plain) for mode in RECOMPUTE[1:]}
    x, y = make_batch(batch=2, size=(33, 41), dtype=torch.float32)
    expected = training_step(plain, x, y)
    buffers = dict(plain.named_buffers())
    assert int(buffers["layer2.0.bn1.num_batches_tracked"]) == 1
    for mode, model in others.items():
        model.recompute = mode
        calls: list[nn.Module] = []
        model.layer3[0].conv1.register_forward_hook(lambda module, *_, calls=calls: calls.append(module))
        assert_same_step(training_step(model, x, y), expected, tolerance=0)
        torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
        assert len(calls) == 2  # the module is called again; whether it computes again is the mode's


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


def test_recompute_in_evaluation_and_refusals() -> None:
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
    _, main, aux = model(torch.randn(2, 3, 33, 33), torch.zeros(2, 33, 33, dtype=torch.int64))
    (main + aux).backward()
    optimizer.step()
    changed = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"ppm", "cls", "aux"} | (set() if frozen == ("backbone",) else {"layer2", "layer3", "layer4"})
    with pytest.raises(ValueError, match="'layer9' is no part of the network; choose from backbone, layer0"):
        model.freeze("layer9")

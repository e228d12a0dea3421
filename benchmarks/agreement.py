"""Do fused and plain operators train alike? The same seed on both, step by step, loss beside loss.

    python -m benchmarks.agreement --root CAMVID --steps 50                 float64 and float32 (about 10 minutes)

The plain network is the stock chain of tests/plain_pspnet.py. Training amplifies rounding: a third network, the
control, is the plain one from weights changed in their last digit, and drifts too. In float64 rounding is too small to
be amplified to anything within so few steps, so there the losses themselves must agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import pspnet_fast
from benchmarks.measure import save
from pspnet_fast.data import open_dataset, train_transform
from pspnet_fast.engine.optim import PolySchedule
from pspnet_fast.engine.sampling import StepSampler, train_loader
from tests.plain_pspnet import PlainPSPNet

AUX_WEIGHT = 0.4


class Road:
    """One network in training."""

    def __init__(self, net: nn.Module, options: argparse.Namespace, dtype: torch.dtype) -> None:
        self.dtype, self.device = dtype, "cuda" if torch.cuda.is_available() else "cpu"
        self.net = net.to(self.device, dtype).train()
        self.optimizer = torch.optim.SGD(net.parameters(), options.lr, momentum=0.9, weight_decay=1e-4)
        for group in self.optimizer.param_groups:
            group["base_lr"] = options.lr
        self.schedule = PolySchedule(warmup_steps=options.warmup)
        self.losses: list[float] = []

    def step(self, x: Tensor, y: Tensor, progress: float) -> None:
        """One step; dropout draws what it draws for every road."""
        index = len(self.losses)
        torch.manual_seed(index)
        self.schedule.apply(self.optimizer, index, progress)
        self.optimizer.zero_grad()
        _, main, aux = self.net(x.to(self.device, self.dtype), y.to(self.device))
        loss = main + AUX_WEIGHT * aux
        loss.backward()
        self.optimizer.step()
        self.losses.append(float(loss.detach()))


def perturbed(net: nn.Module, relative: float) -> nn.Module:
    """``net`` with every weight changed by about ``relative`` of its value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + relative * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return net


def batches(options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """The training crops of the real loader."""
    dataset = open_dataset(options.data, options.root, "train", transform=train_transform(options.crop))
    sampler = StepSampler(len(dataset), options.batch, seed=0, stop=options.steps)
    yield from train_loader(dataset, sampler, workers=0, pin=False)


def compare(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Train all roads in lockstep; a result row."""
    classes = open_dataset(options.data, options.root, "train").info.num_classes
    torch.manual_seed(0)
    plain = PlainPSPNet(layers=options.layers, classes=classes).to(dtype)
    roads = {}
    for name in ("plain", "fused", "control"):
        net: nn.Module = PlainPSPNet(layers=options.layers, classes=classes)
        if name == "fused":
            net = pspnet_fast.PSPNet(layers=options.layers, classes=classes, pretrained=False)
        net = net.to(dtype)
        net.load_state_dict(plain.state_dict())  # on the CPU, where the control's noise is drawn
        # The last digit of the dtype: what another order of summation changes too.
        roads[name] = Road(perturbed(net, torch.finfo(dtype).eps) if name == "control" else net, options, dtype)

    for index, (x, y) in enumerate(batches(options)):
        for road in roads.values():
            road.step(x, y.long(), index / options.steps)
        plain_loss, *others = (road.losses[-1] for road in roads.values())
        print(
            f"{dtype} step {index + 1:3d}  plain {plain_loss:.10f}  fused {others[0] - plain_loss:+.2e}  "
            f"control {others[1] - plain_loss:+.2e}",
            flush=True,
        )
    differences = {
        name: max(abs(a - b) for a, b in zip(road.losses, roads["plain"].losses, strict=True))
        for name, road in roads.items()
        if name != "plain"
    }
    labels = {key: getattr(options, key) for key in ("data", "layers", "crop", "batch", "lr", "steps")}
    losses = {name: road.losses for name, road in roads.items()}
    return {**labels, "dtype": str(dtype), "largest_difference": differences, "loss": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--crop", type=int, default=129)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()

    rows = [compare(options, dtype) for dtype in (torch.float64, torch.float32)]
    for row in rows:
        print(f"{row['dtype']}: largest difference over {row['steps']} steps {row['largest_difference']}")
    if not options.no_save:
        print(save(f"agreement_{options.data}", rows))


if __name__ == "__main__":
    main()

"""Do fused and plain operators train alike? The same seed on both, step by step: loss beside loss, mIoU beside mIoU.

    python -m benchmarks.agreement --root CAMVID              a folder in CamVid's format
    python -m benchmarks.agreement                            street scenes drawn for it, no data needed
    python -m benchmarks.agreement --root CAMVID --steps 2 --training-steps 4 --no-save      a look

The plain network is the stock chain of tests/plain_pspnet.py. Training amplifies rounding: a third network, the
control, is the plain one from weights changed in their last digit, and drifts too. In float64 rounding is too small to
be amplified to anything within ``--steps``, so there the losses themselves must agree; in float32, over
``--training-steps``, the mIoU on validation images tells whether one learns less than the other. About 9 minutes on two
cores, half of it in float64.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import pspnet_fast
from benchmarks.store import ResultFile
from pspnet_fast.data import SegmentationDataset, eval_transform, open_dataset, train_transform, write_scenes
from pspnet_fast.engine.metrics import ConfusionMatrix, Metrics
from pspnet_fast.engine.optim import PolySchedule
from pspnet_fast.engine.sampling import StepSampler, train_loader
from tests.plain_pspnet import PlainPSPNet

AUX_WEIGHT = 0.4
SCENES = {"train": 160, "val": 24, "size": (144, 192)}


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

    @torch.inference_mode()
    def miou(self, validation: Validation) -> float:
        """Mean intersection over union on the validation images, each at its full size."""
        matrix = ConfusionMatrix(validation.dataset.info.num_classes, self.device)
        self.net.eval()
        for image, label in Subset(validation.dataset, validation.indices):
            x = image[None].to(self.device, self.dtype)
            fused = isinstance(self.net, pspnet_fast.PSPNet)
            prediction = self.net.predict(x) if fused else self.net(x).argmax(1)  # type: ignore[operator]
            matrix.update(prediction, label[None].to(self.device))
        self.net.train()
        return Metrics(matrix.counts.cpu(), validation.dataset.info.classes).miou


@dataclass(frozen=True)
class Validation:
    """Images at even distances through the validation split, looked at after ``every`` steps and after the last."""

    dataset: SegmentationDataset
    indices: Sequence[int]
    every: int

    @classmethod
    def of(cls, options: argparse.Namespace, every: int) -> Validation:
        dataset = open_dataset(options.data, options.root, "val", transform=eval_transform())
        count = min(options.val_images, len(dataset))
        return cls(dataset, [index * len(dataset) // count for index in range(count)], every)


def perturbed(net: nn.Module, relative: float) -> nn.Module:
    """``net`` with every weight changed by about ``relative`` of its value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + relative * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return net


def batches(options: argparse.Namespace, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The training crops of the real loader."""
    dataset = open_dataset(options.data, options.root, "train", transform=train_transform(options.crop))
    sampler = StepSampler(len(dataset), options.batch, seed=0, stop=steps)
    yield from train_loader(dataset, sampler, workers=0, pin=False)


def roads_of(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Road]:
    """Plain, fused and control, from the same weights."""
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
    return roads


def compare(options: argparse.Namespace, dtype: torch.dtype, validation: Validation | None = None) -> dict[str, Any]:
    """Train all roads in lockstep for ``options.steps``; a result row, with mIoU where there is a ``validation``."""
    roads = roads_of(options, dtype)
    miou: dict[str, list[Any]] = {"steps": [], **{name: [] for name in roads}}
    for index, (x, y) in enumerate(batches(options, options.steps), start=1):
        for road in roads.values():
            road.step(x, y.long(), (index - 1) / options.steps)
        print(f"{dtype} step {index:3d}  {beside({name: road.losses[-1] for name, road in roads.items()})}", flush=True)
        if validation and (index % validation.every == 0 or index == options.steps):
            miou["steps"].append(index)
            for name, road in roads.items():
                miou[name].append(road.miou(validation))
            print(f"{dtype} mIoU      {beside({name: miou[name][-1] for name in roads})}", flush=True)

    differences = {
        name: max(abs(a - b) for a, b in zip(road.losses, roads["plain"].losses, strict=True))
        for name, road in roads.items()
        if name != "plain"
    }
    labels = {key: getattr(options, key) for key in ("data", "layers", "crop", "batch", "lr", "steps")}
    losses = {name: road.losses for name, road in roads.items()}
    row = {**labels, "dtype": str(dtype), "largest_difference": differences, "loss": losses}
    return {**row, "val_images": len(validation.indices), "miou": miou} if validation else row


def beside(values: Mapping[str, float]) -> str:
    """The plain road's value, and by how much the others differ from it."""
    plain = values["plain"]
    others = (f"{name} {value - plain:+.2e}" for name, value in values.items() if name != "plain")
    return "  ".join([f"plain {plain:.10f}", *others])


@contextmanager
def data_root(options: argparse.Namespace) -> Iterator[Path]:
    """The data set's folder: the one given, or scenes drawn for as long as they are needed."""
    if options.root is not None:
        yield options.root
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"drawing {SCENES['train']} + {SCENES['val']} street scenes", flush=True)
        yield write_scenes(Path(folder) / "scenes", **SCENES)  # type: ignore[arg-type]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of the data set; without it scenes are drawn")
    parser.add_argument("--data", help="its format; camvid, or scenes where there is no --root")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--crop", type=int, default=129)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--steps", type=int, default=15, help="in float64")
    parser.add_argument("--training-steps", type=int, default=200, help="in float32")
    parser.add_argument("--validate-every", type=int, default=50, help="steps in float32; in float64 at the end alone")
    parser.add_argument("--val-images", type=int, default=25, help="at most; at even distances through the split")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args(arguments)
    if options.root is None and options.data not in (None, "scenes"):
        parser.error(f"--data {options.data} needs its folder: --root")
    options.data = options.data or ("scenes" if options.root is None else "camvid")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    file = ResultFile(None if options.no_save else f"agreement_{options.data}", lambda row: row["dtype"])
    runs = {
        torch.float64: (options.steps, options.steps),
        torch.float32: (options.training_steps, options.validate_every),
    }
    with data_root(options) as root:
        for dtype, (steps, every) in runs.items():
            settings = argparse.Namespace(**{**vars(options), "root": root, "steps": steps})
            file.add(compare(settings, dtype, Validation.of(settings, every)))
    for row in file.rows:
        last = {name: values[-1] for name, values in row["miou"].items() if name != "steps"}
        print(f"{row['dtype']}: largest difference over {row['steps']} steps {row['largest_difference']}, mIoU {last}")
    if file.path is not None:
        print(file.path)


if __name__ == "__main__":
    main()

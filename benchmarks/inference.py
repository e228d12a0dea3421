"""Inference in PyTorch: one image to labels, and evaluation over scales and mirror images, beside how others do it.

    OMP_NUM_THREADS=1 python -m benchmarks.inference network --size 473x473
    OMP_NUM_THREADS=1 python -m benchmarks.inference scales --classes 150

The variants run in turn in one process; medians. Memory is the peak of tensors alive, without weights and image.
Labels are compared with the first variant's.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.case import Place
from benchmarks.network import Setting, network
from benchmarks.peers import EAGER, OURS
from pspnet_fast import PSPNet
from pspnet_fast.engine import EvalConfig
from pspnet_fast.engine.inference import predict_labels
from pspnet_fast.machine import describe_machine

Labels = Callable[[], Tensor]
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def networks(size: tuple[int, int], dtype: torch.dtype) -> dict[str, Labels]:
    """Labels of one image by the stock network, by ours, and by ours optimized for inference; each compiled, too."""
    setting = Setting(50, 19, 1, size, Place(dtype=dtype))
    stock, ours = (_with_statistics(network(peer, setting).eval()) for peer in (EAGER, OURS))
    assert isinstance(ours, PSPNet)
    optimized = ours.optimize_for_inference()
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    last = x.contiguous(memory_format=torch.channels_last)
    ours = ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    functions: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "stock, eager": (lambda image: stock(image).argmax(1), x),
        "stock, torch.compile": (torch.compile(lambda image: stock(image).argmax(1), dynamic=False), x),
        "PSPNet.predict": (ours.predict, last),
        "optimized": (optimized.predict, x),
        "optimized, torch.compile": (torch.compile(optimized.predict, dynamic=False), last),
    }

    def call(function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return function(image)

    return {name: lambda pair=pair: call(*pair) for name, pair in functions.items()}  # type: ignore[misc]


def _with_statistics(net: nn.Module) -> nn.Module:
    """Statistics as after a training, so that normalisation does something."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None and module.running_mean is not None:
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
    return net


class LowResolution(PSPNet):
    """Logits from a product with the image, so that what follows the network is all that takes time and memory."""

    def __init__(self, classes: int) -> None:
        super().__init__(18, classes=classes, pretrained=False)
        self.mix = torch.randn(classes, 3, generator=torch.Generator().manual_seed(0))

    def low_resolution_logits(self, x: Tensor) -> Tensor:
        height, width = ((n - 1) // 8 + 1 for n in x.shape[-2:])
        return torch.einsum("kc,ncij->nkij", 4 * self.mix, F.adaptive_avg_pool2d(x, (height, width)))


def evaluations(size: tuple[int, int], classes: int) -> dict[str, Labels]:
    """Labels over six scales and mirror images behind a network that costs nothing."""
    net = LowResolution(classes).eval()
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    images = [F.interpolate(image, [round(n * s) for n in size], mode="bilinear") for s in SCALES]

    def semseg() -> Tensor:
        """Softmax at each scale's full resolution, resized and summed."""
        total = torch.zeros(1, classes, *size)
        for scaled in images:
            both = net(torch.cat([scaled, scaled.flip(3)])).softmax(1)
            mean = (both[:1] + both[1:].flip(3)) / 2
            total += F.interpolate(mean, size, mode="bilinear", align_corners=False)
        return total.argmax(1)

    def mmseg() -> Tensor:
        """Low-resolution logits resized to each scale's image and then to the size, softmax there; the mean of all."""
        probabilities = []
        for scaled in images:
            for mirrored in (False, True):
                logits = F.interpolate(net(scaled.flip(3) if mirrored else scaled), size, mode="bilinear")
                found = logits.softmax(1)
                probabilities.append(found.flip(3) if mirrored else found)
        return torch.stack(probabilities).mean(0).argmax(1)

    options = EvalConfig(scales=SCALES, flip=True)
    return {"semseg": semseg, "mmsegmentation": mmseg, "pspnet_fast": lambda: predict_labels(net, image, options)}


class LiveBytes(TorchDispatchMode):
    """The peak size of the tensors that operators make, of those that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
                self.now += 0 if self.holders.get(address) else size
                self.holders[address] = self.holders.get(address, 0) + 1
                weakref.finalize(tensor, self._release, address, size)
        self.peak = max(self.peak, self.now)
        return result

    def _release(self, address: int, size: int) -> None:
        self.holders[address] -= 1
        self.now -= 0 if self.holders[address] else size


@torch.inference_mode()
def measure(variants: dict[str, Labels], rounds: int, memory: bool) -> None:
    """Prints a row for each variant."""
    first, times = None, {name: list[float]() for name in variants}
    agreement = {}
    for name, labels in variants.items():
        found = labels()
        first = found if first is None else first
        agreement[name] = (found == first).double().mean().item()
    for _ in range(rounds):
        for name, labels in variants.items():
            begin = time.perf_counter()
            labels()
            times[name].append(time.perf_counter() - begin)
    print("| variant | ms | labels as the first's |" + (" peak MB |" if memory else ""))
    for name, labels in variants.items():
        row = f"| {name} | {1e3 * statistics.median(times[name]):.0f} | {100 * agreement[name]:.3f} % |"
        if memory:
            with LiveBytes() as live:
                labels()
            row += f" {live.peak / 1e6:.1f} |"
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("network", "scales"))
    parser.add_argument("--size", default="473x473")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    network_only = options.what == "network"
    variants = networks((height, width), dtype) if network_only else evaluations((height, width), options.classes)
    print({**describe_machine(None), "threads": torch.get_num_threads(), "size": options.size, "dtype": str(dtype)})
    measure(variants, options.rounds, memory=not network_only)


if __name__ == "__main__":
    main()

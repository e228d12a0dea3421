"""PSPNet50's training step: fused, stock eager and torch.compile; time interleaved, peak memory in fresh processes.

python -m benchmarks.training_step                     the table of the README (about 15 minutes on two cores)
python -m benchmarks.training_step --size 97 --rounds 1 --no-save      a look
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import pspnet_fast
from benchmarks.measure import as_row, in_fresh_process, interleaved, peak_bytes, save
from tests.plain_pspnet import PlainPSPNet

AUX_WEIGHT = 0.4
VARIANTS = ("eager", "compile", "pspnet_fast")


def build(variant: str, options: argparse.Namespace, classes: int) -> Callable[[], object]:
    """A function that makes one training step (forward, loss, backward) of a variant; same weights, images, labels."""
    torch.manual_seed(0)
    plain = PlainPSPNet(layers=options.layers, classes=classes)
    net: nn.Module = plain
    if variant == "pspnet_fast":
        net = pspnet_fast.PSPNet(layers=options.layers, classes=classes, pretrained=False)
        net.load_state_dict(plain.state_dict())
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    call = torch.compile(net) if variant == "compile" else net

    x = torch.randn(options.batch, 3, options.size, options.size, device=device).contiguous(memory_format=layout)
    y = torch.randint(0, classes, (options.batch, options.size, options.size), device=device)
    y[torch.rand(y.shape, device=device) < 0.1] = 255

    def step() -> float:
        net.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=options.bf16):
            _, main, aux = call(x, y)
            loss = main + AUX_WEIGHT * aux
        loss.backward()
        return float(loss.detach())

    return step


def peak_megabytes(variant: str, options: argparse.Namespace, classes: int) -> float:
    """Peak memory of one step over model, images and labels, in a fresh process."""
    arguments = ["--peak", variant, "--classes", str(classes), "--size", str(options.size)]
    arguments += ["--batch", str(options.batch), "--layers", str(options.layers)]
    arguments += ["--channels-last"] * options.channels_last + ["--bf16"] * options.bf16
    return round(in_fresh_process("benchmarks.training_step", *arguments) / 2**20, 1)


def measure(options: argparse.Namespace, classes: int) -> dict[str, Any]:
    """One row of the results."""
    steps = {name: build(name, options, classes) for name in options.variants}
    timings = interleaved(steps, options.rounds)
    losses = {name: step() for name, step in steps.items()}
    del steps
    peaks = {name: peak_megabytes(name, options, classes) for name in options.variants}
    labels = {key: getattr(options, key) for key in ("layers", "batch", "size", "channels_last", "bf16")}
    return as_row(timings, **labels, classes=classes, peak_megabytes=peaks, loss=losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--classes", type=int, nargs="+", default=[19, 150])
    parser.add_argument("--size", type=int, default=473)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak_bytes(lambda: build(options.peak, options, options.classes[0]))))
        return

    rows = []
    for classes in options.classes:
        row = measure(options, classes)
        rows.append(row)
        ours = row["milliseconds"]["pspnet_fast"]["median"]
        for name, timing in row["milliseconds"].items():
            print(
                f"{classes:>4} classes  {name:<12} {timing['median']:>9.1f} ms "
                f"({timing['p20']:.1f} to {timing['p80']:.1f})  {timing['median'] / ours:5.2f}x  "
                f"peak {row['peak_megabytes'][name]:>8.1f} MB  loss {row['loss'][name]:.6f}",
                flush=True,
            )
    if not options.no_save:
        layout = "channels_last" if options.channels_last else "nchw"
        precision = "bf16" if options.bf16 else "fp32"
        where = "gpu" if torch.cuda.is_available() else "cpu"
        print(save(f"training_step_{where}_r{options.layers}_{options.size}_{layout}_{precision}", rows))


if __name__ == "__main__":
    main()

"""Other libraries' models, unmodified: a training step with and without ``pspnet_fast.accelerate``.

    python -m benchmarks.accelerate                     # every model, 19 and 150 classes, 512x512, batch 2
    python -m benchmarks.accelerate --models segformer-b0 --classes 150 --rounds 5 --save table.json

Peers are the stock model, eager and under ``torch.compile`` with its loss. Weights are random. Time is taken in turn in
one process, peak memory in a new process for each variant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspnet_fast
from benchmarks.measure import in_new_process, interleaved, on_threads, peak_bytes, timing
from benchmarks.results import machine, write_json

VARIANTS = ("stock", "accelerate", "torch.compile")


def _transformers(name: str, classes: int, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=classes, **options)
    model: nn.Module = getattr(transformers, f"{name}ForSemanticSegmentation")(config)
    return model


def _upernet(classes: int) -> nn.Module:
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.ConvNextConfig(out_features=stages)
    return _transformers("UperNet", classes, backbone_config=backbone, auxiliary_in_channels=384)


def _beit(classes: int) -> nn.Module:
    sizes = {"image_size": 512, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    return _transformers("Beit", classes, out_indices=[3, 5, 7, 11], use_relative_position_bias=True, **sizes)


def _smp(name: str, encoder: str, classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    model: nn.Module = getattr(smp, name)(encoder, encoder_weights=None, classes=classes)
    return model


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision.models import segmentation

    model: nn.Module = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes)
    return model


B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "segformer-b0": lambda classes: _transformers("Segformer", classes),
    "segformer-b2": lambda classes: _transformers("Segformer", classes, **B2),
    "upernet-convnext": _upernet,
    "beit": _beit,
    "mobilevit": lambda classes: _transformers("MobileViT", classes, output_stride=16),
    "smp-segformer": lambda classes: _smp("Segformer", "mit_b0", classes),
    "smp-pspnet": lambda classes: _smp("PSPNet", "resnet50", classes),
    "smp-upernet": lambda classes: _smp("UPerNet", "resnet50", classes),
    "smp-deeplabv3plus": lambda classes: _smp("DeepLabV3Plus", "resnet50", classes),
    "lraspp": lambda classes: _torchvision("lraspp_mobilenet_v3_large", classes),
    "deeplabv3": lambda classes: _torchvision("deeplabv3_resnet50", classes),
    "fcn": lambda classes: _torchvision("fcn_resnet50", classes),
}


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The loss of the full-resolution logits, as each library's users compute it."""
    out = model(images)
    out = out["out"] if isinstance(out, dict) and "out" in out else getattr(out, "logits", out)
    if out.shape[2:] != labels.shape[1:]:
        out = F.interpolate(out, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(out, labels, ignore_index=255)


def training_step(name: str, classes: int, size: int, batch: int, variant: str) -> Callable[[], Tensor]:
    """Forward, loss and backward; returns the loss."""
    torch.manual_seed(0)
    model = MODELS[name](classes).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0  # so that the variants' losses can be compared
    images = torch.randn(batch, 3, size, size)
    labels = torch.randint(0, classes, (batch, size // 32, size // 32))
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    compute = torch.compile(loss_of) if variant == "torch.compile" else loss_of

    def step() -> Tensor:
        model.zero_grad()
        if variant == "accelerate":
            with pspnet_fast.fuse():
                loss = compute(model, images, labels)
        else:
            loss = compute(model, images, labels)
        loss.backward()
        return loss.detach()

    return step


def _peak(*case: Any) -> int:
    torch.set_num_threads(case[-1])
    return peak_bytes(lambda: training_step(*case[:-1]), "cpu")


def measure(name: str, classes: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the table."""
    steps = {v: training_step(name, classes, options.size, options.batch, v) for v in options.variants}
    losses = {v: step().item() for v, step in steps.items()}
    times = {v: timing(t) for v, t in interleaved(steps, options.rounds).items()}
    del steps
    threads = torch.get_num_threads()
    peaks = {v: in_new_process(_peak, name, classes, options.size, options.batch, v, threads) for v in options.variants}
    row = {"model": name, "classes": classes, "size": options.size, "batch": options.batch, "threads": threads}
    return {**row, "milliseconds": times, "peak_bytes": peaks, "loss": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--classes", nargs="+", type=int, default=[19, 150])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="all cores by default")
    parser.add_argument("--save", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    rows = []
    print("| model | classes | " + " | ".join(f"{v}, ms / MB" for v in options.variants) + " |")
    print("|---" * (2 + len(options.variants)) + "|")
    with on_threads(options.threads):
        for name in options.models:
            for classes in options.classes:
                row = measure(name, classes, options)
                rows.append(row)
                medians = [row["milliseconds"][v]["median"] for v in options.variants]
                peaks = [row["peak_bytes"][v] for v in options.variants]
                cells = [f"{t:.0f} / {peak / 1e6:.0f}" for t, peak in zip(medians, peaks, strict=True)]
                print(f"| {name} | {classes} | " + " | ".join(cells) + " |", flush=True)
                if options.save:
                    write_json(options.save, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()

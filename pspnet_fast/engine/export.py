"""The command that writes a trained network as a file for other runtimes; see docs/deploy.md."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pspnet_fast.deploy import OPSET, SUFFIXES, ExportError, Options, export_files

from .console import Checkpoint, Foreign, load_for_inference, say
from .datasets import dataset_info
from .errors import ConfigError, InferenceError
from .models import load_trained
from .outputs import OutputFolder


class Format(StrEnum):
    """The formats of :data:`pspnet_fast.deploy.SUFFIXES`, as typer's choices."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH_EXPORT = "torch-export"


def export(
    checkpoint: Checkpoint,
    to: Annotated[Format, typer.Option(help="The format.")] = Format.ONNX,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; default: next to the checkpoint.", show_default=False)
    ] = None,
    size: Annotated[str | None, typer.Option(help="HxW of the images, as in 512x1024; any size by default.")] = None,
    batch: Annotated[int | None, typer.Option(help="Number of images; any by default.", min=1)] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Give logits instead of labels.")] = False,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Take decoded images (uint8 [N, H, W, 3], RGB) and normalise inside.")
    ] = False,
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators.", min=OPSET)] = OPSET,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that export did not write; never the checkpoint.")
    ] = False,
    config: Foreign = None,
) -> None:
    """Write ONNX, OpenVINO or torch.export files, after comparing them with the network."""
    trained, changed = load_for_inference(checkpoint, config, [])
    if trained is None:
        trained = load_trained(checkpoint, config=changed, info=dataset_info(changed.data))
    options = Options(
        size=_size(size),
        batch=batch,
        labels=not logits,
        normalize=normalize,
        mean=trained.config.data.mean,
        std=trained.config.data.std,
        classes=trained.info.classes,
        palette=trained.info.palette,
    )
    main, *others = SUFFIXES[to]
    path = checkpoint.with_suffix(main) if out is None else out
    paths = [path, *(path.with_suffix(suffix) for suffix in others)]
    folder = OutputFolder(path.parent, overwrite=overwrite, command="export")
    folder.prepare(paths, [checkpoint])
    try:
        files, comparisons = export_files(trained.model, to, options, opset)
    except (ExportError, ImportError) as error:
        raise InferenceError(str(error)) from error
    for comparison in comparisons:
        say(f"compared with the network: {comparison}")
    for place, content in zip(paths, files, strict=True):
        folder.write(place, content)
    say(f"{', '.join(map(str, paths))}: {'labels' if options.labels else 'logits'} of {options.describe()}")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if found is None:
        raise ConfigError(f"--size {text}: give height and width in pixels, as in --size 512x1024")
    return int(found[1]), int(found[2])

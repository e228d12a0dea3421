"""The commands that take a trained network: evaluate, predict and export."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from pspnet_fast.data import DATASETS, DatasetInfo
from pspnet_fast.deploy import OPSET, SUFFIXES, ExportError, Options, export_files
from pspnet_fast.files import check_writable, replacing

from .config import TrainConfig
from .config_io import config_from_dict, load_config, parse_override
from .console import Amp, Backend, Data, Device, Overrides, Root, as_overrides, data_changes, listed, say, warn
from .datasets import open_split, read_options, read_split, require_labels
from .distributed import join_world, pick_device
from .errors import ConfigError, InferenceError
from .evaluate import evaluate as evaluate_model
from .inference import autocast, cpu_multiplies_bfloat16
from .models import TrainedModel, check_classes, load_trained
from .outputs import OutputFolder
from .predict import IncompleteError, predict_paths
from .train import chosen_backend

Scales = Annotated[str | None, typer.Option(help="Average over these scales, as in 0.5,1,1.5.")]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average with the mirrored image.")]
Crop = Annotated[int | None, typer.Option(help="Predict through a sliding window of this size; 0: the whole image.")]
Checkpoint = Annotated[
    Path, typer.Argument(help="A run's best.pt or last.pt, or semseg's (with --config).", show_default=False)
]
Foreign = Annotated[str | None, typer.Option(help="For a checkpoint that does not hold its configuration.")]

_OF_TRAINING = (
    *(f"data.{name}" for name in ("train_split", "train_list", "allow_absent_classes")),
    *(f"data.{name}" for name in ("crop", "scale", "rotate", "blur", "flip", "cat_max_ratio", "jitter", "transform")),
    *(f"model.{name}" for name in ("pretrained", "weights", "dropout")),
)


Format = StrEnum("Format", {"ONNX": "onnx", "OPENVINO": "openvino", "TORCH_EXPORT": "torch-export"})
"""The formats of :data:`pspnet_fast.deploy.SUFFIXES`, as typer's choices."""


def evaluate(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    root: Root = None,
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="Images to evaluate; the validation split by default.")] = None,
    scales: Scales = None,
    flip: Flip = None,
    crop: Crop = None,
    config: Foreign = None,
    device: Device = None,
    backend: Backend = None,
    amp: Amp = None,
    save: Annotated[Path | None, typer.Option("--json", help="Write metrics and confusion matrix here.")] = None,
) -> None:
    """Print mIoU, mAcc, pixel accuracy and the table of classes."""
    changes = list(overrides or []) + data_changes(data) + as_overrides({"data.root": root, "data.val_split": split})
    changes += inference_changes(scales, flip, crop, device, backend, amp)
    if save is not None:
        check_writable(save)
    trained, options = load_for_inference(checkpoint, config, changes)
    if split is not None and options.data.name == "list" and not options.data.val_fraction:
        raise ConfigError("--split has no effect with data.name=list: name the list file, with data.val_list=FILE")
    with join_world(options.run.device) as world, chosen_backend(options.run.backend):
        dataset = open_split(options.data, options.data.val_split, held_out=read_split(checkpoint.parent))
        check_classes(checkpoint, trained.info, dataset.info)
        if world.is_main:
            _warn_of_other_classes(checkpoint, trained.info, dataset.info)
        split = str(options.data.val_split)
        require_labels(dataset.info, split, len(dataset), sum(sample.label is not None for sample in dataset.samples))
        model = trained.model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        metrics = evaluate_model(
            model, dataset, options.eval, amp=options.run.amp, workers=options.data.workers, world=world
        )
        require_labels(dataset.info, split, len(dataset), int(metrics.confusion.sum()))
        if world.is_main:
            Console().print(metrics.table(f"{dataset.info.name} {split}, {len(dataset)} images"))
            if save is not None:
                with replacing(save) as file:
                    file.write(json.dumps(metrics.to_dict(), indent=1) + "\n")


def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.", show_default=False)],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="A run's best.pt.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Gets labels/, colors/ and overlay/.")] = Path("predictions"),
    scales: Scales = None,
    flip: Flip = None,
    crop: Crop = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in --out that predict did not write; never an input.")
    ] = False,
    with_legend: Annotated[
        bool, typer.Option("--legend", help="Append a strip to each overlay that names the classes in it.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write probabilities/NAME.npz: float16 [classes, H, W].")
    ] = False,
    ids: Annotated[
        bool, typer.Option("--ids", help="Also write ids/NAME.png: the data set's own label values, for its server.")
    ] = False,
    value_range: Annotated[
        str | None, typer.Option(help="Black and white of pictures with more than 8 bits a sample, as in 0,1.")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest picture to read.", min=1)] = None,
    config: Foreign = None,
    device: Device = None,
    backend: Backend = None,
    amp: Amp = None,
) -> None:
    """Write a label map, a colour map and an overlay of each picture."""
    changes = inference_changes(scales, flip, crop, device, backend, amp)
    changes += [] if value_range is None else [f"data.value_range=[{value_range}]"]
    changes += [] if max_pixels is None else [f"data.max_pixels={max_pixels}"]
    trained, options = load_for_inference(checkpoint, config, changes)
    with join_world(options.run.device) as world, chosen_backend(options.run.backend):
        trained.model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            written = predict_paths(
                trained,
                images,
                out,
                options.eval,
                amp=options.run.amp,
                progress=True,
                overwrite=overwrite,
                reading=read_options(options.data),
                with_legend=with_legend,
                probabilities=probabilities,
                ids=ids,
                world=world,
            )
        except IncompleteError:
            if world.is_main:
                raise
            raise typer.Exit(2) from None  # the main process reports for all
    if world.is_main:
        say(f"{len(written)} pictures: {out}/labels, {out}/colors, {out}/overlay")


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
    trained, _ = load_for_inference(checkpoint, config, [])
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


def load_for_inference(checkpoint: Path, config: str | None, changes: list[str]) -> tuple[TrainedModel, TrainConfig]:
    """The checkpoint's network, and its changed configuration or that of ``config``.

    Raises:
        ConfigError: a change that neither evaluate nor predict can follow.
    """
    for key, _ in map(parse_override, changes):
        section, name = key.split(".")
        if key in _OF_TRAINING or section == "optim" or (section == "run" and name not in ("device", "backend", "amp")):
            raise ConfigError(f"{key} is an option of training and has no effect here: leave it out")
        if section == "model" and config is None:
            raise ConfigError(f"{key} cannot be changed: {checkpoint} holds its network; leave it out")
    if config is not None:
        options = load_config(config, changes)
        own, public = options.data.own, DATASETS.get(options.data.name)
        info = own.info(options.data.name) if own is not None else public.info if public is not None else None
        trained = load_trained(checkpoint, config=options, info=info)
    else:
        trained = load_trained(checkpoint)
        options = config_from_dict(trained.config.to_dict(), changes)
    device = pick_device(options.run.device)
    autocast(device, options.run.amp)  # refuses what the device cannot do
    if device.type == "cpu" and options.run.amp == "bf16" and not cpu_multiplies_bfloat16():
        problem = "this CPU has neither AMX nor AVX512-BF16, so that run.amp=bf16 is slower than none"
        if any(parse_override(change)[0] == "run.amp" for change in changes):
            raise ConfigError(f"{problem}; leave --amp out, or say --amp none")
        warn(f"{problem}, which --amp none requests")
    return trained, options


def inference_changes(
    scales: str | None, flip: bool | None, crop: int | None, device: str | None, backend: str | None, amp: str | None
) -> list[str]:
    """Overrides from the options that evaluate and predict share."""
    options = {"eval.scales": scales and scales.split(","), "eval.flip": flip, "eval.crop": crop or None}
    run = {"run.device": device, "run.backend": backend, "run.amp": amp}
    return as_overrides(options | run) + (["eval.crop=null"] if crop == 0 else [])


def _warn_of_other_classes(checkpoint: Path, trained: DatasetInfo, data: DatasetInfo) -> None:
    pairs = zip(trained.classes, data.classes, strict=True)
    others = [f"{i} is {old!r} there, {new!r} here" for i, (old, new) in enumerate(pairs) if old != new]
    if others:
        warn(f"the classes of {checkpoint} ({trained.name}) have other names: {listed(others, 3, '; ')}")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if found is None:
        raise ConfigError(f"--size {text}: give height and width in pixels, as in --size 512x1024")
    return int(found[1]), int(found[2])

"""Loading weights: checkpoints of whole networks, and ImageNet weights of ResNets.

Files are read with ``weights_only=True``: a checkpoint cannot run code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pspnet_fast.files import read_torch_file

Source = str | Path | Mapping[str, Any]

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and DDP, torch.compile
_STEM = {"conv1": "0", "bn1": "1"}
_DEEP_STEM = {**_STEM, "conv2": "3", "bn2": "4", "conv3": "6", "bn3": "7"}
CLASS_LAYERS = ("cls.4.", "aux.4.")
_IMAGENET_CLASSIFIERS = ("fc.", "classifier.", "head.")  # torchvision's and semseg's, timm's


@dataclass(frozen=True)
class LoadReport:
    """What happened to every entry of a state dict, by key.

    Attributes:
        loaded: entries of the model that were set.
        missing: entries of the model that the source does not have.
        mismatched: entries of the model whose shape, or whose convolution's shape, differs in the source; left as they
            were.
        unused: entries of the source that the model has no place for.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every entry of the model was set."""
        return not self.missing and not self.mismatched

    @property
    def partial(self) -> bool:
        """Whether the source and the model differ in anything but the source's ImageNet classifier."""
        return not self.complete or not all(key.startswith(_IMAGENET_CLASSIFIERS) for key in self.unused)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} entries loaded"]
        for label, keys in (("missing", self.missing), ("of another shape", self.mismatched), ("unused", self.unused)):
            if keys:
                lines.append(f"{len(keys)} {label}: {_shortened(keys)}")
        return "; ".join(lines)


def load_checkpoint_weights(
    model: nn.Module, source: Source, *, skip: Sequence[str] = (), strict: bool = True
) -> LoadReport:
    """Load a checkpoint of a whole PSPNet: hszhao/semseg's, this package's, or a bare state dict.

    Args:
        model: a PSPNet, or one wrapped by DataParallel, DDP or torch.compile.
        source: a file, or a mapping with the state dict under "state_dict" or "model", or the state dict itself; with
            or without the prefix ``module.`` of DataParallel.
        skip: prefixes of keys to leave out: ``("cls.4.", "aux.4.")`` keeps the model's own class layers, for
            fine-tuning.
        strict: raise if an entry of the model is missing or of another shape, or an entry of the source has no place.
            The state of the criterion (``criterion.weight``) may be missing or left over.

    Raises:
        ValueError: other number of classes; and if ``strict``, other depth, or entries that do not fit.
        FileNotFoundError: there is no such file.
    """
    model = _unwrapped(model)
    state = {key: value for key, value in read_state_dict(source).items() if not key.startswith(tuple(skip))}
    target = model.state_dict()
    _check_classes(target, state)

    report = _compared(target, state)
    missing = tuple(key for key in report.missing if not key.startswith(("criterion.", *skip)))
    unused = tuple(key for key in report.unused if not key.startswith("criterion."))
    report = replace(report, missing=missing, unused=unused)
    if not report.loaded or (strict and not (report.complete and not report.unused)):
        raise ValueError(f"the checkpoint does not fit the model: {_cause(target, state)}{report}")
    model.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    return report


def initial_weights(pretrained: bool | str | Path, layers: int, backbone: str | None) -> Path | None:
    """The file that ``pretrained`` stands for, checked before anything is built."""
    if pretrained is False:
        return None
    file = f"resnet{layers}_v2.pth" if backbone is None else f"{backbone.rpartition('/')[2]}.pth"
    path = Path("initmodel") / file if pretrained is True else Path(pretrained)
    if not path.is_file():
        raise FileNotFoundError(
            f"no ImageNet weights at {path.absolute()}. Put them there, say where they are with pretrained=PATH, or "
            "start from random weights with pretrained=False."
        )
    return path


def load_imagenet_resnet(model: nn.Module, source: Source) -> LoadReport:
    """Load the weights of a classifier into the backbone of a PSPNet; the classifier's last layer is left out.

    Serves torchvision's ResNets (into ``backbone="resnet50"`` and the like), semseg's ``resnet50_v2.pth`` (into the
    deep stem) and timm's models (into the same ``backbone="timm/…"``). Torchvision's weights into the deep stem are a
    partial fit: the stem and the first convolutions of layer1, which read 128 channels there and not 64, stay as they
    were, each with its normalisation; the report names them.

    Raises:
        ValueError: nothing fits.
        FileNotFoundError: there is no such file.
    """
    model = _unwrapped(model)
    state, target = read_state_dict(source), model.state_dict()
    if hasattr(model, "backbone"):
        prefixes: tuple[str, ...] = ("backbone.",)
        state = {f"backbone.{key}": value for key, value in state.items()}
    else:
        prefixes = tuple(f"layer{i}." for i in range(5))
        state = _stage_names(target["layer0.0.weight"], state)

    target = {key: value for key, value in target.items() if key.startswith(prefixes)}
    report = _with_normalisations(_compared(target, state))
    report = replace(report, unused=tuple(key.removeprefix("backbone.") for key in report.unused))
    if not report.loaded:
        raise ValueError(f"no entry of these weights fits the backbone: {report}")
    model.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    return report


def read_state_dict(source: Source) -> dict[str, Tensor]:
    """The state dict in a file or mapping, on the CPU, without wrappers' prefixes.

    Raises:
        ValueError: the file is no checkpoint, is damaged, needs code to load, or holds no tensors.
        FileNotFoundError: there is no such file.
    """
    origin = "the mapping" if isinstance(source, Mapping) else str(source)
    content: Any = source if isinstance(source, Mapping) else read_torch_file(source)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"{origin} holds a {type(content).__name__}, not a state dict; save model.state_dict()")

    state = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            while key.startswith(_WRAPPERS):
                key = key.split(".", 1)[1]
            state[key] = value
    if not state:
        raise ValueError(f"{origin} holds no weights; its keys are: {_shortened(tuple(map(str, content)))}")
    return state


def _compared(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> LoadReport:
    fits = {key: state[key].shape == value.shape for key, value in target.items() if key in state}
    return LoadReport(
        loaded=tuple(key for key, fit in fits.items() if fit),
        # Checkpoints of PyTorch before 0.4.1 do not count batches; a missing count starts at 0 and changes no result.
        missing=tuple(k for k in target if k not in state and not k.endswith("num_batches_tracked")),
        mismatched=tuple(key for key, fit in fits.items() if not fit),
        unused=tuple(key for key in state if key not in target),
    )


def _with_normalisations(report: LoadReport) -> LoadReport:
    """Leave out normalisations behind convolutions that were not loaded: their statistics belong to other weights."""
    orphaned = []
    for key in (*report.mismatched, *report.missing):
        if key.endswith("downsample.0.weight"):
            orphaned.append(key.replace("downsample.0.weight", "downsample.1."))
        elif ".conv" in key and key.endswith(".weight"):
            orphaned.append(key.removesuffix("weight").replace(".conv", ".bn"))
    blocked = tuple(key for key in report.loaded if key.startswith(tuple(orphaned)))
    loaded = tuple(key for key in report.loaded if key not in blocked)
    return replace(report, loaded=loaded, mismatched=(*report.mismatched, *blocked))


def _stage_names(stem: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's own names (conv1, bn1, …) in those of the model's ``layer0``, whose first weight is ``stem``."""
    # The stem goes in as a whole or not at all: another first convolution makes the statistics behind it meaningless.
    same_stem = "conv1.weight" in state and state["conv1.weight"].shape == stem.shape
    places = (_DEEP_STEM if stem.shape[-1] == 3 else _STEM) if same_stem else {}

    renamed = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        renamed[f"layer0.{places[head]}.{rest}" if head in places else key] = value
    return renamed


def _check_classes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for prefix in CLASS_LAYERS:
        key = f"{prefix}weight"
        if key in state and key in own and state[key].shape[0] != own[key].shape[0]:
            theirs, ours = state[key].shape[0], own[key].shape[0]
            raise ValueError(
                f"the checkpoint has {theirs} classes, the model {ours} ({key}). Build PSPNet(classes={theirs}), or "
                f"keep the model's own class layers for fine-tuning with skip={CLASS_LAYERS}."
            )


def _cause(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The likeliest cause of a long list of keys, where there is one: another depth or normalisation."""

    def blocks(keys: Mapping[str, Tensor]) -> int:
        return len({key.split(".")[1] for key in keys if key.startswith("layer3.")})

    def norm(keys: Mapping[str, Tensor]) -> str:
        return "batch" if any(key.endswith("running_mean") for key in keys) else "group"

    causes = ""
    if blocks(state) and blocks(state) != blocks(target):
        depths = f"its layer3 has {blocks(state)} blocks and the model's {blocks(target)}"
        causes += f"{depths} (layers=50: 6, 101: 23, 152: 36). "
    if blocks(state) and norm(state) != norm(target):
        causes += f"it has {norm(state)} normalisation and the model {norm(target)} (norm). "
    return causes


def _unwrapped(model: nn.Module) -> nn.Module:
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return _unwrapped(inner)
    return model


def _shortened(keys: Sequence[str], limit: int = 4) -> str:
    return ", ".join(keys[:limit]) + (", …" if len(keys) > limit else "")

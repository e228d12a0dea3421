"""PSPNet (Zhao et al. 2017, https://arxiv.org/abs/1612.01105) on fused operators, a drop-in for hszhao/semseg's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet_fast.ops.checks import LABEL_DTYPES
from pspnet_fast.ops.dual_cross_entropy import dual_cross_entropy_argmax
from pspnet_fast.ops.upsample_argmax import upsample_argmax

from .backbones import external_stages
from .fusibility import fusable_options, log_unfused
from .heads import AuxHead, PSPHead, PyramidPooling, unfusable_reason
from .loss import LowResolutionLoss
from .optimized import ForInference
from .resnet import RECOMPUTE, STAGES, Norm, Recompute, resnet_stages, run_stage
from .weights import initial_weights, load_imagenet_resnet


class PSPNet(nn.Module):
    """Pyramid scene parsing network: dilated ResNet, pyramid pooling, main and auxiliary head.

    Constructor, attributes (``layer0`` … ``layer4``, ``ppm``, ``cls``, ``aux``), outputs and ``state_dict`` keys are
    those of hszhao/semseg's ``model.pspnet.PSPNet``; its training scripts and checkpoints work unchanged.

    Args:
        layers: depth of the ResNet: 18, 34, 50, 101 or 152. Ignored where ``backbone`` is given.
        bins: sizes of the pyramid's levels.
        dropout: probability of dropping a channel in front of the class layers.
        classes: number of classes, at least 2.
        zoom_factor: 1, 2, 4 or 8; the output is (H - 1) * zoom_factor // 8 + 1 high.
        use_ppm: False leaves the pyramid out.
        criterion: the loss of logits [N, C, h, w] and labels; ``nn.CrossEntropyLoss(ignore_index=255)`` where None.
            Exactly that type runs fused, as do :class:`~pspnet_fast.nn.LowResolutionLoss` such as
            :class:`~pspnet_fast.nn.OhemCrossEntropyLoss` (without ``aux_weight``); any other is called on the upsampled
            logits.
        pretrained: ImageNet weights for the backbone: a file, or True for ``./initmodel/resnet{layers}_v2.pth`` (with
            ``backbone``: ``./initmodel/{name}.pth``), or False.
        backbone: a model of torchvision or timm instead of the deep-stem ResNet, such as "resnet50",
            "torchvision/resnet101" or "timm/regnetx_032" (:func:`~pspnet_fast.nn.backbones.external_stages`). timm's
            have one attribute ``backbone`` in the place of ``layer0`` … ``layer4``.
        norm: "batch", or "group", which trains on single images too.
        recompute: what backward computes again, to save memory: "none"; "selective", normalisation, ReLU, sums and
            the convolutions to more channels in the residual blocks; "full", all of the blocks. Not for timm's models.

    The heads are a quarter as wide as the maps they read (512 and 256 for 50 layers and more), but at least 64.

    Training: ``model(x, y) -> (labels, main_loss, aux_loss)``; the arg-max int64 [N, h, w] and two 0-d losses, to be
    weighted by the caller (``main_loss + 0.4 * aux_loss``). Evaluation: ``model(x) -> logits [N, classes, h, w]``.
    ``x`` is a normalised float image batch [N, 3, H, W] of any size.

    Raises:
        ValueError: an argument out of its range, or an unknown backbone.
        FileNotFoundError: ``pretrained`` names a file that does not exist.
    """

    layer0: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    backbone: nn.Module

    def __init__(
        self,
        layers: int = 50,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        classes: int = 2,
        zoom_factor: int = 8,
        use_ppm: bool = True,
        criterion: nn.Module | None = None,
        pretrained: bool | str | Path = True,
        *,
        backbone: str | None = None,
        norm: Norm = "batch",
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, not {classes}; count the background as a class")
        if zoom_factor not in (1, 2, 4, 8):
            raise ValueError(f"zoom_factor must be 1, 2, 4 or 8, not {zoom_factor}")
        if use_ppm and not bins:
            raise ValueError("bins must not be empty; use_ppm=False leaves the pyramid out")
        if recompute not in RECOMPUTE:
            raise ValueError(f"recompute must be one of {', '.join(RECOMPUTE)}, not {recompute!r}")
        _check_criterion(criterion)
        weights = initial_weights(pretrained, layers, backbone)

        self.layers = layers
        self.bins = tuple(bins)
        self.classes = classes
        self.zoom_factor = zoom_factor
        self.use_ppm = use_ppm
        self.criterion = nn.CrossEntropyLoss(ignore_index=255) if criterion is None else criterion
        self.recompute = recompute
        self.frozen: tuple[str, ...] = ()
        self._unfused_reasons: set[str] = set()

        stages = resnet_stages(layers, norm) if backbone is None else external_stages(backbone, norm)
        for name, module in stages.modules.items():
            self.add_module(name, module)
        if recompute != "none" and "layer0" not in stages.modules:
            raise ValueError(
                f"recompute={recompute!r} needs residual blocks; backbone={backbone!r} does not show its own"
            )
        channels = stages.stage4_channels
        if use_ppm:
            self.ppm = PyramidPooling(channels, channels // len(self.bins), self.bins, norm)
            channels += len(self.bins) * (channels // len(self.bins))
        self.cls = PSPHead(channels, max(64, stages.stage4_channels // 4), classes, dropout, norm)
        self.aux = AuxHead(stages.stage3_channels, max(64, stages.stage3_channels // 4), classes, dropout, norm)

        if weights is not None:
            report = load_imagenet_resnet(self, weights)
            if report.partial:
                warnings.warn(f"{weights} fits the backbone in part only: {report}", stacklevel=2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Training: ``(arg-max, main_loss, aux_loss)``; evaluation: logits [N, classes, h, w] (``y`` is not read).

        Raises:
            ValueError: in training, no labels, labels of another shape or dtype than the fused loss takes, or a single
                image where batch normalisation needs two (see ``norm``).
        """
        size = self.output_size(x)
        if not self.training:
            return _upsample(self.low_resolution_logits(x), size)

        if y is None:
            raise ValueError("in training mode PSPNet needs labels: model(x, y); for logits call model.eval() first")
        _check_criterion(self.criterion)  # it may have been replaced
        options = fusable_options(self.criterion)
        low_resolution = isinstance(self.criterion, LowResolutionLoss)
        if options is not None and y.is_floating_point() and y.dim() == 4:
            options = None  # class probabilities [N, C, h, w]: nn.CrossEntropyLoss takes them, the fused loss does not
        if options is not None or low_resolution:
            _check_target(y, (x.shape[0], *size))
        self._check_batch(x)

        stage3, stage4 = self._features(x)
        main = self._main_logits(stage4)
        aux = self.aux(stage3)

        if low_resolution:
            losses = self.criterion(main, aux, y)
            return upsample_argmax(main, y.shape[1:]), losses.main, losses.aux
        if options is None:
            log_unfused(self._unfused_reasons, f"criterion {type(self.criterion).__name__} is called as it is")
            return self._plain_losses(_upsample(main, size), _upsample(aux, size), y)
        result = dual_cross_entropy_argmax(main, aux, y, **options)
        return cast(Tensor, result.labels), result.main, result.aux

    @torch.no_grad()
    def predict(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The most likely class of every pixel, int64 [N, h, w], without building full-resolution logits.

        Args:
            x: images [N, 3, H, W].
            size: (h, w) of the labels; that of ``forward``'s logits where None.

        Raises:
            RuntimeError: the model is in training mode, where batch statistics would change with every prediction.
        """
        if self.training:
            raise RuntimeError("predict needs the model in evaluation mode; call model.eval() first")
        return upsample_argmax(self.low_resolution_logits(x), self.output_size(x) if size is None else tuple(size))

    def optimize_for_inference(self) -> PSPNet:
        """A copy for inference: the same function in evaluation mode, faster; see :class:`OptimizedPSPNet`.

        It has no gradients, refuses ``train()`` and ``state_dict()``, and does not follow this network when it changes.
        """
        return OptimizedPSPNet(self)

    def low_resolution_logits(self, x: Tensor) -> Tensor:
        """The main head's logits before upsampling: [N, classes, h/8, w/8]."""
        self._check_batch(x)
        return self._main_logits(self._features(x)[1])

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """(h, w) of the output for images ``x [N, 3, H, W]``: (H - 1) * zoom_factor // 8 + 1."""
        if x.dim() != 4:
            raise ValueError(f"images must be [N, 3, H, W], not {list(x.shape)}; a single image needs x.unsqueeze(0)")
        height, width = x.shape[-2:]
        return (height - 1) * self.zoom_factor // 8 + 1, (width - 1) * self.zoom_factor // 8 + 1

    def backbone_modules(self) -> list[nn.Module]:
        """The pretrained part, for the base learning rate: ``layer0`` … ``layer4``, or timm's ``backbone``."""
        return [self.get_submodule(name) for name in STAGES] if hasattr(self, "layer0") else [self.backbone]

    def head_modules(self) -> list[nn.Module]:
        """The part trained from scratch, for ten times the learning rate: ``ppm`` (where used), ``cls`` and ``aux``."""
        return [self.ppm, self.cls, self.aux] if self.use_ppm else [self.cls, self.aux]

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of stage 3 and stage 4, at output stride 8."""
        if not hasattr(self, "layer0"):
            stage3, stage4 = self.backbone(x)
            return stage3, stage4
        x = self.layer0(x)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = run_stage(stage, x, self.recompute)
        return x, run_stage(self.layer4, x, self.recompute)

    def freeze(self, *names: str) -> None:
        """Train the modules of these names no more: "backbone", all of it, or an attribute such as "layer0" or "ppm".

        Their parameters get no gradients, and their normalisations use and keep the statistics that they have.

        Raises:
            ValueError: the network has no such module.
        """
        every = [name for name, _ in self.named_children() if name != "criterion"]
        stages = [name for name in every if name.startswith("layer")] or ["backbone"]
        for name in names:
            if name != "backbone" and name not in every:
                raise ValueError(f"{name!r} is no part of the network; choose from backbone, {', '.join(every)}")
            self.frozen += tuple(stages) if name == "backbone" else (name,)
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; frozen modules stay in evaluation mode."""
        super().train(mode)
        for name, module in self.named_children():
            if name in self.frozen:
                module.eval()
        return self

    def _main_logits(self, stage4: Tensor) -> Tensor:
        if not self.use_ppm:
            return self.cls(stage4)
        reason = unfusable_reason(self.ppm, self.cls)
        if reason is not None:
            log_unfused(self._unfused_reasons, reason)
            return self.cls(self.ppm(stage4))
        return self.cls(*self.ppm.forward_levels(stage4), self.ppm.bins)

    def _plain_losses(self, main: Tensor, aux: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The criterion called on full-resolution logits: for criteria that the fused loss does not know."""
        if isinstance(self.criterion, nn.CrossEntropyLoss) and not y.is_floating_point():
            y = y.long()  # PyTorch's takes no int32
        return main.max(1)[1], self.criterion(main, y), self.criterion(aux, y)

    def _check_batch(self, x: Tensor) -> None:
        if self.use_ppm and isinstance(self.ppm, PyramidPooling):
            self.ppm.check_batch(x.shape[0])


def _upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def _check_criterion(criterion: object) -> None:
    """Raise ValueError if ``criterion`` has a weight of the auxiliary loss, which PSPNet would not apply."""
    if isinstance(criterion, LowResolutionLoss) and criterion.aux_weight is not None:
        raise ValueError(
            f"criterion has aux_weight={criterion.aux_weight}, but PSPNet returns the main and the auxiliary loss "
            f"unweighted; leave aux_weight out and train on main_loss + {criterion.aux_weight} * aux_loss"
        )


def _check_target(target: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``target`` holds class indices of the given [B, H, W]."""
    if target.dtype not in LABEL_DTYPES:
        raise ValueError(f"labels must be int64, int32 or uint8, not {target.dtype}; convert them with labels.long()")
    if tuple(target.shape) != tuple(shape):
        hint = " (remove the channel axis with labels.squeeze(1))" if target.dim() == 4 else ""
        raise ValueError(
            f"labels must be [N, h, w] = {list(shape)}, the size of the output, not {list(target.shape)}{hint}; "
            "the output is (H - 1) * zoom_factor // 8 + 1 high for an input of height H"
        )


class OptimizedPSPNet(ForInference, PSPNet):
    """The same function as ``net`` in evaluation mode, faster; made by :meth:`PSPNet.optimize_for_inference`.

    Batch normalisation is folded into the convolutions of the backbone, each convolution is one kernel with the sum
    and ReLU behind it, and on a CPU its weights are kept in oneDNN's order, for every precision that is used. The
    auxiliary head is left out. It is a copy: later changes of ``net`` do not reach it.

    It has no gradients, cannot be trained, and has no ``state_dict``: save ``net``.
    """

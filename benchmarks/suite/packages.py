"""Projects that are peers where they are installed: what is taken of them, and why one is absent."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from benchmarks.suite.configurations import SMP, TRANSFORMERS

# Of each project: the package's module, and what installs it.
PACKAGES = {
    SMP: ("segmentation_models_pytorch", "segmentation-models-pytorch"),
    TRANSFORMERS: ("transformers", "transformers"),
}


def absence(project: str) -> str | None:
    """Why a project is no peer here, or None where it is installed."""
    module, distribution = PACKAGES[project]
    if importlib.util.find_spec(module) is None:
        return f"not installed: pip install {distribution}"
    return None


def versions(peers: Iterable[str]) -> dict[str, str]:
    """Of the peers that are packages, the version that is installed."""
    return {peer: importlib.metadata.version(PACKAGES[peer][1]) for peer in peers if peer in PACKAGES}


def peers_of(project: str) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The project as a peer, or as an absent one with the reason; nothing for one that is never installed."""
    if project not in PACKAGES:
        return (), {}
    reason = absence(project)
    return ((project,), {}) if reason is None else ((), {project: reason})


def transformers_loss() -> Callable[..., Tensor]:
    """transformers' loss of semantic segmentation: low-resolution logits of one or two heads against labels.

    Raises:
        RuntimeError: the installed transformers has none.
    """
    import transformers
    from transformers.loss.loss_utils import LOSS_MAPPING

    name = "ForSemanticSegmentation"
    if name not in LOSS_MAPPING:
        raise RuntimeError(f"transformers {transformers.__version__} has no {name} in LOSS_MAPPING; take a newer one")
    loss: Callable[..., Tensor] = LOSS_MAPPING[name]
    return loss


class SmpHead(nn.Module):
    """The decoder of segmentation_models.pytorch's PSPNet, without its dropout (it would be drawn anew by each peer).

    ``weights`` are those of the same head in stock operators: the decoder has its parameters and statistics in the
    same order, under other names.
    """

    def __init__(self, channels: int, out_channels: int, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

        self.decoder = PSPDecoder([channels], out_channels=out_channels, dropout=0.0)
        names = self.decoder.state_dict()
        self.decoder.load_state_dict(dict(zip(names, weights.values(), strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.decoder([x])
        return result

"""The rule for a fast kernel: at most twice the error of the stock operators in the same dtype, plus a small slack."""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_as_exact_as_stock(
    actual: Tensor, stock: Tensor, exact: Tensor, dtype: torch.dtype, what: str = "result"
) -> None:
    """Raises unless ``actual`` is about as near to ``exact`` as ``stock`` is.

    The error is relative, in two norms: the Euclidean one tells of a loss of precision everywhere, the largest
    difference of a single wrong element.

    Args:
        actual: what the operator gave.
        stock: what PyTorch's own operators give for the same input.
        exact: the same in float64.
        dtype: of the input, which sets the slack.
        what: the name of the result, for the message.
    """
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert exact.dtype == torch.float64, f"{what}: the oracle must be float64, not {exact.dtype}"
    actual, stock, exact = (t.detach().cpu().double() for t in (actual, stock, exact))
    if exact.numel() == 0:
        return
    for norm in (2.0, torch.inf):
        error, allowed = _error(actual, exact, norm), 2 * _error(stock, exact, norm) + SLACK[dtype]
        # Not `error > allowed`: a NaN must fail.
        assert error <= allowed, (
            f"{what}: relative error {error:.3g} in the {norm:g}-norm, allowed {allowed:.3g} for {dtype}; "
            f"{_worst(actual, exact)}"
        )


def _error(actual: Tensor, exact: Tensor, norm: float) -> float:
    scale = torch.linalg.vector_norm(exact, norm).item()
    error = torch.linalg.vector_norm(actual - exact, norm).item()
    return error / scale if scale > 0 else error


def _worst(actual: Tensor, exact: Tensor) -> str:
    difference = (actual - exact).abs().nan_to_num(nan=torch.inf)
    index = tuple(int(i) for i in torch.unravel_index(difference.argmax(), exact.shape))
    return f"worst at {index}: {actual[index].item():.9g} instead of {exact[index].item():.9g}"

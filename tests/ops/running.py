"""What the operators' tests share: inputs in every layout, gradients, and the checks each operator must pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from exactness import assert_as_exact_as_stock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pspnet_fast import backend as backends
from pspnet_fast.backend import COMPOSED, kernels
from pspnet_fast.ops.operator import OPERATORS
from pspnet_fast.reference import NormStatistics

Function = Callable[..., Any]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LABELS = (torch.int64, torch.int32, torch.uint8)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA_ON_CPU = os.environ.get("PSPNET_FAST_CUDA_ON_CPU")  # the library of tests/cuda_on_cpu, if that is what runs


class Backend(NamedTuple):
    name: str
    device: torch.device

    @property
    def compiler(self) -> str:
        """What torch.compile compiles with. Where other kernels stand in for a GPU's, and of the definition, the graph
        alone is tested: the code that is generated round the operators is that of the ordinary run.
        """
        traced = self.name == "reference" or INTERPRETED or CUDA_ON_CPU is not None
        return "aot_eager" if traced else "inductor"

    def operator(self, name: str) -> str:
        """The operator that this back end runs as: Triton's are operators of their own."""
        return f"{name}_triton" if self.name == "triton" else name

    def require(self, dtype: torch.dtype, options: Mapping[str, Any] | None = None) -> None:
        """Skips the test where the back end cannot be relied on for ``dtype``, or would take too long for all of them.

        In Triton's interpreter a test of many ``options`` runs over them in float32, and over the dtypes with none.
        """
        if INTERPRETED and options and dtype != torch.float32 and self.name == "triton":
            pytest.skip("in Triton's interpreter options are tested in float32")
        if self.name == "triton" and INTERPRETED and dtype == torch.bfloat16:
            pytest.skip("Triton's interpreter is not reliable in bfloat16")


def home(backend: str) -> torch.device:
    """The device of a back end's tensors here: Triton's interpreter and tests/cuda_on_cpu work on the CPU."""
    if backend == "cuda" and CUDA_ON_CPU is not None:
        return torch.device("cpu")
    on_gpu = backend in ("triton", "cuda", "composed-cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def implementations(operator: str) -> list[str]:
    """What can run ``operator`` here, as ids of the fixture ``backend``."""
    found = [name for name in kernels(operator) if backends.unavailable(operator, name, home(name).type) is None]
    composed = []
    if OPERATORS[operator].composed and "cpu" not in found:
        composed.append(COMPOSED)
    if OPERATORS[operator].composed and torch.cuda.is_available() and not {"triton", "cuda"}.intersection(found):
        composed.append(f"{COMPOSED}-cuda")
    return ["reference", *found, *composed]


DENSE = ("nchw", "channels_last")
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    # Every second column of a wider map, with a border.
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 1)).repeat_interleave(2, dim=3)[..., 2:-2:2],
    "transposed": lambda x: x.mT.contiguous().mT,
}


class Sample(NamedTuple):
    fused: Function  # the operator, of the inputs alone
    definition: Function  # the same in stock operators, in the dtype of its inputs
    inputs: list[Tensor]  # of one dtype; first those of an image, by which alone some tests differentiate


def random(
    *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", layout: str = "nchw"
) -> Tensor:
    """Standard normal values, rounded to ``dtype``; drawn on the CPU, so that every device gets the same."""
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    return LAYOUTS[layout](x) if len(shape) == 4 else x


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def differentiate(
    function: Function, inputs: Sequence[Tensor], upstream: Sequence[Tensor] | None = None, gradient: bool = True
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The results of ``function(*inputs)``, and its gradients for ``upstream`` (none without ``gradient``).

    Without one they are for ones; an empty list is filled with random gradients first, one per result.
    """
    leaves = [t.detach().requires_grad_(gradient) for t in inputs]
    results = as_tuple(function(*leaves))
    if not gradient:
        return results, ()
    if upstream == []:
        upstream += [random(*r.shape, dtype=r.dtype, device=r.device) for r in results]
    given = [u.to(r.dtype) for u, r in zip(upstream or map(torch.ones_like, results), results, strict=True)]
    return results, torch.autograd.grad(results, leaves, given)


def check_exactness(
    fused: Function,
    definition: Function,
    inputs: Sequence[Tensor],
    upstream_layout: str = "nchw",
    gradient: bool = True,
) -> None:
    """Holds results and gradients of ``fused`` to the rule, for a random upstream gradient (maps in this layout).

    ``definition`` is the same function in stock operators: called with float64 inputs it is the oracle, with inputs of
    the same dtype the measure of what error is to be expected.
    """
    dtype = inputs[0].dtype
    exact_inputs = [t.double() for t in inputs]
    upstream = []
    if gradient:
        drawn = [random(*r.shape, dtype=dtype, device=r.device) for r in as_tuple(definition(*exact_inputs))]
        upstream = [LAYOUTS[upstream_layout](u) if u.dim() == 4 else u for u in drawn]
    actual = differentiate(fused, inputs, upstream, gradient)
    stock = differentiate(definition, inputs, upstream, gradient)
    exact = differentiate(definition, exact_inputs, upstream, gradient)
    for kind, results in zip(("result", "gradient"), zip(actual, stock, exact, strict=True), strict=True):
        for index, (a, s, e) in enumerate(zip(*results, strict=True)):
            assert_as_exact_as_stock(a, s, e, dtype, f"{kind} {index}")
    for derivative, tensor in zip(actual[1], inputs, strict=gradient):
        assert derivative.dtype == tensor.dtype


def check_same_bits(
    function: Function, inputs: Sequence[Tensor], threads: Sequence[int] = (1, 1), gradient: bool = True
) -> None:
    """Results and gradients are the same to the last bit in runs with these numbers of threads.

    As far as stock operators inside can be: cuDNN has algorithms for gradients that are not.
    """
    if INTERPRETED:
        pytest.skip("Triton's interpreter runs the programs of a kernel one after the other, always in the same order")
    torch.set_num_threads(threads[0])
    upstream: list[Tensor] = []
    with deterministic():
        first = differentiate(function, inputs, upstream, gradient)
        for count in threads[1:]:
            torch.set_num_threads(count)
            again = differentiate(function, inputs, upstream, gradient)
            torch.testing.assert_close(again, first, rtol=0, atol=0, msg=f"differs with {count} threads")


@contextmanager
def deterministic(fill: bool = False) -> Iterator[None]:
    """PyTorch takes deterministic algorithms where it has some; with ``fill``, new memory holds NaN until written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN (or the largest integer) until it is written; see :func:`deterministic`."""
    with deterministic(fill=True):
        assert torch.empty(8).isnan().all(), "this torch does not fill uninitialised memory"
        yield


def check_writes_everything(function: Function, inputs: Sequence[Tensor], gradient: bool = True) -> None:
    """No result or gradient has an element left from memory that was never written; the inputs stay as they are."""
    upstream: list[Tensor] = []
    before = [t.clone() for t in inputs]
    with deterministic():
        clean = differentiate(function, inputs, upstream, gradient)
    with poisoned():
        torch.testing.assert_close(differentiate(function, inputs, upstream, gradient), clean)
    torch.testing.assert_close(list(inputs), before, rtol=0, atol=0)


def check_meta(function: Function, inputs: Sequence[Tensor], strides: bool = True, gradient: bool = True) -> None:
    """On meta tensors the operator tells shape, dtype and (with ``strides``) layout of results and gradients."""
    with torch.device("meta"):
        meta_inputs = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in inputs]
    metas, reals = (differentiate(function, tensors, gradient=gradient) for tensors in (meta_inputs, inputs))
    for meta, real in zip((*metas[0], *metas[1]), (*reals[0], *reals[1]), strict=True):
        assert meta.device.type == "meta"
        assert (meta.shape, meta.dtype) == (real.shape, real.dtype)
        assert not strides or meta.stride() == real.stride()


def check_compiles(function: Function, *input_sets: Sequence[Tensor], backend: str, gradient: bool = True) -> None:
    """Compiles without a graph break, for several sizes, to the same results and gradients."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for inputs in input_sets:
        upstream: list[Tensor] = []
        expected = differentiate(function, inputs, upstream, gradient)
        actual = differentiate(compiled, inputs, upstream, gradient)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def check_exports(function: Function, inputs: Sequence[Tensor], operator: str) -> None:
    """``torch.export`` keeps the operator as one node, and the exported program gives the same results."""

    class Wrapper(nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            return as_tuple(function(*tensors))

    exported = torch.export.export(Wrapper(), tuple(inputs))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert f"pspnet_fast.{operator}.default" in targets, f"{operator} is not in the exported graph: {targets}"
    torch.testing.assert_close(exported.module()(*inputs), as_tuple(function(*inputs)))


def check_gradients_twice(function: Function, inputs: Sequence[Tensor]) -> None:
    """First and second gradients against finite differences, in float64.

    First gradients are the same bits each time, as :func:`check_same_bits` has it. Second ones are those of stock
    operators, which add up in no fixed order on a GPU.
    """
    leaves = tuple(t.detach().double().requires_grad_() for t in inputs)
    on_gpu = any(t.device.type == "cuda" for t in leaves)
    with deterministic():
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True, nondet_tol=1e-10 if on_gpu else 0.0)


class Calls(TorchDispatchMode):
    """The operators that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def draw_norm(channels: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> NormStatistics:
    """Statistics of a normalisation, none of them trivial."""
    mean, var, gamma, beta = (random(channels, dtype=dtype, device=device) for _ in range(4))
    return NormStatistics(mean, 0.5 + var.square(), gamma, beta, 1e-3)

"""The declaration of an operator: everything that the dispatcher, autograd and ``torch.compile`` know about it.

``pspnet_fast/schemas.txt`` lists the schemas. csrc/ops.cpp registers them and the C++ and CUDA kernels; without the
extension they are defined here, so that ``torch.ops.pspnet_fast`` is complete in every installation and exported
programs load everywhere. An :class:`Operator` registers two variants: ``name``, which has the C++ and CUDA kernels and
the composition of PyTorch operators for every other device, and ``name_triton``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pspnet_fast import backend
from pspnet_fast.extension import EXTENSION
from pspnet_fast.layout import is_channels_last
from pspnet_fast.ops.checks import differentiable
from pspnet_fast.reference import NormStatistics

NAMESPACE = "pspnet_fast"


def read_schemas(path: Path) -> dict[str, str]:
    """The schemas of ``schemas.txt`` by the names of their operators; each as ``(arguments) -> results``."""
    schemas, definitions = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("$"):
            key, definitions[key] = line.split(" = ", 1)
        elif line and not line.startswith("#"):
            for key, text in definitions.items():
                line = line.replace(key, text)
            name, schema = line.split("(", 1)
            schemas[name] = f"({schema}"
    return schemas


SCHEMAS = read_schemas(Path(__file__).parents[1] / "schemas.txt")
OPERATORS: dict[str, Operator] = {}  # those with a definition: what users call, without the backward operators

if EXTENSION.cpu is not None:
    for _name, _schema in SCHEMAS.items():
        torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=torch.Tag.pt2_compliant_tag)


_standard_operators = False  # of the process, as the back end


@contextmanager
def standard_operators() -> Iterator[None]:
    """Record every operator as the standard operators that it is made of, for runtimes without this package."""
    global _standard_operators
    previous, _standard_operators = _standard_operators, True
    try:
        yield
    finally:
        _standard_operators = previous


def exporting() -> bool:
    """Whether ``torch.export`` records: the flag itself, as Dynamo of torch 2.11 takes ``is_exporting()`` for True."""
    return torch.compiler._is_exporting_flag


def in_standard_operators() -> bool:
    """Whether an export for other runtimes runs: :func:`standard_operators`, or ``torch.onnx.export``."""
    return _standard_operators or ((exporting() or torch.jit.is_tracing()) and torch.onnx.is_in_onnx_export())


def overload(name: str) -> Any:
    """``torch.ops.pspnet_fast.<name>.default``."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


class Operator:
    """One operator of ``schemas.txt``; calling it runs it on the back end in force.

    Args:
        name: as in ``schemas.txt``.
        fake: shapes, dtypes and strides of the results, of the operator's arguments.
        composition: the operator made of PyTorch operators, for every device without a native kernel.
        definition: the same function in stock operators (:mod:`pspnet_fast.reference`); None for backward operators.
        recorded: what runs where autograd records, for an operator without ``gradient``, which is made for inference.
        composed: whether the composition is better than the definition, where no kernel can run.
        exported: the operator in standard operators at any size, static or symbolic, for other runtimes; the definition
            where None.
        triton: "module:function" below :mod:`pspnet_fast.triton`, imported at the first call; or a function.
        save: ``save(ctx, inputs, output)``, what the gradient needs besides ``ctx.options``, all inputs behind the
            leading tensors.
        gradient: ``gradient(ctx, *grads)``, the gradients of the first arguments; those of the others are None.
        lower_precision: whether autocast casts the tensors to its dtype, as for a convolution, all but statistics of a
            normalisation. It is off inside either way; backward operators it never sees.
    """

    def __init__(
        self,
        name: str,
        *,
        fake: Callable[..., Any],
        composition: Callable[..., Any],
        definition: Callable[..., Any] | None = None,
        recorded: Callable[..., Any] | None = None,
        composed: bool = False,
        exported: Callable[..., Any] | None = None,
        triton: str | Callable[..., Any] | None = None,
        save: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
        gradient: Callable[..., Sequence[Tensor | None]] | None = None,
        lower_precision: bool = False,
    ) -> None:
        self.name = name
        self.definition = definition
        self.composed = composed
        self.exported = exported or definition
        self._recorded = recorded
        self._save, self._gradient = save, gradient
        self._variants = {"": overload(name)}
        # What it keeps for backward, torch.jit.trace would find in a trace with gradients and miss in one without.
        self.traceable = len(overload(name)._schema.returns) == 1

        torch.library.impl(f"{NAMESPACE}::{name}", "CompositeExplicitAutograd")(composition)
        if triton is not None:
            qualified = f"{NAMESPACE}::{name}_triton"
            torch.library.define(qualified, SCHEMAS[name], tags=torch.Tag.pt2_compliant_tag)
            kernel = _imported_at_first_call(triton) if isinstance(triton, str) else triton
            torch.library.impl(qualified, "CompositeExplicitAutograd")(kernel)
            self._variants["_triton"] = overload(f"{name}_triton")

        for variant, function in self._variants.items():
            torch.library.register_fake(function.name(), fake)
            if gradient is not None:
                self._register_gradient(variant, gradient)
            if definition is not None:
                _register_autocast(function, lower_precision)
        if definition is not None:
            OPERATORS[name] = self

    def __call__(self, *arguments: Any) -> Any:
        """The operator on the back end for the device of its first argument."""
        if self.exported is not None and in_standard_operators():
            return self.exported(*arguments)
        chosen = self.backend(arguments[0])
        if chosen == "reference" and self.definition is not None:
            return self.definition(*arguments)
        if self._recorded is not None and differentiable(*_tensors(arguments)):
            return self._recorded(*arguments)
        return self.run(chosen, *arguments)

    def backend(self, tensor: Tensor) -> str:
        """What the operator runs on for ``tensor``'s device, see :func:`pspnet_fast.backend.select`."""
        if torch.jit.is_tracing() and not self.traceable:
            return "reference"
        return backend.select(self.name, tensor.device.type, self.composed, tensor.device.index)

    def run(self, chosen: str, *arguments: Any) -> Any:
        """The operator on ``chosen``, which is not "reference"."""
        if self._gradient is not None and not torch.compiler.is_compiling():
            arguments = _savable(arguments)
        return self._variants["_triton" if chosen == "triton" else ""](*arguments)

    def like(self, ctx: Any) -> Any:
        """This operator in the variant whose forward left ``ctx``, so that backward runs where forward ran."""
        return self._variants[ctx.variant]

    def _register_gradient(self, variant: str, gradient: Callable[..., Sequence[Tensor | None]]) -> None:
        # torch.library.register_autograd reads the schema at every call: 40 of a loss's 240 us, for which a GPU waits.
        function, save = self._variants[variant], self._save
        types = [str(argument.type) for argument in function._schema.arguments]
        tensors = next(i for i, kind in enumerate(types) if "Tensor" not in kind)

        def below_autograd(*arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return function(*arguments)

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = below_autograd(*arguments)
            ctx.variant, ctx.options = variant, arguments[tensors:]
            if save is not None:
                save(ctx, arguments, output)
            return output

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            found = gradient(ctx, *grads)
            return *found, *[None] * (len(types) - len(found))

        # The node of the graph has this name: profiles show it.
        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        recorded: Any = type(f"{self.name}{variant}", (torch.autograd.Function,), methods)

        def kernel(*arguments: Any) -> Any:
            needed = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
            return (recorded.apply if needed else below_autograd)(*arguments)

        torch.library.impl(function.name(), "Autograd")(kernel)


def _imported_at_first_call(path: str) -> Callable[..., Any]:
    module, function = path.split(":")

    def kernel(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"pspnet_fast.triton.{module}"), function)(*arguments)

    return kernel


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments, those in lists too."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from _tensors(argument)


def _savable(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments; where autograd will save them, copies of those that come from inference mode."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not recorded or not any(t.is_inference() for t in tensors):
        return arguments
    return tuple(a.clone() if isinstance(a, Tensor) and a.is_inference() else a for a in arguments)


def _register_autocast(function: Any, lower_precision: bool) -> None:
    # torch.library.register_autocast knows only a fixed dtype.
    lowered = [lower_precision and a.name not in NormStatistics._fields for a in function._schema.arguments]
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        kernel = _autocast_kernel(function, device_type, key, lowered)
        torch.library.impl(function.name(), key)(kernel)


def _autocast_kernel(function: Any, device_type: str, key: str, lowered: Sequence[bool]) -> Callable[..., Any]:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*arguments: Any) -> Any:
        # Off inside, so that it does not reach the PyTorch operators that a composition is made of.
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            if any(lowered):
                dtype = torch.get_autocast_dtype(device_type)
                arguments = tuple(_lower(a, dtype) if low else a for a, low in zip(arguments, lowered, strict=False))
            return function(*arguments)

    return kernel


def _lower(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, list):
        return [_lower(a, dtype) for a in argument]
    if isinstance(argument, Tensor) and argument.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return argument.to(dtype)
    return argument


def save_map(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep shape and layout of the first argument, a map ``[B, C, H, W]``: all that a linear operator needs."""
    ctx.shape, ctx.channels_last = inputs[0].shape, is_channels_last(inputs[0])


def second_gradient(
    function: Callable[..., Any], inputs: Sequence[Tensor], grad: Tensor, cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Differentiate a backward pass once more, by the definition of its forward.

    ``function`` is that definition over ``inputs``, the differentiable ones; ``grad`` is what backward was given, and
    ``cotangents`` are the gradients by its results, one per input, None where there is none. Returned are the gradients
    by ``grad`` and by each of ``inputs``.
    """
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        upstream = grad.detach().requires_grad_()
        first = torch.autograd.grad(function(*leaves), leaves, upstream, create_graph=True)
        wanted = [(f, c) for f, c in zip(first, cotangents, strict=True) if c is not None]
        return list(
            torch.autograd.grad([f for f, _ in wanted], [upstream, *leaves], [c for _, c in wanted], allow_unused=True)
        )


def decompositions() -> dict[Any, Callable[..., Any]]:
    """This package's operators as standard ones, for ``torch.export.ExportedProgram.run_decompositions``."""
    return {
        overload(name): operator.exported
        for name, operator in OPERATORS.items()
        if operator.exported is not None and operator.traceable
    }

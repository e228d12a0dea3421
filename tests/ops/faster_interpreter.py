"""Triton's interpreter without most of its set-up, which takes several times as long as the arithmetic itself.

- It replaces the functions of triton.language in every call of one jitted function by another, for good, although the
  launch around them has replaced them already. Here a launch does so once.
- Types of blocks and numpy, and the shapes of tensors, are made anew for every operation. Here each is made once.
- It checks integers for overflow by eight further operations of its own. Here numpy checks them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def install() -> None:
    """Replace the interpreter's own functions; what this version of triton does not have stays as it is."""
    if hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope"):
        interpreter._patch_lang = _patching_once(interpreter._patch_lang)
    if hasattr(interpreter, "_get_np_dtype"):
        interpreter._get_np_dtype = _by_key(interpreter._get_np_dtype, lambda dtype: dtype.scalar.name)
    if hasattr(TritonSemantic, "binary_op_sanitize_overflow_impl"):
        TritonSemantic.binary_op_sanitize_overflow_impl = _check_overflow
    TritonSemantic.broadcast_impl_value = _broadcast(TritonSemantic.broadcast_impl_value)
    tl.block_type.__init__ = _made_once(tl.block_type.__init__, _block_key)
    tl.tensor.__init__ = _made_once(tl.tensor.__init__, lambda handle, type: type.name, own=("handle", "type"))
    equal = tl.dtype.__eq__
    tl.dtype.__eq__ = lambda self, other: self is other or equal(self, other)


@functools.cache
def _languages(function: Callable[..., Any]) -> frozenset[int]:
    """Which of the two modules that are replaced a function reads."""
    return frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)


def _patching_once(patch_lang: Callable[..., Any]) -> Callable[..., Any]:
    patched: set[frozenset[int]] = set()  # in the present launch; empty between launches

    def patch_once(function: Callable[..., Any]) -> Any:
        languages, is_launch = _languages(function), not patched
        if languages in patched:
            return None
        scope = patch_lang(function)
        patched.add(languages)
        if is_launch:
            restore = scope.restore

            def restore_and_forget() -> None:
                restore()
                patched.clear()

            scope.restore = restore_and_forget
        return scope

    return patch_once


def _by_key(function: Callable[[Any], Any], key: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``function``, called once for each ``key(argument)``."""
    known: dict[Any, Any] = {}

    def lookup(argument: Any) -> Any:
        name = key(argument)
        if name not in known:
            known[name] = function(argument)
        return known[name]

    return lookup


def _made_once(init: Callable[..., None], key: Callable[..., Any], own: tuple[str, ...] = ()) -> Callable[..., None]:
    """An ``__init__`` that copies the attributes of the first object of a key, but those in ``own``, its arguments."""
    known: dict[Any, dict[str, Any]] = {}

    def copy_attributes(self: Any, *arguments: Any) -> None:
        name = key(*arguments)
        if name not in known:
            init(self, *arguments)
            known[name] = {attribute: value for attribute, value in vars(self).items() if attribute not in own}
        attributes = self.__dict__
        attributes.update(known[name])
        if own:
            attributes.update(zip(own, arguments, strict=True))

    return copy_attributes


def _block_key(element_ty: tl.dtype, shape: Any) -> tuple[Any, ...]:
    if isinstance(shape, tl.tuple):  # of another block
        return (element_ty.name, *shape.values)
    return (element_ty.name, *(size.value if isinstance(size, tl.constexpr) else size for size in shape))


def _broadcast(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    def broadcast_where_shapes_differ(self: TritonSemantic, lhs: tl.tensor, rhs: tl.tensor) -> Any:
        left, right = lhs.type, rhs.type
        if left.is_block() and right.is_block() and left.shape.values == right.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return broadcast_where_shapes_differ


def _check_overflow(self: TritonSemantic, lhs: tl.tensor, rhs: tl.tensor, binary_op: Callable[..., Any]) -> None:
    dtype = lhs.type.scalar
    if dtype.int_bitwidth >= 64:
        return
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
    exact = operation(lhs.handle.data, rhs.handle.data, dtype=np.int64)
    message = f"int{dtype.int_bitwidth} overflow detected for operation {binary_op.__name__}"
    assert exact.min() >= dtype.get_int_min_value(), message
    assert exact.max() <= dtype.get_int_max_value(), message

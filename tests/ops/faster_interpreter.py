"""Triton's interpreter without most of its set-up.

It replaces the functions of triton.language in every call of one jitted function by another, for good, although the
launch around them has replaced them already: a third of the time of small launches. Here a launch does so once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def _languages(function: Callable[..., Any]) -> frozenset[int]:
    """Which of the two modules that are replaced a function reads."""
    return frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)


def install() -> None:
    """Replace the interpreter's own function; nothing where this version of triton has another one."""
    patch_lang = getattr(interpreter, "_patch_lang", None)
    if patch_lang is None or not hasattr(interpreter, "_LangPatchScope"):
        return
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

    interpreter._patch_lang = patch_once

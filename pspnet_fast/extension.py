"""Loads the compiled extension ``pspnet_fast._C``, or says why it cannot be loaded.

The build writes ``_build_info.json`` next to the extension. It is read first: an extension that was linked against
another torch would fail with an undefined symbol, or worse, so it is not loaded, and the reason names the remedy.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

BUILD_INFO = Path(__file__).with_name("_build_info.json")
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps -e ."


@dataclass(frozen=True)
class Extension:
    """What the compiled extension offers in this process.

    Attributes:
        cpu: None where the C++ operators are loaded, else the reason why not.
        cuda: None where the CUDA operators are loaded (a GPU may still be absent), else the reason why not.
        info: the build's own record: torch, compiler, nvcc, architectures; empty where nothing was built.
    """

    cpu: str | None
    cuda: str | None
    info: dict[str, Any] = field(default_factory=dict)


def load(build_info: Path = BUILD_INFO, torch_version: str = torch.__version__) -> Extension:
    """Import ``_C`` if it was built for ``torch_version``; never raises for a missing or unfit extension."""
    try:
        info: dict[str, Any] = json.loads(build_info.read_text())
        built, skipped, built_for = info["built"], info["skipped"], info["torch"]
    except FileNotFoundError:
        return _unloaded("the extension was not built")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _unloaded(f"{build_info} is unreadable ({error})")
    if "cpu" not in built:
        return Extension(skipped["cpu"], skipped["cuda"], info)
    if built_for != torch_version:
        return _unloaded(f"built against torch {built_for}, but torch {torch_version} is imported", info)
    try:
        importlib.import_module("pspnet_fast._C")
    except ImportError as error:
        return _unloaded(f"the extension does not load ({error})", info)
    return Extension(None, None if "cuda" in built else skipped["cuda"], info)


def _unloaded(reason: str, info: dict[str, Any] | None = None) -> Extension:
    reason = f"{reason}; run `{REBUILD}` in the source folder"
    return Extension(reason, reason, info or {})


EXTENSION = load()

"""The PEP 517 backend: setuptools, plus torch as a build requirement where (and only where) the environment has none.

Listing torch under ``[build-system] requires`` would download the newest torch into the isolated build environment and
link against that one, not against the torch that the user runs.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403

from buildtools import require_setuptools
from buildtools.extension import find_torch

require_setuptools()
TORCH_REQUIREMENT = "torch>=2.11"


def _with_torch(requirements: list[str]) -> list[str]:
    return requirements if find_torch() else [*requirements, TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What a wheel's build environment needs."""
    return _with_torch(_setuptools.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What an editable install's build environment needs."""
    return _with_torch(_setuptools.get_requires_for_build_editable(config_settings))

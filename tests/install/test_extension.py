"""pspnet_fast.extension: what is loaded, or the reason and the remedy; and the report that tells it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from pspnet_fast import backend
from pspnet_fast import report as report_module
from pspnet_fast.extension import BUILD_INFO, EXTENSION, REBUILD, Extension, load
from pspnet_fast.ops.operator import OPERATORS

VERSION = "2.99.0"
BUILT: dict[str, Any] = {"torch": VERSION, "built": ["cpu", "cuda"], "skipped": {}, "compiler": "GNU 12"}


def load_record(tmp_path: Path, content: str | dict[str, Any]) -> Extension:
    path = tmp_path / "_build_info.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load(path, VERSION)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were imported; nothing is."""
    names: list[str] = []
    monkeypatch.setattr(importlib, "import_module", names.append)
    return names


def test_not_built(tmp_path: Path, imported: list[str]) -> None:
    extension = load(tmp_path / "_build_info.json", VERSION)
    assert extension.cpu == extension.cuda == f"the extension was not built; run `{REBUILD}` in the source folder"
    assert (extension.info, imported) == ({}, [])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"built": ["cpu"], "skipped": {}}', "\x00"])
def test_unreadable_record(content: str, tmp_path: Path, imported: list[str]) -> None:
    extension = load_record(tmp_path, content)
    assert extension.cpu.startswith(f"{tmp_path / '_build_info.json'} is unreadable")
    assert REBUILD in extension.cpu
    assert imported == []


def test_another_torch_is_not_loaded(tmp_path: Path, imported: list[str]) -> None:
    extension = load_record(tmp_path, BUILT | {"torch": "2.98.0"})
    assert extension.cpu == extension.cuda
    assert "built against torch 2.98.0, but torch 2.99.0 is imported" in extension.cpu
    assert REBUILD in extension.cpu
    assert imported == []


@pytest.mark.parametrize(
    ("built", "skipped"),
    [([], {"cpu": "no compiler", "cuda": "no compiler"}), (["cpu"], {"cuda": "no nvcc"}), (["cpu", "cuda"], {})],
)
def test_what_was_built(built: list[str], skipped: dict[str, str], tmp_path: Path, imported: list[str]) -> None:
    record = BUILT | {"built": built, "skipped": skipped}
    extension = load_record(tmp_path, record)
    assert (extension.cpu, extension.cuda, extension.info) == (skipped.get("cpu"), skipped.get("cuda"), record)
    assert imported == ["pspnet_fast._C"] * bool(built)


def test_extension_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(importlib, "import_module", fail)
    extension = load_record(tmp_path, BUILT)
    assert extension.cpu == extension.cuda
    assert "does not load (undefined symbol: _ZN3c10)" in extension.cpu


def test_report_names_every_operator_and_backend() -> None:
    text = report_module.report()
    for name in (*OPERATORS, *backend.BACKENDS):
        assert f"\n{name}" in text or f"\n  {name}" in text


def test_report_gives_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Extension("no compiler was found", "no nvcc was found", {"compiler": None, "nvcc": None})
    for module in (backend, report_module):
        monkeypatch.setattr(module, "EXTENSION", broken)
    text = report_module.report()
    assert "nothing was compiled" in text
    assert "no compiler was found" in text
    assert "no nvcc was found" in text


@pytest.mark.skipif("cuda" not in EXTENSION.info.get("built", ()), reason="no CUDA kernels were built here")
def test_cuda_kernels_take_little_room() -> None:
    """Compressed, and without line information: uncompressed they are five times as large."""
    (library,) = BUILD_INFO.parent.glob("_C.*.so")
    assert library.stat().st_size < 25e6


@pytest.mark.skipif(EXTENSION.cpu is not None, reason="the extension is not built here")
def test_report_of_a_built_extension() -> None:
    lines = report_module.report().splitlines()
    assert any(line.startswith("compiler") and str(EXTENSION.info["compiler"]) in line for line in lines)
    assert any(line.startswith("  cpu") and "ready" in line for line in lines)

"""What `python -m pspnet_fast` tells: which kernels are loaded or why not, and on which GPUs they were verified."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_result import verified_entries
from pspnet_fast import backend
from pspnet_fast import report as report_module
from pspnet_fast.digest import folder_digest
from pspnet_fast.extension import BUILD_INFO, EXTENSION, REBUILD, Extension, load
from pspnet_fast.ops.operator import OPERATORS
from pspnet_fast.report import VERIFIED, current_digests, read_verified, verification

ROOT = Path(__file__).resolve().parents[1]
TESTED = {"cuda": "a" * 64, "triton": "b" * 64}
NOT_YET = "the tests of the {} kernels have not all passed on a GPU yet"
VERIFIED_ON = "CUDA C++ and Triton verified on {} at abc123 on 2026-01-02"
ENTRY: dict[str, Any] = {"device": "H200", "commit": "abc123", "date": "2026-01-02", "digest": TESTED}
OTHER = {**ENTRY, "device": "A100", "digest": {**TESTED, "cuda": "c" * 64}}


# ---- the extension ---------------------------------------------------------------------------------------------------

VERSION = "2.99.0"
BUILT: dict[str, Any] = {"torch": VERSION, "built": ["cpu", "cuda"], "skipped": {}, "compiler": "GNU 12"}


def load_record(tmp_path: Path, content: str | dict[str, Any] | None) -> Extension:
    path = tmp_path / "_build_info.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load(path, VERSION)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were imported; nothing is."""
    names: list[str] = []
    monkeypatch.setattr(importlib, "import_module", names.append)
    return names


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the extension was not built"),
        *((text, "{} is unreadable (") for text in ("{", "[]", "{}", '{"built": ["cpu"], "skipped": {}}', "\x00")),
        (BUILT | {"torch": "2.98.0"}, "built against torch 2.98.0, but torch 2.99.0 is imported"),
    ],
)
def test_what_is_not_loaded(
    content: str | dict[str, Any] | None, reason: str, tmp_path: Path, imported: list[str]
) -> None:
    extension = load_record(tmp_path, content)
    assert extension.cpu == extension.cuda
    assert extension.cpu.startswith(reason.format(tmp_path / "_build_info.json"))
    assert extension.cpu.endswith(f"; run `{REBUILD}` in the source folder")
    assert extension.info == (content if isinstance(content, dict) else {})
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


# ---- verification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "change", "lines"),
    [
        ([], {}, [NOT_YET.format("CUDA C++ and Triton")]),
        (
            [{**ENTRY, "digest": {"triton": "b" * 64}}],
            {"cuda": "c" * 64},
            ["Triton verified on H200 at abc123 on 2026-01-02; kernels unchanged since", NOT_YET.format("CUDA C++")],
        ),
        (
            [OTHER, ENTRY],
            {},
            [
                f"{VERIFIED_ON.format('A100')}; kernels changed since (CUDA C++)",
                f"{VERIFIED_ON.format('H200')}; kernels unchanged since",
            ],
        ),
        *(
            ([ENTRY], change, [f"{VERIFIED_ON.format('H200')}; kernels {ending}"])
            for change, ending in (
                ({}, "unchanged since"),
                ({"cuda": "c" * 64}, "changed since (CUDA C++)"),
                ({"triton": "c" * 64}, "changed since (Triton)"),
                ({"cuda": "c" * 64, "triton": "c" * 64}, "changed since (CUDA C++ and Triton)"),
                ({"cuda": "not recorded"}, "changed since (CUDA C++)"),
                ({"cuda": None}, "unchanged since (but there are no CUDA C++ kernels here)"),
                ({"cuda": None, "triton": "c" * 64}, "changed since (Triton)"),
            )
        ),
    ],
)
def test_on_which_gpus_these_kernels_were_verified(
    entries: list[dict[str, Any]], change: dict[str, str | None], lines: list[str]
) -> None:
    assert verification(entries, {**TESTED, **change}) == lines


def test_digests_are_those_of_what_was_compiled_and_of_what_lies_here() -> None:
    assert current_digests({"built": ["cpu", "cuda"], "digests": {"cuda": "x"}})["cuda"] == "x"
    assert current_digests({"built": ["cpu"], "digests": {"cuda": "x"}})["cuda"] is None
    assert current_digests({"built": ["cpu", "cuda"]})["cuda"] == "not recorded"
    assert current_digests({}) == {"cuda": None, "triton": folder_digest(ROOT / "pspnet_fast" / "triton")}


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["absent", "broken", "no list"])
def test_without_a_record(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    if content is not None:
        path.write_text(content)
    assert read_verified(path) == []


def test_the_record_was_written_by_the_suite() -> None:
    """Every entry is that of a result file with all tests of its kernels passed: nothing in it was typed in."""
    results = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("gpu_*.json")]
    entries = [entry for result in results for entry in verified_entries(result)]
    for entry in read_verified(VERIFIED):
        assert entry in entries


def test_installed_where_the_package_lies() -> None:
    assert VERIFIED.parent == Path(report_module.__file__).parent


# ---- the digest ------------------------------------------------------------------------------------------------------


def test_digest_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    for name, text in (("ops.cpp", "a"), ("cuda/pool.cu", "b"), ("cpu/pool.cpp", "c")):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    before, gpu = folder_digest(sources), folder_digest(sources, exclude=("cpu",))
    copy = shutil.copytree(sources, tmp_path / "elsewhere")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "ops.pyc").write_bytes(b"\0")
    (copy / "notes.txt").write_text("not a source")
    assert folder_digest(copy) == before
    (copy / "cuda" / "pool.cu").rename(copy / "cuda" / "pool2.cu")
    assert folder_digest(copy) != before
    (copy / "cuda" / "pool2.cu").rename(copy / "cuda" / "pool.cu")
    assert folder_digest(copy) == before
    (copy / "cpu" / "pool.cpp").write_text("changed")  # a GPU does not run it
    assert folder_digest(copy) != before
    assert folder_digest(copy, exclude=("cpu",)) == gpu


def test_no_sources_no_digest(tmp_path: Path) -> None:
    assert folder_digest(tmp_path) is None
    assert folder_digest(tmp_path / "absent") is None


def test_the_build_needs_no_torch_for_its_digests() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, '.');"
        "from buildtools.extension import csrc_digests; print(csrc_digests()['cuda'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == folder_digest(ROOT / "csrc", exclude=("cpu",)), done.stderr


# ---- the report ------------------------------------------------------------------------------------------------------


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


def test_report_tells_where_the_kernels_were_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verified.json"
    path.write_text(json.dumps([ENTRY]))
    monkeypatch.setattr(report_module, "read_verified", lambda: read_verified(path))
    monkeypatch.setattr(report_module, "current_digests", lambda: TESTED)
    assert f"{VERIFIED_ON.format('H200')}; kernels unchanged since" in report_module.report()
    monkeypatch.setattr(report_module, "read_verified", lambda: [])
    assert NOT_YET.format("CUDA C++ and Triton") in report_module.report()


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pspnet_fast"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        command.stdout.close()  # type: ignore[union-attr]
        assert command.stderr.read() == b""  # type: ignore[union-attr]

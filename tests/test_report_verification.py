"""What the report says of GPUs: where the kernels were tested, and whether they are still the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_result import verified_entries
from pspnet_fast import report as report_module
from pspnet_fast import verification as verification_module
from pspnet_fast.digest import folder_digest
from pspnet_fast.verification import VERIFIED, current_digests, read_verified, verification

ROOT = Path(__file__).resolve().parents[1]
TESTED = {"cuda": "a" * 64, "triton": "b" * 64}
NOT_YET = "the tests of the {} kernels have not all passed on a GPU yet"
VERIFIED_ON = "CUDA C++ and Triton verified on NVIDIA H200 at abc123 on 2026-01-02"
ENTRY: dict[str, Any] = {"device": "NVIDIA H200", "commit": "abc123", "date": "2026-01-02", "digest": TESTED}


def test_not_run_yet() -> None:
    assert verification([], TESTED) == [NOT_YET.format("CUDA C++ and Triton")]


def test_one_kind_of_kernel() -> None:
    lines = verification([{**ENTRY, "digest": {"triton": "b" * 64}}], {**TESTED, "cuda": "c" * 64})
    tested = "Triton verified on NVIDIA H200 at abc123 on 2026-01-02; kernels unchanged since"
    assert lines == [tested, NOT_YET.format("CUDA C++")]


@pytest.mark.parametrize(
    ("change", "ending"),
    [
        ({}, "kernels unchanged since"),
        ({"cuda": "c" * 64}, "kernels changed since (CUDA C++)"),
        ({"triton": "c" * 64}, "kernels changed since (Triton)"),
        ({"cuda": "c" * 64, "triton": "c" * 64}, "kernels changed since (CUDA C++ and Triton)"),
        ({"cuda": "not recorded"}, "kernels changed since (CUDA C++)"),
        ({"cuda": None}, "kernels unchanged since (but there are no CUDA C++ kernels here)"),
        ({"cuda": None, "triton": "c" * 64}, "kernels changed since (Triton)"),
    ],
    ids=str,
)
def test_changed_or_unchanged(change: dict[str, str | None], ending: str) -> None:
    assert verification([ENTRY], {**TESTED, **change}) == [f"{VERIFIED_ON}; {ending}"]


def test_a_line_for_each_device() -> None:
    other = {**ENTRY, "device": "NVIDIA A100", "digest": {**TESTED, "cuda": "c" * 64}}
    first, second = verification([other, ENTRY], TESTED)
    assert first.startswith("CUDA C++ and Triton verified on NVIDIA A100")
    assert first.endswith("changed since (CUDA C++)")
    assert second.endswith("kernels unchanged since")


def test_cuda_kernels_are_what_was_compiled() -> None:
    assert current_digests({"built": ["cpu", "cuda"], "digests": {"cuda": "x"}})["cuda"] == "x"
    assert current_digests({"built": ["cpu"], "digests": {"cuda": "x"}})["cuda"] is None
    assert current_digests({"built": ["cpu", "cuda"]})["cuda"] == "not recorded"
    assert current_digests({})["cuda"] is None


def test_triton_kernels_are_what_lies_here() -> None:
    assert current_digests({})["triton"] == folder_digest(ROOT / "pspnet_fast" / "triton")


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["absent", "broken", "no list"])
def test_without_a_record(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    if content is not None:
        path.write_text(content)
    assert read_verified(path) == []


def test_report_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verified.json"
    path.write_text(json.dumps([ENTRY]))
    monkeypatch.setattr(report_module, "read_verified", lambda: read_verified(path))
    monkeypatch.setattr(report_module, "current_digests", lambda: TESTED)
    assert f"{VERIFIED_ON}; kernels unchanged since" in report_module.report()
    monkeypatch.setattr(report_module, "read_verified", lambda: [])
    assert NOT_YET.format("CUDA C++ and Triton") in report_module.report()


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pspnet_fast"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        command.stdout.close()  # type: ignore[union-attr]
        assert command.stderr.read() == b""  # type: ignore[union-attr]


def test_the_record_was_written_by_the_suite() -> None:
    """Every entry is that of a result file with all tests of its kernels passed: nothing in it was typed in."""
    results = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("gpu_*.json")]
    entries = [entry for result in results for entry in verified_entries(result)]
    for entry in read_verified(VERIFIED):
        assert entry in entries


# ---- the digest -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "csrc"
    for name, text in (("ops.cpp", "a"), ("cuda/pool.cu", "b"), ("cpu/pool.cpp", "c")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_digest_depends_on_names_and_contents_alone(sources: Path, tmp_path: Path) -> None:
    before = folder_digest(sources)
    copy = shutil.copytree(sources, tmp_path / "elsewhere")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "ops.pyc").write_bytes(b"\0")
    (copy / "notes.txt").write_text("not a source")
    assert folder_digest(copy) == before
    (copy / "cuda" / "pool.cu").rename(copy / "cuda" / "pool2.cu")
    assert folder_digest(copy) != before
    (copy / "cuda" / "pool2.cu").rename(copy / "cuda" / "pool.cu")
    assert folder_digest(copy) == before
    (copy / "cuda" / "pool.cu").write_text("B")
    assert folder_digest(copy) != before


def test_digest_of_what_the_gpu_runs(sources: Path) -> None:
    whole, gpu = folder_digest(sources), folder_digest(sources, exclude=("cpu",))
    (sources / "cpu" / "pool.cpp").write_text("changed")
    assert folder_digest(sources) != whole
    assert folder_digest(sources, exclude=("cpu",)) == gpu


def test_no_sources_no_digest(tmp_path: Path) -> None:
    assert folder_digest(tmp_path) is None
    assert folder_digest(tmp_path / "absent") is None


def test_the_build_needs_no_torch_for_its_digests() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, '.');"
        "from buildtools.cmake import csrc_digests; print(csrc_digests()['cuda'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == folder_digest(ROOT / "csrc", exclude=("cpu",)), done.stderr


def test_installed_where_the_package_lies() -> None:
    assert verification_module.VERIFIED.parent == Path(report_module.__file__).parent

"""How the command line reports errors: one framed message, and where results cannot be written, before the work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_files import call, refused

import pspnet_fast
from pspnet_fast.engine import network_commands


def _raise(error: Exception) -> Callable[..., None]:
    def raising(*_: object, **__: object) -> None:
        raise error

    return raising


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp:125] data. DefaultCPUAllocator: can't allocate memory: you"),
         ["not enough memory", "DefaultCPUAllocator", "--crop"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), ["not enough memory", "20.00 GiB"]),
        (MemoryError(), ["not enough memory", "optim.batch_size"]),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), ["process 7", "data.workers"]),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), ["7, 8", "data.workers"]),
        (PermissionError(13, "Permission denied", "/x/[y]"), ["/x/[y]: Permission denied"]),
        (OSError(28, "No space left on device"), ["No space left on device"]),
        (KeyError("lost"), ["KeyError: 'lost'", "pspnet-fast --debug"]),
        (ZeroDivisionError("division by zero\nmore"), ["ZeroDivisionError: division by zero", "pspnet-fast --debug"]),
        (ModuleNotFoundError("No module named 'timm'"), ["No module named 'timm'", "pip install"]),
    ],
)  # fmt: skip
def test_every_error_is_framed(run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, parts: list[str]) -> None:
    monkeypatch.setattr(network_commands, "evaluate_model", _raise(error))
    monkeypatch.delenv("PSPNET_FAST_DEBUG", raising=False)
    output = refused("evaluate", run / "best.pt")
    for part in parts:
        assert part in output
    assert "more" not in output

    monkeypatch.setenv("PSPNET_FAST_DEBUG", "")  # so that the test's end removes what --debug sets
    output = call("--debug", "evaluate", run / "best.pt", code=2)
    assert "Traceback (most recent call last)" in output
    assert "pspnet-fast: error" in output


def test_memory_of_the_cpu_runs_out(run: Path) -> None:
    output = refused("evaluate", run / "best.pt", "eval.base_size=300000000", "eval.crop=30001")
    assert "not enough memory" in output


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/metrics.json", "(Not a directory|File exists)"),
        ("folder", "it is a folder"),
        ("/dev/null", "it is a device"),
        ("/proc/metrics.json", "cannot be written"),
        ("/dev/full/metrics.json", "cannot be written"),
        ("x" * 260, "File ?name ?too ?long"),
    ],
)
def test_json_is_checked_before_the_evaluation(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, reason: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(network_commands, "evaluate_model", _raise(AssertionError("the evaluation was started")))
    output = refused("evaluate", run / "best.pt", "--json", tmp_path / place)
    unwrapped = re.sub(r" *│\n│ *", "", output)
    assert re.search(f"{re.escape(str(tmp_path / place))}.*{reason}", unwrapped)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_json_in_a_missing_folder_and_through_a_link(run: Path, tmp_path: Path) -> None:
    call("evaluate", run / "best.pt", "--json", tmp_path / "new" / "metrics.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "new" / "metrics.json")
    before = (tmp_path / "new" / "metrics.json").read_text()
    (tmp_path / "new" / "metrics.json").write_text("old")
    call("evaluate", run / "best.pt", "--json", tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "new" / "metrics.json").read_text() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]


def test_version() -> None:
    assert call("--version").startswith(f"pspnet-fast {pspnet_fast.__version__} (torch {torch.__version__}")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from pspnet_fast.cli import main

    monkeypatch.delitem(sys.modules, "pspnet_fast.engine.commands")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"pip install 'pspnet-fast\[train\]'"):
        main()

"""How the command line reports errors: one framed message, and where results cannot be written, before the work."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import MakeConfig, call, invoke, refused, save_picture, save_pixels

import pspnet_fast
from pspnet_fast.cli import main
from pspnet_fast.engine import load_config, network_commands, train
from pspnet_fast.engine.datasets import open_split


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
    monkeypatch.delitem(sys.modules, "pspnet_fast.engine.commands")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"pip install 'pspnet-fast\[train\]'"):
        main()


NAMES = ("alpha", "bravo", "charlie", "delta")  # more than a byte apart: another name is no other sample


@pytest.mark.parametrize("kind", ["checkpoint", "configuration", "list", "picture"])
def test_a_changed_byte_is_reported_or_has_no_effect(make_config: MakeConfig, tmp_path: Path, kind: str) -> None:
    """Of PSPNET_FAST_CASES, or six; pictures and labels are PNG, as a JPEG has no checksum."""
    root, copy, draw = tmp_path / "data", tmp_path / "copy", random.Random(0)
    for seed, name in enumerate(NAMES):
        save_picture(root / f"{name}.png", (48, 64), seed)
        save_pixels(root / f"{name}_label.png", np.random.default_rng(seed).integers(0, 11, (48, 64), np.uint8))
    for split, names in (("train", NAMES[:2]), ("val", NAMES[2:])):
        (root / f"{split}.txt").write_text("".join(f"{name}.png {name}_label.png\n" for name in names))
    lists = [f"data.{split}_list={root}/{split}.txt" for split in ("train", "val")]
    config = make_config("data.name=list", f"data.root={root}", "data.classes=11", *lists, "run.max_steps=1")
    folder = train(config).folder
    check = ("check", "--config", folder / "config.yaml", "--images")
    files, command = {
        "checkpoint": ([folder / "best.pt"], ("evaluate", folder / "best.pt")),
        "configuration": ([folder / "config.yaml"], ("train", "--resume", "--folder", copy)),
        "list": (sorted(root.glob("*.txt")), check),
        "picture": (sorted(root.glob("*.png")), check),
    }[kind]

    def use() -> object:
        """What comes of the files; ``None`` where a command reports an error or a change."""
        if kind == "configuration":
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
        result = invoke(*command)
        framed = result.exit_code == 2 and "pspnet-fast: error" in result.stderr and "Traceback" not in result.output
        assert result.exit_code == 0 or framed, f"{result.exception!r}\n{result.output}"
        if result.exit_code or "resuming with another" in result.stderr:
            return None
        if kind == "configuration":
            return load_config(folder / "config.yaml", [f"run.folder={folder}"])
        splits = [open_split(config.data, split) for split in ("train", "val")]
        samples = [sample.numpy().tobytes() for split in splits for i in range(2) for sample in split.read(i)]
        return result.stdout, samples

    expected = use()
    assert expected
    for _ in range(int(os.environ.get("PSPNET_FAST_CASES", "6"))):
        path = draw.choice(files)
        good = path.read_bytes()
        # Half of the changes near the ends, where headers and directories are.
        position = draw.choice((draw.randrange(len(good)), draw.randrange(-1000, 1000) % len(good)))
        changed = draw.choice([value for value in range(256) if value != good[position]])
        path.write_bytes(good[:position] + bytes([changed]) + good[position + 1 :])
        assert use() in (None, expected), f"{path.name}: byte {position} is {changed:#04x}, not {good[position]:#04x}"
        path.write_bytes(good)
    assert use() == expected

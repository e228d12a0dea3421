"""Runs a section as a process: prints and logs what it says as it comes, ends it at its limit, records how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.measure import write_json
from benchmarks.provenance import ROOT

SECTIONS = ("build", "tests", "sanitizer", "bench", "train")
LIMIT = 540.0  # seconds
GRACE = 5.0  # seconds between asking a process to end and killing it


@dataclass(frozen=True)
class Section:
    """A section's name, its command, its limit in seconds, and what is added to its environment."""

    name: str
    command: Sequence[str]
    limit: float = LIMIT
    environment: Mapping[str, str] = field(default_factory=dict)


def previous_path(out: Path, name: str) -> Path:
    """Where a section finds what it left in an earlier run, while it runs."""
    return out / f".{name}.previous.json"


def run_section(section: Section, out: Path) -> dict[str, Any]:
    """Run it; what ends up in ``out/NAME.json``.

    The process writes its findings there itself, as it goes, so that nothing is lost if it crashes or runs out of
    time; this adds "status" ("passed", "failed" or "out of time"), "seconds" and "exit_code".
    """
    path, previous = out / f"{section.name}.json", previous_path(out, section.name)
    previous.unlink(missing_ok=True)
    if path.exists():
        path.rename(previous)  # whatever happens now, an earlier run's findings are not taken for this one's

    print(f"\n==== {section.name}", flush=True)
    started = time.monotonic()
    with (out / f"{section.name}.log").open("w", encoding="utf-8") as log:
        exit_code = _run(section, log)
    seconds = round(time.monotonic() - started, 1)

    status = "out of time" if exit_code is None else "passed" if exit_code == 0 else "failed"
    with contextlib.suppress(FileNotFoundError):
        previous.unlink()
    found: dict[str, Any] = {"problems": []}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    if status != "passed" and not found["problems"]:
        found["problems"] = [f"{section.name} ended with exit code {exit_code}" if exit_code else status]
    result = {"section": section.name, "status": status, "seconds": seconds, "exit_code": exit_code, **found}
    write_json(path, result)
    print(f"==== {section.name}: {status} in {seconds:.0f} s", flush=True)
    return result


def _run(section: Section, log: IO[str]) -> int | None:
    """The exit code, or None where the limit ended it."""
    process = subprocess.Popen(
        section.command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **section.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its compilers and workers can be ended with it
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    deadline = time.monotonic() + section.limit
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            _end(process)
            log.write(f"\nended at the limit of {section.limit:g} s\n")
            return None
        if line is None:
            break
        log.write(line)
        log.flush()
        print(line, end="", flush=True)
    try:
        return process.wait(timeout=max(GRACE, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:  # it closed its output and stayed
        _end(process)
        return None


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and what it started: first asked, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
    process.wait()

"""Kill training with SIGKILL again and again, resume it, and compare with a run that was never killed.

    python tests/engine/kill_and_resume.py --kills 200

The moments are random: anywhere, soon after the start (inside a resume), and while a file is being written. Weights,
optimizer and records of the run that was killed must equal those of the other to the last bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm  # noqa: F401  imported before the processes are forked
import torch
import torchmetrics  # noqa: F401
from run_files import TINY, measured

from pspnet_fast.data import write_scenes
from pspnet_fast.engine import TrainConfig, checkpoint, config_from_dict, train

MOMENTS = ("anywhere", "resume", "save")


def configuration(root: Path, folder: Path) -> TrainConfig:
    """Twelve steps in three epochs, each with a validation; checkpoints in between; averaged weights."""
    tree = {
        "data": {"name": "scenes", "root": str(root), "workers": 1},
        "optim": {"batch_size": 2, "ema": 0.5},
        "run": {"folder": str(folder), "max_steps": 12, "save_every_steps": 3, "log_every": 2, "pictures": 0},
    }
    return config_from_dict(tree, (*TINY, "run.device=cpu", "run.amp=none"))


def start(config: TrainConfig) -> int:
    """The id of a new process that trains; torch is loaded already, so it starts at once."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            output = os.open(f"{config.run.folder}.stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 2)
            torch.set_num_threads(1)
            train(config, resume=True)
            code = 0
        finally:
            sys.excepthook(*sys.exc_info()) if code else None  # type: ignore[arg-type]
            os._exit(code)
    return process


def wait(process: int, until: Callable[[], bool]) -> int | None:
    """The status of the process once it has ended; ``None`` as soon as ``until`` holds."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if until():
            return None
        time.sleep(0.0005)


def moment(kind: str, folder: Path, draw: random.Random, duration: float) -> Callable[[], bool]:
    """What to wait for before the kill."""
    deadline = time.monotonic() + draw.uniform(0, {"anywhere": 0.7, "resume": 0.2, "save": 0.5}[kind] * duration)
    if kind != "save":
        return lambda: time.monotonic() > deadline
    return lambda: time.monotonic() > deadline and any(folder.glob(".*.part"))


def records(folder: Path) -> dict[str, Any]:
    """All that a run leaves and that does not depend on the machine."""
    last, best = checkpoint.load(folder / "last.pt"), checkpoint.load(folder / "best.pt")
    del last["scheduler"]["elapsed"]
    for state in (last, best):
        del state["config"]["run"]["folder"]
    losses = (folder / "losses.csv").read_text()
    return {
        "last": last,
        "best": best,
        "losses": losses,
        "metrics": measured(folder),
        "left": list(folder.glob(".*.part")),
    }


def differences(a: Any, b: Any, name: str = "") -> Iterator[str]:
    """The names of the entries that are not equal to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{name}/{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{name}/{index}")
    elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, counts, kills, runs = random.Random(options.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as place:
        root, straight = Path(place) / "scenes", Path(place) / "straight"
        write_scenes(root, train=8, val=3, size=(64, 96))
        begun = time.monotonic()
        assert wait(start(configuration(root, straight)), lambda: False) == 0, (
            Path(place) / "straight.stderr"
        ).read_text()
        duration, expected = time.monotonic() - begun, records(straight)
        while kills < options.kills:
            runs += 1
            folder = Path(place) / f"run {runs}"
            config, status = configuration(root, folder), None
            while status is None:  # until a process reaches the end
                process = start(config)
                enough = kills >= options.kills
                kind = draw.choice(MOMENTS)
                status = wait(process, (lambda: False) if enough else moment(kind, folder, draw, duration))
                if status is None:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    kills += 1
                    writing = any(folder.glob(".*.part"))
                    counts["while a file was written" if writing else "elsewhere"] += 1
                    counts[f"aimed at: {kind}"] += 1
            assert status == 0, Path(f"{folder}.stderr").read_text()
            assert not (found := list(differences(records(folder), expected))), found
            print(f"{kills} kills, {runs} runs equal the one that was not killed", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()

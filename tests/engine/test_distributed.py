"""Two processes on a CPU (gloo, started by torchrun) do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_files import BUILT_IN, MakeConfig, saved_step

from pspnet_fast.engine import ConfigError, checkpoint, dump_config, train
from pspnet_fast.engine.checkpoint import claimed
from pspnet_fast.engine.distributed import pick_device


def start(*arguments: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "-m", "pspnet_fast.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(*arguments)
    output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_two_processes_equal_one_and_go_on_until_a_signal(make_config: MakeConfig, tmp_path: Path) -> None:
    # Crops inside the picture, so that both ranks have as many labelled pixels; no statistics or masks of their own.
    options = (*BUILT_IN, "model.norm=group", "model.dropout=0", "optim.batch_size=4", "run.max_steps=2")
    options += ("data.scale=[2, 2]", "data.rotate=0", "optim.accumulate=2", "run.save_every_steps=1")
    dump_config(make_config(*options, folder="two"), tmp_path / "two.yaml")
    result = torchrun("train", str(tmp_path / "two.yaml"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("images/s") == 1  # rank 0 alone reports

    one = train(make_config(*options, folder="one"))
    states = [checkpoint.load(tmp_path / name / "last.pt") for name in ("one", "two")]
    assert len(states[1]["rng"]) == 2
    assert not any(key.startswith("module.") for key in states[1]["model"])
    torch.testing.assert_close(states[1]["model"], states[0]["model"], rtol=1e-3, atol=1e-4)
    metrics = checkpoint.load(tmp_path / "two" / "best.pt")["metrics"]
    assert one.metrics is not None
    assert metrics["miou"] == pytest.approx(one.metrics.miou, abs=1e-3)

    # Resumed, then stopped by a signal, after one step of all processes.
    process = start("train", "--resume", "--folder", str(tmp_path / "two"), "run.max_steps=100000")
    deadline = time.monotonic() + 240
    while saved_step(tmp_path / "two") == 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()  # torchrun passes it on
    _, errors = process.communicate(timeout=120)
    assert errors.count("SIGTERM: stopping after this step") == 1
    assert f"saved step {saved_step(tmp_path / 'two')} in" in errors
    with claimed(tmp_path / "two", resume=True):  # no process holds the folder any more
        pass


def test_an_error_of_rank_0_ends_all_processes(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").touch()
    dump_config(make_config("optim.batch_size=4"), tmp_path / "run.yaml")
    result = torchrun("train", str(tmp_path / "run.yaml"))
    assert result.returncode != 0
    assert result.stderr.count("already holds a run (best.pt)") == 2


def test_pick_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match=r"run\.device = 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no GPU"):
            pick_device("cuda")

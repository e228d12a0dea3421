"""The demo, end to end at a tiny size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason="the demo needs the extra [train]")
pytest.importorskip("typer", reason="the demo needs the extra [train]")

from PIL import Image
from typer.testing import CliRunner

from pspnet_fast.data import open_dataset
from pspnet_fast.demo import command
from pspnet_fast.demo.compare_training import CONTROL, FUSED, PLAIN, Process, Run
from pspnet_fast.engine import ConfigError, config_from_dict

TINY = ("--minutes=0.05", "--train-scenes=4", "--val-scenes=2", "--height=64", "--width=96", "--crop=33", "--batch=2")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo that replaced an earlier one, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command.prepare(out)
    (out / "from_before.txt").write_text("goes when the demo is run again")
    arguments = [sys.executable, "-m", "pspnet_fast.demo", "--out", str(out), *TINY, "--first-steps=3"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run on the other cores
    done = subprocess.run(arguments, env=one_thread, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (out / "from_before.txt").exists()
    return out, done.stdout


def test_prints_losses_costs_and_metrics(output: tuple[Path, str]) -> None:
    text = output[1]
    numbers = r"│\s+(\d)\s+│\s+([\d.]+)\s+│\s+([\d.]+)\s+│\s+([-+.e\d]+)\s+│\s+([-+.e\d]+)\s+│"
    rows = re.findall(numbers, text)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    for _, plain, fused, difference, _ in rows:
        assert float(fused) - float(plain) == pytest.approx(float(difference), rel=0.06, abs=2e-6)
    # From the same weights, before any step could tell them apart.
    assert float(rows[0][1]) == pytest.approx(float(rows[0][2]), abs=1e-4)
    assert any(float(row[4]) != 0 for row in rows)  # else the control is another plain run, and bounds nothing
    assert re.search(r"time, median\s+│\s+\d+ ms\s+│\s+\d+ ms", text)
    assert re.search(r"peak memory\D*│\s+\d+ MB\s+│\s+\d+ MB", text)
    assert re.search(r"│ mean\s+│\s+[\d.]+", text)


def test_writes_every_picture(output: tuple[Path, str]) -> None:
    out, text = output
    for name in ("contact_sheet.png", "loss_curves.png"):
        assert (out / name).as_posix() in text
        assert len(set(Image.open(out / name).convert("L").tobytes())) > 16, f"{name} is blank"
    scenes = open_dataset("scenes", out / "scenes", "val")
    overlays = sorted((out / "predictions" / "overlay").iterdir())
    assert [path.stem for path in overlays] == [sample.image.stem for sample in scenes.samples]
    assert (out / "run" / "best.pt").is_file()


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = CliRunner().invoke(command.app, ["--out", str(tmp_path), *TINY], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "is not an earlier demo" in result.output
    assert (tmp_path / "thesis.tex").exists()


def test_process_that_fails_says_why(tmp_path: Path) -> None:
    tree = {"data": {"name": "scenes", "root": str(tmp_path / "nowhere")}, "run": {"max_steps": 1}}
    message = r"trains on plain operators ended early: .*nowhere"
    with (
        Process(config_from_dict(tree), tmp_path / "run", PLAIN, {}) as process,
        pytest.raises(ConfigError, match=message),
    ):
        process.ask("step")


def test_tables_show_what_was_measured() -> None:
    runs = {PLAIN: Run([2.0], 0.2, 2**21), FUSED: Run([2.5], 0.1, 2**20), CONTROL: Run([2.0], 0.2, 2**20)}
    assert [list(column.cells) for column in command.costs_table(runs).columns[1:]] == [
        ["200 ms", "2 MB"],
        ["100 ms", "1 MB"],
        ["2.00", "2.00"],
    ]
    assert next(iter(command.losses_table(runs).columns[3].cells)) == "+5.0e-01"

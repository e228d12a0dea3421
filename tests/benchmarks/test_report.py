"""What tables say of results that the pages do not have; markers, pages, pictures, and the commands that pages name.

The tables of the results that there are, gaps and failures among them, are compared with the pages themselves, by
tests/test_readme.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from samples import MACHINE, operator_row, scaling_row, timing, training_row, training_step_row, write

from benchmarks import cases, pictures, report
from benchmarks.report import PAGES, README, TABLES, filled, load, rendered
from benchmarks.results import write_json

PAGE = "# A page\n\n<!-- benchmark:training_step -->\n<!-- /benchmark -->\n\nThe end.\n"


def table(folder: Path, name: str) -> str:
    return rendered(TABLES[name], folder)


def test_projects(tmp_path: Path) -> None:
    labels = {"configuration": "ADE20K 473", "arrangement": "transformers", "shape": "2x8x9x9"}
    row = operator_row("psp_head", dtype="bfloat16", **labels, skipped={"smp": "not installed"})
    failed = operator_row("psp_head", shape="1x1", milliseconds={}, failures={"all": "no memory"})
    write(tmp_path, "projects_cpu", row, failed)
    text = table(tmp_path, "projects")
    line = "118 ms | 2216 ms | 1.41 ms | 84× | – | – | 5 : 2.35 MB (2.13×) | 35 % |"
    assert f"| `psp_head` | ADE20K 473, 2x8x9x9 | transformers, bfloat16 | {line}" in text
    assert "Not installed: smp." in text
    assert "Failed: psp_head, 1x1, NCHW, all: no memory" in text


def test_recompute_beside_a_gpu(tmp_path: Path) -> None:
    """What an allocator measured is shown of the same network in bfloat16 alone, beside the tensors at its batch."""
    shares = {"eager": 1.0, "none": 0.5, "selective": 0.25}
    row = {
        "case": "a", "machine": 0, "shape": "PSPNet50, 2x3x473x473, 19 classes", "failures": {},
        "milliseconds": {name: timing(1000.0 * share) for name, share in shares.items()},
        "peak_bytes": {name: 10**9 * share for name, share in shares.items()},
        "tensor_bytes": {name: 10**9 * share for name, share in shares.items()},
        "tensor_bytes_at": {name: {"2": 10**9 * share, "4": 3 * 10**9 * share} for name, share in shares.items()},
        "largest_batch": {"8": {"eager": 9, "none": None, "selective": 0}},
    }  # fmt: skip
    gpu = training_step_row() | {"shape": "PSPNet50, 16x3x473x473, 19 classes", "dtype": "bfloat16"}
    others = {**gpu, "shape": "PSPNet50, 16x3x713x713, 19 classes"}, {**gpu, "dtype": "float32"}
    write_json(tmp_path / "gpu_x.json", {"machine": MACHINE, "rows": [gpu, *others]})
    write(tmp_path, "recompute_cpu", row)
    text = table(tmp_path, "recompute")
    assert "| `model.checkpoint=selective` | 250 ms | 0.50 | 250 MB | 0.25 | 250 MB | 0.25 | none |" in text
    measured = (
        "The allocator of an A CPU, 2 cores measured in a step of 16 images: stock PyTorch, eager 4 GB, tensors 15 GB; "
        "`model.checkpoint=none` 2 GB, tensors 7.5 GB."
    )
    assert text.count("The allocator of") == text.count(measured) == 1


def test_accelerated_models_of_most_classes_come_first(tmp_path: Path) -> None:
    rows = [operator_row("accelerate", model=name, shape=f"2x3x512x512, {name} classes") for name in ("19", "150")]
    write(tmp_path, "accelerate_cpu", *rows)
    text = table(tmp_path, "accelerate")
    assert 0 < text.index("| 150 | 150 |") < text.index("| 19 | 19 |")


def test_gpu_without_rows_and_with_trainings(tmp_path: Path) -> None:
    machine = {**MACHINE, "device": "NVIDIA Test", "driver": "1.2", "cuda": "13.0", "triton": "3.9"}
    speed = {"images_per_second": {"plain": 90.4, "fused": 120.0, "control": 90.0}}
    trained = [training_row("float64", miou=False), {**training_row("bf16"), **speed}]
    tests = {"status": "passed", "counts": {"passed": 9, "failed": 0, "skipped": 1}, "machine": machine}
    result = {"machine": machine, "rows": [], "sections": {"cuda": tests}, "training": trained}
    write_json(tmp_path / "gpu_nvidia_test.json", result)
    text = table(tmp_path, "gpu")
    assert f"cuda 9 passed, 0 failed (commit {machine['commit']}); triton not run." in text
    assert "losses in float64 differ by 5.0e-01 at most; losses in bf16" in text
    assert "plain 0.200 mIoU at 90 images a second, fused 0.210 mIoU at 120" in text


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_what_is_not_measured_says_how_to(tmp_path: Path) -> None:
    for name, entry in TABLES.items():
        assert table(tmp_path, name) == f"Not measured yet: `{entry.command}`, then `python -m benchmarks.report`.\n"


@pytest.mark.parametrize("page", [PAGE.replace("training_step", "training_stp"), "no markers", PAGE + PAGE])
def test_unknown_missing_or_repeated_markers_are_errors(page: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the page has markers for"):
        filled(page, ["training_step"], tmp_path)


def test_what_is_outdated_is_reported_and_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write(tmp_path, "network_cpu", training_step_row())
    write(tmp_path, "scaling_cpu", scaling_row(2), scaling_row(19))
    where: dict[str, Any] = {"pages": {page: ("training_step",)}, "folder": tmp_path, "results": tmp_path}
    picture = f"scaling_cpu_classes{pictures.SUFFIX}"
    assert report.outdated(write=False, **where) == ["page.md", picture]
    assert page.read_text() == PAGE
    report.outdated(write=True, **where)
    text = page.read_text()
    assert text.startswith("# A page\n")
    assert text.endswith("\n\nThe end.\n")
    assert report.outdated(write=False, **where) == []
    page.write_text(text.replace("6.00 s", "9.00 s"))
    write(tmp_path, "scaling_cpu", scaling_row(2), scaling_row(60))
    assert report.outdated(write=False, **where) == ["page.md", picture]


def test_check_reports_by_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "outdated", lambda *, write: [])
    report.main(["--check"])
    assert "up to date" in capsys.readouterr().out
    monkeypatch.setattr(report, "outdated", lambda *, write: [f"README.md, write={write}"])
    with pytest.raises(SystemExit, match=r"README\.md, write=False: .* run `python -m benchmarks\.report`"):
        report.main(["--check"])


def test_measure_runs_the_commands_of_readmes_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, returncode=len(ran) - 1)

    monkeypatch.setattr(report.subprocess, "run", run)
    monkeypatch.setattr(report, "outdated", lambda *, write: [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"upsample_argmax\)'` ended with exit code 1"):
        report.main(["--measure"])
    assert [command[1:] for command in ran] == [
        ["-m", "pytest", "benchmarks/", "--save", "-k", "network"],
        ["-m", "pytest", "benchmarks/", "--save", "-k", "operators and (dual_cross_entropy or upsample_argmax)"],
    ]
    monkeypatch.setattr(report, "measure", lambda names: None)
    report.main(["--measure"])
    printed = capsys.readouterr().out
    assert all(rendered(TABLES[name]) in printed for name in PAGES[README])
    assert set().union(*PAGES.values()) == set(TABLES)


def test_commands_measure_the_files_that_the_tables_read() -> None:
    for entry in TABLES.values():
        words = shlex.split(entry.command)
        if words[0] == "python":
            spec = find_spec(words[2])
            assert spec is not None, f"no module {words[2]}"
            source = Path(str(spec.origin)).read_text()
            assert all(f'"{word}"' in source for word in words if word.startswith("--")), entry.command
        else:
            named = [name for name in cases.TABLES if re.search(rf"\b{name}\b", words[-1])]
            assert {f"{name}_{kind}" for name in named for kind in ("cpu", "gpu")} >= {
                name.replace("*", "cpu") for name in entry.files
            }


# ---- pictures --------------------------------------------------------------------------------------------------------


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The data of an axis's lines, by label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_scaling_has_time_and_memory_of_each_operator(tmp_path: Path) -> None:
    rows = [scaling_row(n, axis="batch", operator=op) for op in ("dual_cross_entropy", "psp_head") for n in (1, 2, 4)]
    del rows[-1]["milliseconds"]["eager"], rows[-1]["peak_bytes"]["eager"]  # it did not fit
    write(
        tmp_path, "scaling_cpu", *rows, operator_row("psp_head", axis="batch", value=8, milliseconds={}, peak_bytes={})
    )
    figure = pictures.scaling("batch", load(tmp_path, ["scaling_*"])[0])
    time, _, memory, heads_memory = figure.axes
    assert [axes.get_title() for axes in figure.axes[:2]] == ["dual_cross_entropy", "psp_head"]
    assert lines(time) == {
        "eager": ([1, 2, 4], [7.0, 14.0, 28.0]),
        "pspnet_fast": ([1, 2, 4], pytest.approx([0.1, 0.2, 0.4])),
    }
    assert len(time.collections) == 2  # the percentiles
    assert lines(memory)["eager"] == ([1, 2, 4], [10.0, 20.0, 40.0])
    assert lines(heads_memory)["eager"] == ([1, 2], [10.0, 20.0])
    assert (time.get_xscale(), memory.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("miou", [True, False])
def test_training_shows_miou_where_it_was_measured(tmp_path: Path, miou: bool) -> None:
    write(tmp_path, "training_camvid", training_row("float64", miou=False), training_row(miou=miou))
    figure = pictures.training(load(tmp_path, ["training_camvid"])[0])
    assert len(figure.axes) == (6 if miou else 4)
    assert lines(figure.axes[1])["fused"] == ([1, 2, 3], [3.0, 2.0, 1.5])
    (control, fused) = (list(line.get_ydata()) for line in figure.axes[3].get_lines())
    assert control == pytest.approx([float("nan"), 0.25, float("nan")], nan_ok=True)
    assert fused[2] == 0.5
    if miou:
        assert [list(line.get_ydata()) for line in figure.axes[5].get_lines()] == [
            pytest.approx(values) for values in ([10, 20], [10, 19], [10, 21.01])
        ]

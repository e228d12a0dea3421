"""Pictures: every point in its place, the same bytes for the same numbers, and known to be of which results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_samples import agreement_row, scaling_row, write

from benchmarks.report import plots
from benchmarks.report.pages import load

pytest.importorskip("matplotlib", reason="plots need the extra [train]")


def results_of(folder: Path, name: str, *rows: dict[str, Any]) -> Any:
    write(folder, name, *rows)
    (results,) = load(folder, [name])
    return results


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The data of an axis's lines, by label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_scaling_has_time_and_memory_of_each_operator(tmp_path: Path) -> None:
    rows = [scaling_row(n, axis="batch", operator=op) for op in ("dual_cross_entropy", "psp_head") for n in (1, 2, 4)]
    del rows[-1]["milliseconds"]["eager"], rows[-1]["peak_bytes"]["eager"]  # it did not fit
    rows.append({"axis": "batch", "value": 8, "operator": "psp_head", "milliseconds": {}, "failures": {}})  # nor any
    figure = plots.scaling(results_of(tmp_path, "scaling_cpu_batch", *rows))
    time, _, memory, heads_memory = figure.axes[0], *figure.axes[1:]
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
def test_agreement_shows_miou_where_it_was_measured(tmp_path: Path, miou: bool) -> None:
    rows = agreement_row("torch.float64", miou=False), agreement_row(miou=miou)
    figure = plots.agreement(results_of(tmp_path, "agreement_camvid", *rows))
    assert len(figure.axes) == (6 if miou else 4)
    assert lines(figure.axes[1])["fused"] == ([1, 2, 3], [3.0, 2.0, 1.5])
    (control, fused) = (list(line.get_ydata()) for line in figure.axes[3].get_lines())
    assert control == pytest.approx([float("nan"), 0.25, float("nan")], nan_ok=True)
    assert fused[2] == 0.5
    if miou:
        assert [list(line.get_ydata()) for line in figure.axes[5].get_lines()] == [
            pytest.approx(values) for values in ([10, 20], [10, 19], [10, 21.01])
        ]


def test_a_picture_is_known_by_its_results(tmp_path: Path) -> None:
    results = results_of(tmp_path, "scaling_cpu_classes", scaling_row(2), scaling_row(19))
    assert not plots.is_current(results, tmp_path)
    first = plots.draw(results, tmp_path).read_bytes()
    assert plots.is_current(results, tmp_path)
    assert plots.draw(results, tmp_path).read_bytes() == first
    assert not plots.is_current(results_of(tmp_path, "scaling_cpu_classes", scaling_row(2)), tmp_path)


def test_results_without_a_picture() -> None:
    assert plots.figure_of("operators_cpu_psp_head") is None
    assert plots.figure_of("agreement_camvid") is plots.agreement

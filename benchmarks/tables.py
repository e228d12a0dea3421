"""The closing tables of a run in the terminal: of every case, a line for each peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from benchmarks import losses, pyramid
from benchmarks.results import Row

IDLE = 0.25  # of the cores: a load up to this was the shell, and an editor
LABELS = (
    "axis", "value", "configuration", "shape", "dtype", "layout", "direction", "logits", "compiled", "arrangement",
)  # fmt: skip
LEGEND = (
    "eager: stock operators as the project named in the heading arranges them; compile: torch.compile of the same; "
    "a project's own name: its installed package.",
    "Medians and 20th to 80th percentiles of rounds in which all peers of a table took their turn; x ours: of medians, "
    "to the fastest pspnet_fast.",
    "Peak: memory beyond inputs and weights. Floor: the longer of bytes over copy bandwidth and FLOP over the better "
    "rate of a matrix product and a convolution.",
    "No page faults: the same in a process whose C library keeps its memory. Graph: replayed as a CUDA graph.",
)


def summary(rows: Iterable[Row], machine: Mapping[str, Any], load: float, cores: int) -> Iterator[str]:
    """The tables of the rows, what they were measured with, and what the columns mean."""
    timed = [row for row in rows if row.get("milliseconds") or row["failures"]]
    if not timed:
        return
    yield f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, commit {machine['commit']}"
    if load > IDLE * cores:
        yield f"Do not quote these numbers: other work was running (a load of {load:.2f} on {cores} cores)."
    if rates := [row["rates"] for row in timed if "rates" in row]:
        yield rates_text(rates[-1])  # the best of the run
    for row in timed:
        yield ""
        yield from case_table(row)
    yield ""
    yield from LEGEND


def rates_text(rates: Mapping[str, float]) -> str:
    """What the machine reaches, in one line."""
    return (
        f"copy {rates['copy']:.1f} GB/s, read {rates['read']:.1f} GB/s, arithmetic "
        f"{rates['float32'] / 1e3:.4g} TFLOP/s in float32 and {rates['bfloat16'] / 1e3:.4g} in bfloat16"
    )


def case_table(row: Row) -> Iterator[str]:
    """Heading, floor, and a line for each peer: those that were timed, then those that were not and why."""
    yield ", ".join([row["operator"], *(str(row[name]) for name in LABELS[:-1] if name in row)])
    if "arrangement" in row:
        yield f"  as {row['arrangement']}: {function_words(row['operator'], row['arrangement'])}"
    if "floor" in row:
        floor = row["floor"]
        yield (
            f"  floor: {floor['memory_milliseconds']:.4g} ms for {floor['bytes'] / 1e6:.4g} MB, "
            f"{floor['arithmetic_milliseconds']:.4g} ms for {floor['flops'] / 1e9:.4g} GFLOP in {floor['rate']}"
        )
    peers = list(row.get("milliseconds", {}))
    columns = [(title, [cell(row, peer) for peer in peers]) for title, cell in COLUMNS]
    columns = [(title, cells) for title, cells in columns if any(cells)]
    reasons = {**row.get("skipped", {}), **{peer: f"FAILED: {reason}" for peer, reason in row["failures"].items()}}
    first = max(map(len, ("", *peers, *reasons)))

    if peers:
        widths = [max(map(len, (title, *cells))) for title, cells in columns]
        yield _line(first, "", widths, [title for title, _ in columns])
        for i, peer in enumerate(peers):
            yield _line(first, peer, widths, [cells[i] for _, cells in columns])
    for peer, reason in reasons.items():
        yield f"  {peer:<{first}}  {reason}"
    if batches := row.get("largest_batch"):
        for memory, found in batches.items():
            yield f"  largest batch in {memory} GB: {', '.join(f'{peer} {batch}' for peer, batch in found.items())}"


def function_words(operator: str, project: str) -> str:
    """What is computed in a project's arrangement, in words."""
    if operator == "dual_cross_entropy":
        return losses.ARRANGEMENTS[project].words
    fixed = {"pyramid_pool": "the same in every project", "upsample_argmax": "align_corners"}
    return fixed.get(operator) or pyramid.ARRANGEMENTS[project].words


def _line(first: int, name: str, widths: list[int], cells: list[str]) -> str:
    aligned = "".join(f"   {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"  {name:<{first}}{aligned}".rstrip()


def milliseconds_text(value: float) -> str:
    """Three significant digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _median(times: Mapping[str, Any], peer: str) -> str:
    return f"{milliseconds_text(times[peer]['median'])} ms" if peer in times else ""


def _spread(row: Row, peer: str) -> str:
    time = row["milliseconds"][peer]
    return f"{milliseconds_text(time['p20'])} to {milliseconds_text(time['p80'])}"


def _ratio(ratios: Mapping[str, float], peer: str) -> str:
    return f"{ratios[peer]:.2f}" if peer in ratios else ""


def _peak(row: Row, peer: str) -> str:
    peak = row.get("peak_bytes", {}).get(peer)
    return "" if peak is None else f"{peak / 1e6:.1f} MB"


def _floor(row: Row, peer: str) -> str:
    return f"{100 * row['floor_reached'][peer]:.1f} %" if peer in row["floor_reached"] else ""


COLUMNS: tuple[tuple[str, Callable[[Row, str], str]], ...] = (
    ("median", lambda row, peer: _median(row["milliseconds"], peer)),
    ("p20 to p80", _spread),
    ("x ours", lambda row, peer: _ratio(row["ratio"], peer)),
    ("images/s", lambda row, peer: str(row.get("images_per_second", {}).get(peer, ""))),
    ("peak", _peak),
    ("of floor", _floor),
    ("graph", lambda row, peer: _median(row.get("graph_milliseconds", {}), peer)),
    ("no page faults", lambda row, peer: _median(row.get("without_page_faults", {}).get("milliseconds", {}), peer)),
    ("x ours", lambda row, peer: _ratio(row.get("without_page_faults", {}).get("times_ours", {}), peer)),
)

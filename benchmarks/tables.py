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
        yield f"  as {row['arrangement']}: {arrangement(row['operator'], row['arrangement'])}"
    if "floor" in row:
        floor = row["floor"]
        yield (
            f"  floor: {floor['memory_milliseconds']:.4g} ms for {floor['bytes'] / 1e6:.4g} MB, "
            f"{floor['arithmetic_milliseconds']:.4g} ms for {floor['flops'] / 1e9:.4g} GFLOP in {floor['rate']}"
        )
    peers = list(row.get("milliseconds", {}))
    reasons = {**row.get("skipped", {}), **{peer: f"FAILED: {reason}" for peer, reason in row["failures"].items()}}
    names = max(map(len, ("", *peers, *reasons)))
    columns = [[title, *cells(row, entry, text, peers)] for title, entry, text in COLUMNS]
    columns = [column for column in columns if any(column[1:])]
    for i, name in enumerate(["", *peers] if peers else []):
        line = "".join(f"   {column[i]:>{max(map(len, column))}}" for column in columns)
        yield f"  {name:<{names}}{line}".rstrip()
    for peer, reason in reasons.items():
        yield f"  {peer:<{names}}  {reason}"
    if batches := row.get("largest_batch"):
        for memory, found in batches.items():
            yield f"  largest batch in {memory} GB: {', '.join(f'{peer} {batch}' for peer, batch in found.items())}"


def arrangement(operator: str, project: str) -> str:
    """The options of a project's arrangement: which function of the inputs all peers compute."""
    if operator in ("pyramid_pool", "upsample_argmax"):
        return "the same in every project"
    every = losses.ARRANGEMENTS if operator == "dual_cross_entropy" else pyramid.ARRANGEMENTS
    return ", ".join(f"{name}={value}" for name, value in vars(every[project]).items())


def milliseconds_text(value: float) -> str:
    """Three significant digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def median_text(time: Mapping[str, float]) -> str:
    return f"{milliseconds_text(time['median'])} ms"


def spread_text(time: Mapping[str, float]) -> str:
    return f"{milliseconds_text(time['p20'])} to {milliseconds_text(time['p80'])}"


# Title, the entry of the row that has a value for each peer ("a.b": entry b of entry a), and the text of a value.
COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("median", "milliseconds", median_text),
    ("p20 to p80", "milliseconds", spread_text),
    ("x ours", "ratio", "{:.2f}".format),
    ("images/s", "images_per_second", str),
    ("peak", "peak_bytes", lambda size: f"{size / 1e6:.1f} MB"),
    ("of floor", "floor_reached", lambda share: f"{100 * share:.1f} %"),
    ("graph", "graph_milliseconds", median_text),
    ("no page faults", "without_page_faults.milliseconds", median_text),
    ("x ours", "without_page_faults.times_ours", "{:.2f}".format),
)


def cells(row: Row, entry: str, text: Callable[[Any], str], peers: Iterable[str]) -> list[str]:
    """A column; empty where a peer has no value."""
    outer, _, inner = entry.partition(".")
    values = row.get(outer, {}).get(inner, {}) if inner else row.get(outer, {})
    return ["" if values.get(peer) is None else text(values[peer]) for peer in peers]

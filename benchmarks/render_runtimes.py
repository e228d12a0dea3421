"""The tables and the picture of PSPNet in other runtimes, and of evaluation over scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.markdown import (
    NOTHING,
    TITLES,
    File,
    Row,
    by_peer,
    failures,
    machine_lines,
    megabytes,
    milliseconds,
    region,
    rounds,
    short,
    table,
    times,
)
from benchmarks.peers import COMPILE, EAGER, OURS
from benchmarks.runtimes import GRAPHS, RUNTIMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {f"{runtime} {graph}": f"{name}, {graph} graph" for runtime, name in RUNTIMES.items() for graph in GRAPHS}


def title(peer: str) -> str:
    return TITLES.get(peer) or NAMES.get(peer, peer)


def setting(row: Row) -> str:
    """Size and precision: "473×473, float32"."""
    size = row["shape"].split(", ")[1].split("x", 2)[2]
    return f"{size.replace('x', '×')}, {row['dtype']}"


def cell(row: Row, peer: str) -> str:
    """Milliseconds, and the ratio to the stock graph in the same runtime, or to the better stock PyTorch."""
    medians = {name: timing["median"] for name, timing in row.get("milliseconds", {}).items()}
    if peer not in medians:
        return NOTHING
    base = medians.get(peer.replace("reduced", "stock")) if peer in NAMES else None
    if peer not in NAMES:
        base = min((medians[name] for name in (EAGER, COMPILE) if name in medians), default=None)
    ratio = "" if base is None or base == medians[peer] else f" ({times(base / medians[peer])})"
    return f"{short(medians[peer])}{ratio}"


def runtimes(files: Sequence[File]) -> str:
    """A line for each peer, a column for each size and precision."""
    return region(*(_table(file) for file in files))


def _table(file: File) -> str:
    rows = file["rows"]
    peers = list(dict.fromkeys(peer for row in rows for peer in row.get("milliseconds", {})))
    columns = [
        ("ms", "l", lambda peer: title(peer["name"])),
        *((setting(row), "r", lambda peer, row=row: cell(row, peer["name"])) for row in rows),
    ]
    memory = [("peak memory", *columns[0][1:]), *((setting(row), "r", partial(_memory, row)) for row in rows)]
    skipped = {reason for row in rows for reason in row.get("skipped", {}).values()}
    text = (
        f"One image to labels, {rows[0]['shape'].split(', ')[0]}, 19 classes, one thread, random weights; processor "
        f"time, medians of {rounds(rows)} rounds, all in turn. In brackets, how many times faster: than the better of "
        "stock eager and `torch.compile`; in another runtime, than the stock graph in it."
    )
    kept = (
        "Memory that a call takes beside the network, in a process of its own: resident memory at its highest, of the "
        "second call in PyTorch, of the first one in runtimes that keep what they have had."
    )
    more = "".join(f" {reason}." for reason in sorted(skipped))
    picture = f"![Inference in other runtimes]({file['name']}.png)"
    lines = [{"name": peer} for peer in peers]
    return region(
        picture,
        table(columns, lines),
        text + more,
        table(memory, lines) if any(row.get("peak_bytes") for row in rows) else "",
        kept,
        *failures(rows),
        machine_lines(file, rows),
    )


def _memory(row: Row, peer: Row) -> str:
    return megabytes(row.get("peak_bytes", {}).get(peer["name"]))


def scales(files: Sequence[File]) -> str:
    """Evaluation over scales: a line for each project's way and image."""
    return region(*(_scales(file) for file in files))


def _scales(file: File) -> str:
    rows = file["rows"]
    columns = (
        ("image", "l", lambda row: row["shape"].replace("x", "×")),
        ("", "l", lambda row: title(row["peer"])),
        ("time", "r", lambda row: milliseconds(row["time"]["median"])),
        ("time / ours", "r", lambda row: times(row["ratio"].get(row["peer"]))),
        ("peak memory", "r", lambda row: megabytes(row.get("peak_bytes", {}).get(row["peer"]))),
        ("memory / ours", "r", _memory_ratio),
    )
    text = (
        "One image at six scales and mirrored, to labels, behind a network that costs nothing; processor time of "
        f"one thread, medians of {rounds(rows)} rounds, the variants in turn. Peak memory is what a "
        "call takes beside the image."
    )
    return region(table(columns, by_peer(rows)), *failures(rows), f"{text}\n{machine_lines(file, rows)}")


def _memory_ratio(row: Row) -> str:
    peaks = row.get("peak_bytes", {})
    both = {row["peer"], OURS} <= set(peaks)
    return times(peaks[row["peer"]] / peaks[OURS]) if both else NOTHING


def figure(file: File) -> Figure:
    """A bar for each peer, a column for each size and precision."""
    from matplotlib import pyplot

    rows = file["rows"]
    drawn, axes = pyplot.subplots(
        1, len(rows), figsize=(2.6 * len(rows) + 2.4, 3.4), layout="constrained", squeeze=False, sharey=True
    )
    peers = list(dict.fromkeys(peer for row in rows for peer in row.get("milliseconds", {})))
    for part, row in zip(axes[0], rows, strict=True):
        for position, peer in enumerate(reversed(peers)):
            timing = row["milliseconds"].get(peer)
            if timing is not None:
                ours = "pspnet_fast" in peer or "reduced" in peer
                part.barh(position, timing["median"], color="#d1495b" if ours else "#8a8f98")
        part.set_title(setting(row))
        part.set_xlabel("ms")
        part.set_yticks(range(len(peers)), [title(peer).replace("*", "").replace("`", "") for peer in reversed(peers)])
    return drawn

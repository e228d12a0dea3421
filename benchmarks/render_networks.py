"""The tables of whole networks: batches and memory, recomputation in backward, other runtimes, scales."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from benchmarks.markdown import (
    NOTHING,
    TITLES,
    Column,
    File,
    Row,
    better,
    by_peer,
    each_file,
    failures,
    machine_lines,
    median_time,
    megabytes,
    milliseconds,
    of_peer,
    region,
    rounds,
    section,
    short,
    spread,
    table,
    times,
)
from benchmarks.memory import Line
from benchmarks.peers import EAGER, OURS
from benchmarks.render import SPREAD
from benchmarks.runtimes import PEERS as RUNTIME_PEERS
from benchmarks.runtimes import RUNTIMES
from pspnet_fast.nn.recompute import RECOMPUTE

NAMES = {EAGER: "stock PyTorch, eager"} | {mode: f"`model.checkpoint={mode}`" for mode in RECOMPUTE}
PEERS = {RECOMPUTE[0]: OURS}  # what the results of a GPU call it


# ---- memory ----------------------------------------------------------------------------------------------------------


def batch_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The largest batch in each memory."""

    memories = dict.fromkeys(memory for row in rows for memory in row["largest_batch"])
    cells = {memory: of_peer(lambda batch: str(batch or "none"), "largest_batch", memory) for memory in memories}
    return tuple((f"largest batch in {memory} GB", "r", cell) for memory, cell in cells.items())


@each_file
def end_to_end(file: File) -> str:
    """A row for each network, mode and variant."""
    rows, row = file["rows"], file["rows"][0]
    columns: tuple[Column, ...] = (
        ("network", "l", lambda row: f"PSPNet{row['layers']}"),
        ("", "l", lambda row: row["mode"]),
        ("with", "l", lambda row: TITLES[row["peer"]]),
        ("images a second", "r", of_peer(short, "images_per_second")),
        (SPREAD, "r", lambda row: f"{median_time(row['time'])} ({spread(row)})"),
        ("peak memory", "r", of_peer(megabytes, "peak_bytes")),
        *batch_columns(rows),
    )
    batches = " or ".join(dict.fromkeys(" and ".join(map(str, row["memory_batches"])) for row in rows))
    precision = "bfloat16 autocast" if row["dtype"] == "bfloat16" else row["dtype"]
    text = (
        f"{row['batch']} crops of {row['size']}×{row['size']}, {row['classes']} classes, {row['layout']}, "
        f"{precision}; training: forward, both losses, backward; inference: labels at full size. "
        "{rounds} rounds, the variants in turn. Peak memory is what a call takes on top of network, images and "
        f"labels. The largest batch follows from a line through the peaks at {batches} images, "
        "with weights, gradients, SGD's momentum, images and labels counted."
    )
    return section(file, rows, columns, text, lines=by_peer(rows))


def recompute(files: Sequence[File]) -> str:
    """A line for each variant, and how far a GPU's allocator is from the counted tensors."""
    gpus = [file for file in files if file["name"].startswith("gpu_")]
    return region(*(_recompute(file, gpus) for file in files if file not in gpus))


def _recompute(file: File, gpus: Sequence[File]) -> str:
    (row,) = file["rows"]

    def values(entry: str) -> dict[str, float]:
        return {peer: value["median"] if isinstance(value, dict) else value for peer, value in row[entry].items()}

    def compared(title: str, entry: str, text: Callable[[float], str], ratio: str, base: str) -> tuple[Column, ...]:
        """A variant's value, and its ratio to that of ``base``."""
        found = values(entry)
        return (
            (title, "r", lambda row: text(found[row["peer"]])),
            (ratio, "r", lambda row: f"{found[row['peer']] / found[base]:.2f}"),
        )

    columns: tuple[Column, ...] = (
        ("a training step", "l", lambda row: NAMES[row["peer"]]),
        *compared("time", "milliseconds", milliseconds, "/ none", "none"),
        *compared("peak memory", "peak_bytes", megabytes, "/ stock", EAGER),
        *compared("tensors", "tensor_bytes", megabytes, "/ stock ", EAGER),
        *batch_columns([row]),
    )
    sizes = " and ".join(next(iter(row["tensor_bytes_at"].values())))
    text = (
        f"A training step of {row['shape'].replace('x', '×')}, in float32. Medians of {{rounds}} rounds, the variants "
        "in turn. Peak memory: what a process holds on top of network, images and labels. Tensors: the most bytes of a "
        "step's tensors on top of network, images and labels, counted without computing. The largest batch is of "
        f"bfloat16 autocast, channels_last, by its tensors at {sizes} images, with weights, gradients, momentum, "
        "images and labels. What operators allocate inside, and a GPU's libraries, come on top."
    )
    note = " ".join([text.format(rounds=rounds([row])), *_on_gpus(row, gpus)])
    return region(table(columns, by_peer([row])), note, machine_lines(file, [row]))


def _on_gpus(row: Row, gpus: Sequence[File]) -> Iterator[str]:
    """What a GPU's allocator measured, beside what follows from the tensors."""
    network, _, rest = row["shape"].partition(", ")
    same = re.compile(rf"{network}, (\d+){re.escape(rest.lstrip('0123456789'))}")
    for gpu, there in ((file, found) for file in gpus for found in file["rows"]):
        other = same.fullmatch(there.get("shape", ""))
        if other is None or (there["operator"], there["dtype"]) != ("training_step", "bfloat16"):
            continue
        parts = []
        for peer, at in row["tensor_bytes_at"].items():
            line = Line.through(at)
            if (measured := there["peak_bytes"].get(PEERS.get(peer, peer))) is not None:
                parts.append(f"{NAMES[peer]} {gigabytes(measured)}, tensors {gigabytes(line.at(int(other[1])))}")
        device, batch = gpu["machine"]["device"], other[1]
        yield f"The allocator of an {device} measured in a step of {batch} images: {'; '.join(parts)}."


def gigabytes(size: float) -> str:
    return f"{short(size / 1e9)} GB"


# ---- inference -------------------------------------------------------------------------------------------------------


def title(peer: str) -> str:
    runtime, _, graph = peer.partition(" ")
    return f"{RUNTIMES[runtime]}, {graph} graph" if runtime in RUNTIMES else TITLES.get(peer, peer)


def setting(row: Row) -> str:
    """Size and precision: "473×473, float32"."""
    size = row["shape"].split(", ")[1].split("x", 2)[2]
    return f"{size.replace('x', '×')}, {row['dtype']}"


def runtime_cell(row: Row, peer: str) -> str:
    """Milliseconds, and the ratio to the stock graph in the same runtime, or to the better stock PyTorch."""
    found = {line["peer"]: line["time"]["median"] for line in by_peer([row])}
    if peer not in found:
        return NOTHING
    base = found.get(peer.replace("reduced", "stock")) if peer in RUNTIME_PEERS else better(found)
    ratio = "" if base is None or base == found[peer] else f" ({times(base / found[peer])})"
    return f"{short(found[peer])}{ratio}"


@each_file
def runtimes(file: File) -> str:
    """A line for each peer, a column for each size and precision: times, then memory."""

    def table_of(head: str, cell: Callable[[Row, str], str]) -> str:
        lines = [{"peer": peer} for peer in dict.fromkeys(line["peer"] for line in by_peer(rows))]
        columns = [(setting(row), "r", lambda line, row=row: cell(row, line["peer"])) for row in rows]
        return table([(head, "l", lambda line: title(line["peer"])), *columns], lines)

    rows = file["rows"]
    text = (
        f"One image to labels, {rows[0]['shape'].split(', ')[0]}, 19 classes, one thread, random weights; processor "
        f"time, medians of {rounds(rows)} rounds, all in turn. In brackets, how many times faster: than the better of "
        "stock eager and `torch.compile`; in another runtime, than the stock graph in it."
    )
    kept = (
        "Memory that a call takes beside the network, in a process of its own: resident memory at its highest, of the "
        "second call in PyTorch, of the first one in runtimes that keep what they have had."
    )
    skipped = {reason for row in rows for reason in row.get("skipped", {}).values()}
    return region(
        f"![Inference in other runtimes]({file['name']}.png)",
        table_of("ms", runtime_cell),
        " ".join([text, *(f"{reason}." for reason in sorted(skipped))]),
        table_of("peak memory", lambda row, peer: megabytes(row["peak_bytes"].get(peer))),
        kept,
        *failures(rows),
        machine_lines(file, rows),
    )


@each_file
def scales(file: File) -> str:
    """Evaluation over scales: a line for each project's way and image."""

    def memory_ratio(row: Row) -> str:
        sizes = row["peak_bytes"]
        return times(sizes[row["peer"]] / sizes[OURS] if {row["peer"], OURS} <= set(sizes) else None)

    columns: tuple[Column, ...] = (
        ("image", "l", lambda row: row["shape"].replace("x", "×")),
        ("", "l", lambda row: title(row["peer"])),
        ("time", "r", lambda row: median_time(row["time"])),
        ("time / ours", "r", of_peer(times, "ratio")),
        ("peak memory", "r", of_peer(megabytes, "peak_bytes")),
        ("memory / ours", "r", memory_ratio),
    )
    text = (
        "One image at six scales and mirrored, to labels, behind a network that costs nothing; processor time of "
        "one thread, medians of {rounds} rounds, the variants in turn. Peak memory is what a call takes beside the "
        "image."
    )
    return section(file, file["rows"], columns, text, lines=by_peer(file["rows"]))

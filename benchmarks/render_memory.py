"""The tables of memory: end to end, and what recomputation in backward saves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from benchmarks.markdown import (
    NOTHING,
    TITLES,
    Column,
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
    spread,
    table,
)
from benchmarks.memory import Line
from benchmarks.peers import EAGER, OURS
from benchmarks.render import SPREAD
from pspnet_fast.nn.recompute import RECOMPUTE

NAMES = {EAGER: "stock PyTorch, eager"} | {mode: f"`model.checkpoint={mode}`" for mode in RECOMPUTE}
PEERS = {RECOMPUTE[0]: OURS}  # what the results of a GPU call it


def batch_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The largest batch in each memory."""

    def cell(memory: str) -> Column:
        def text(row: Row) -> str:
            batch = row["largest_batch"][memory].get(row["peer"])
            return NOTHING if batch is None else str(batch or "none")

        return f"largest batch in {memory} GB", "r", text

    return tuple(map(cell, dict.fromkeys(memory for row in rows for memory in row["largest_batch"])))


def precision(row: Row) -> str:
    return "bfloat16 autocast" if row["dtype"] == "bfloat16" else row["dtype"]


def end_to_end(files: Sequence[File]) -> str:
    """Of each file a row for each network, mode and variant."""
    return region(*map(_end_to_end, files))


def _end_to_end(file: File) -> str:
    rows, row = file["rows"], file["rows"][0]
    columns: tuple[Column, ...] = (
        ("network", "l", lambda row: f"PSPNet{row['layers']}"),
        ("", "l", lambda row: row["mode"]),
        ("with", "l", lambda row: TITLES[row["peer"]]),
        ("images a second", "r", lambda row: short(row["images_per_second"][row["peer"]])),
        (SPREAD, "r", lambda row: f"{milliseconds(row['time']['median'])} ({spread(row)})"),
        ("peak memory", "r", lambda row: megabytes(row["peak_bytes"].get(row["peer"]))),
        *batch_columns(rows),
    )
    batches = " or ".join(dict.fromkeys(" and ".join(map(str, row["memory_batches"])) for row in rows))
    text = (
        f"{row['batch']} crops of {row['size']}×{row['size']}, {row['classes']} classes, {row['layout']}, "
        f"{precision(row)}; training: forward, both losses, backward; inference: labels at full size. "
        f"{rounds(rows)} rounds, the variants in turn. Peak memory is what a call takes on top of network, images and "
        f"labels. The largest batch follows from a line through the peaks at {batches} images, "
        f"with weights, gradients, SGD's momentum, images and labels counted.\n"
    )
    return region(table(columns, by_peer(rows)), *failures(rows), text + machine_lines(file, rows))


def recompute(files: Sequence[File]) -> str:
    """A line for each variant, and how far a GPU's allocator is from the counted tensors."""
    gpus = [file for file in files if file["name"].startswith("gpu_")]
    return region(*(_recompute(file, gpus) for file in files if file not in gpus))


def _recompute(file: File, gpus: Sequence[File]) -> str:
    def ratio(entry: str, base: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            values = {peer: value["median"] if entry == "milliseconds" else value for peer, value in row[entry].items()}
            return f"{values[row['peer']] / values[base]:.2f}"

        return cell

    def size(entry: str) -> Callable[[Row], str]:
        return lambda row: megabytes(row[entry][row["peer"]])

    (row,) = file["rows"]
    columns: list[Column] = [("a training step", "l", lambda row: NAMES[row["peer"]])]
    text = f"A training step of {row['shape'].replace('x', '×')}, in float32."
    if "milliseconds" in row:
        columns += [
            ("time", "r", lambda row: milliseconds(row["milliseconds"][row["peer"]]["median"])),
            ("/ none", "r", ratio("milliseconds", "none")),
            ("peak memory", "r", size("peak_bytes")),
            ("/ stock", "r", ratio("peak_bytes", EAGER)),
        ]
        text += (
            f" Medians of {rounds([row])} rounds, the variants in turn. Peak memory: what a process holds on top of "
            "network, images and labels."
        )
    columns += [("tensors", "r", size("tensor_bytes")), ("/ stock ", "r", ratio("tensor_bytes", EAGER))]
    sizes = " and ".join(next(iter(row["tensor_bytes_at"].values())))
    text += (
        " Tensors: the most bytes of a step's tensors on top of network, images and labels, counted without computing. "
        f"The largest batch is of bfloat16 autocast, channels_last, by its tensors at {sizes} images, with weights, "
        "gradients, momentum, images and labels. What operators allocate inside, and a GPU's libraries, come on top."
    )
    peers = [{**row, "peer": peer} for peer in row["tensor_bytes"]]
    found = table([*columns, *batch_columns([row])], peers)
    return region(found, " ".join([text, *_on_gpus(row, gpus)]), machine_lines(file, [row]))


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
            line = Line.through({int(batch): size for batch, size in at.items()})
            if (measured := there["peak_bytes"].get(PEERS.get(peer, peer))) is not None:
                parts.append(f"{NAMES[peer]} {gigabytes(measured)}, tensors {gigabytes(line.at(int(other[1])))}")
        device, batch = gpu["machine"]["device"], other[1]
        yield f"The allocator of an {device} measured in a step of {batch} images: {'; '.join(parts)}."


def gigabytes(size: float) -> str:
    return f"{short(size / 1e9)} GB"

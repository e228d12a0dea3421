"""The tables of whole networks: batches and memory, recomputation in backward, other runtimes, scales."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks import markdown as md
from benchmarks.case import line_through
from benchmarks.markdown import Column, File, Row, Table, from_files, measured_by
from benchmarks.peers import EAGER, OURS
from benchmarks.render import SPREAD
from benchmarks.runtimes import PEERS as RUNTIME_PEERS
from benchmarks.runtimes import RUNTIMES
from pspnet_fast.nn.resnet import RECOMPUTE

NAMES = {EAGER: "stock PyTorch, eager"} | {mode: f"`model.checkpoint={mode}`" for mode in RECOMPUTE}
PEERS = {RECOMPUTE[0]: OURS}  # what the results of a GPU call it


# ---- memory ----------------------------------------------------------------------------------------------------------


def batch_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The largest batch in each memory."""
    memories = dict.fromkeys(memory for row in rows for memory in row["largest_batch"])
    cells = {memory: md.of_peer(lambda batch: str(batch or "none"), "largest_batch", memory) for memory in memories}
    return tuple((f"largest batch in {memory} GB", "r", cell) for memory, cell in cells.items())


@from_files("end_to_end_cpu", "end_to_end_gpu", command=measured_by("end_to_end"))
def end_to_end(file: File) -> str:
    """A row for each network, mode and variant."""
    rows, row = file["rows"], file["rows"][0]
    columns = (
        ("network", "l", lambda row: f"PSPNet{row['layers']}"),
        ("", "l", lambda row: row["mode"]),
        ("with", "l", lambda row: md.TITLES[row["peer"]]),
        ("images a second", "r", md.of_peer(md.short, "images_per_second")),
        (SPREAD, "r", lambda row: f"{md.median_time(row['time'])} ({md.spread(row)})"),
        ("peak memory", "r", md.of_peer(md.megabytes, "peak_bytes")),
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
    return md.section(file, rows, columns, text, lines=md.by_peer(rows))


def _recompute(files: Sequence[File]) -> str:
    """A line for each variant, and how far a GPU's allocator is from the counted tensors."""
    gpus = [file for file in files if file["name"].startswith("gpu_")]
    return md.region(*(recomputed(file, gpus) for file in files if file not in gpus))


def recomputed(file: File, gpus: Sequence[File] = ()) -> str:
    (row,) = file["rows"]

    def compared(
        title: str, found: Mapping[str, float], text: Callable[[float], str], ratio: str, base: str
    ) -> tuple[Column, ...]:
        """A variant's value, and its ratio to that of ``base``."""
        return (
            (title, "r", lambda line: text(found[line["peer"]])),
            (ratio, "r", lambda line: f"{found[line['peer']] / found[base]:.2f}"),
        )

    columns = (
        ("a training step", "l", lambda line: NAMES[line["peer"]]),
        *compared("time", md.medians(row), md.milliseconds, "/ none", "none"),
        *compared("peak memory", row["peak_bytes"], md.megabytes, "/ stock", EAGER),
        *compared("tensors", row["tensor_bytes"], md.megabytes, "/ stock ", EAGER),
        *batch_columns([row]),
    )
    sizes = " and ".join(next(iter(row["tensor_bytes_at"].values())))
    text = (
        f"A training step of {row['shape'].replace('x', '×')}, in float32. Medians of {md.rounds([row])} rounds, the "
        "variants in turn. Peak memory: what a process holds on top of network, images and labels. Tensors: the most "
        "bytes of a step's tensors on top of network, images and labels, counted without computing. The largest batch "
        f"is of bfloat16 autocast, channels_last, by its tensors at {sizes} images, with weights, gradients, momentum, "
        "images and labels. What operators allocate inside, and a GPU's libraries, come on top."
    )
    note = " ".join([text, *_on_gpus(row, gpus)])
    return md.region(md.table(columns, md.by_peer([row])), note, md.machine_lines(file, [row]))


recompute = Table(("recompute_cpu", "gpu_*"), "python -m benchmarks.recompute --save", _recompute)


def _on_gpus(row: Row, gpus: Sequence[File]) -> Iterator[str]:
    """What a GPU's allocator measured, beside what follows from the tensors."""
    network, _, rest = row["shape"].partition(", ")
    same = re.compile(rf"{network}, (\d+){re.escape(rest.lstrip('0123456789'))}")
    for gpu, there in ((file, found) for file in gpus for found in file["rows"]):
        other = same.fullmatch(there.get("shape", ""))
        if other is None or (there["operator"], there["dtype"]) != ("training_step", "bfloat16"):
            continue
        parts, batch = [], int(other[1])
        for peer, at in row["tensor_bytes_at"].items():
            each, fixed = line_through(at)
            if (measured := there["peak_bytes"].get(PEERS.get(peer, peer))) is not None:
                parts.append(f"{NAMES[peer]} {gigabytes(measured)}, tensors {gigabytes(fixed + batch * each)}")
        device = gpu["machine"]["device"]
        yield f"The allocator of an {device} measured in a step of {batch} images: {'; '.join(parts)}."


def gigabytes(size: float) -> str:
    return f"{md.short(size / 1e9)} GB"


# ---- inference -------------------------------------------------------------------------------------------------------


def title(peer: str) -> str:
    runtime, _, graph = peer.partition(" ")
    return f"{RUNTIMES[runtime]}, {graph} graph" if runtime in RUNTIMES else md.TITLES.get(peer, peer)


def setting(row: Row) -> str:
    """Size and precision: "473×473, float32"."""
    size = row["shape"].split(", ")[1].split("x", 2)[2]
    return f"{size.replace('x', '×')}, {row['dtype']}"


def runtime_cell(row: Row, peer: str) -> str:
    """Milliseconds, and the ratio to the stock graph in the same runtime, or to the better stock PyTorch."""
    found = {name: time["median"] for name, time in row["milliseconds"].items()}
    if peer not in found:
        return md.NOTHING
    base = found.get(peer.replace("reduced", "stock")) if peer in RUNTIME_PEERS else md.better(found)
    ratio = "" if base is None or base == found[peer] else f" ({md.times(base / found[peer])})"
    return f"{md.short(found[peer])}{ratio}"


@from_files("runtimes_cpu", command=measured_by("runtimes"))
def runtimes(file: File) -> str:
    """A line for each peer, a column for each size and precision: times, then memory."""

    def table_of(head: str, cell: Callable[[Row, str], str]) -> str:
        lines = [{"peer": peer} for peer in dict.fromkeys(line["peer"] for line in md.by_peer(rows))]
        columns = [(setting(row), "r", lambda line, row=row: cell(row, line["peer"])) for row in rows]
        return md.table([(head, "l", lambda line: title(line["peer"])), *columns], lines)

    rows = file["rows"]
    text = (
        f"One image to labels, {rows[0]['shape'].split(', ')[0]}, 19 classes, one thread, random weights; processor "
        f"time, medians of {md.rounds(rows)} rounds, all in turn. In brackets, how many times faster: than the better "
        "of stock eager and `torch.compile`; in another runtime, than the stock graph in it."
    )
    kept = (
        "Memory that a call takes beside the network, in a process of its own: resident memory at its highest, of the "
        "second call in PyTorch, of the first one in runtimes that keep what they have had."
    )
    skipped = {reason for row in rows for reason in row.get("skipped", {}).values()}
    return md.region(
        f"![Inference in other runtimes]({file['name']}.png)",
        table_of("ms", runtime_cell),
        " ".join([text, *(f"{reason}." for reason in sorted(skipped))]),
        table_of("peak memory", lambda row, peer: md.megabytes(row["peak_bytes"].get(peer))),
        kept,
        *md.failures(rows),
        md.machine_lines(file, rows),
    )


@from_files("scales_cpu", "scales_gpu", command=measured_by("scales"))
def scales(file: File) -> str:
    """Evaluation over scales: a line for each project's way and image."""
    columns = (
        ("image", "l", lambda row: row["shape"].replace("x", "×")),
        ("", "l", lambda row: title(row["peer"])),
        ("time", "r", lambda row: md.median_time(row["time"])),
        ("time / ours", "r", md.of_peer(md.times, "ratio")),
        ("peak memory", "r", md.of_peer(md.megabytes, "peak_bytes")),
        ("memory / ours", "r", lambda row: md.over_ours(md.peaks, row["peer"])(row)),
    )
    text = (
        "One image at six scales and mirrored, to labels, behind a network that costs nothing; processor time of "
        "one thread, medians of {rounds} rounds, the variants in turn. Peak memory is what a call takes beside the "
        "image."
    )
    return md.section(file, file["rows"], columns, text, lines=md.by_peer(file["rows"]))

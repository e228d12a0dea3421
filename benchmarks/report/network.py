"""Tables of the whole network, a line for each variant: what operators.py and end_to_end.py saved."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.markdown import (
    NOTHING,
    TITLES,
    Results,
    Row,
    failures,
    machine_line,
    megabytes,
    milliseconds,
    region,
    rounds,
    seconds,
    short,
    table,
)
from benchmarks.report.operators import measured_rows

SPREAD = "time, median (20th to 80th percentile)"


def training_step(files: Sequence[Results]) -> str:
    """A line for each number of classes and variant."""
    (results,) = files
    rows = measured_rows(results, "training_step")
    columns = {"": "l", "one training step with": "l", SPREAD: "r", "time / ours": "r", "peak memory": "r"}
    lines = []
    for row in rows:
        _, classes = row["shape"].rsplit(", ", 1)
        for name, time in row["milliseconds"].items():
            spread = f"{seconds(time['p20'])} to {seconds(time['p80'])}"
            lines.append(
                [
                    classes,
                    TITLES[name],
                    f"{seconds(time['median'])} s ({spread})",
                    f"{row['ratio'][name]:.2f}",
                    megabytes(row["peak_bytes"].get(name)),
                ]
            )
    network, _ = rows[0]["shape"].rsplit(", ", 1)
    text = (
        f"{network}, {rows[0]['layout']}, {rows[0]['dtype']}: forward, both losses, backward; {rounds(rows)} rounds, "
        "the variants in turn. Peak memory is what a step takes on top of network, images and labels, in a process of "
        "its own.\n" + machine_line(results["machine"])
    )
    return region(table(columns, lines), *failures(rows), text)


def end_to_end(files: Sequence[Results]) -> str:
    """Of each file a row for each network, mode and variant."""
    return region(*(_end_to_end(results) for results in files))


def _end_to_end(results: Results) -> str:
    rows = results["rows"]
    memories = list(dict.fromkeys(memory for row in rows for memory in row["largest_batch"]))
    columns = {"network": "l", "": "l", "with": "l", "images a second": "r", SPREAD: "r", "peak memory": "r"}
    columns |= {f"largest batch in {memory} GB": "r" for memory in memories}
    lines = [
        [
            f"PSPNet{row['layers']}",
            row["mode"],
            TITLES[peer],
            short(row["images_per_second"][peer]),
            f"{milliseconds(time['median'])} ({short(time['p20'])} to {short(time['p80'])})",
            megabytes(row["peak_bytes"].get(peer)),
            *(_batch_cell(row, memory, peer) for memory in memories),
        ]
        for row in rows
        for peer, time in row["milliseconds"].items()
    ]
    row = rows[0]
    batches = " or ".join(dict.fromkeys(" and ".join(map(str, row["memory_batches"])) for row in rows))
    precision = "bfloat16 autocast" if row["dtype"] == "bfloat16" else row["dtype"]
    text = (
        f"{row['batch']} crops of {row['size']}×{row['size']}, {row['classes']} classes, {row['layout']}, {precision}; "
        "training: forward, both losses, backward; inference: labels at full size. "
        f"{rounds(rows)} rounds, the variants in turn. Peak memory is what a call takes on top of network, images and "
        f"labels. The largest batch follows from a line through the peaks at {batches} images, "
        f"with weights, gradients, SGD's momentum, images and labels counted{_tried(rows)}.\n"
    )
    return region(table(columns, lines), *failures(rows), text + machine_line(results["machine"]))


def _batch_cell(row: Row, memory: str, peer: str) -> str:
    """The computed batch, and where it was tried, what fitted and what did not."""
    batch = row["largest_batch"][memory].get(peer)
    if batch is None:
        return NOTHING
    tried = row.get("largest_tried", {}).get(memory, {}).get(peer)
    if not tried:
        return str(batch) if batch else "none"
    words = [f"{found} {word}" for word, found in (("fits", tried["fits"]), ("fails", tried["fails"])) if found]
    return f"{batch} ({', '.join(words)})"


def _tried(rows: Sequence[Row]) -> str:
    return "; in brackets what was tried" if any(row.get("largest_tried") for row in rows) else ""

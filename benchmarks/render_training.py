"""The tables of trainings: fused and plain, the auxiliary loss's weight, other libraries' models; a GPU's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.markdown import (
    MEMORY,
    NOTHING,
    OPERATOR_AND_DIRECTION,
    REACHED,
    SHAPE,
    TIMES,
    Column,
    File,
    Row,
    each_file,
    failures,
    machine_line,
    machine_lines,
    median_of,
    medians,
    milliseconds,
    peaks,
    region,
    section,
    short,
    table,
    timed,
    times,
)
from benchmarks.peers import COMPILE, EAGER, OURS, OURS_COMPILED
from pspnet_fast.verification import KERNELS


@each_file
def training(file: File) -> str:
    """A picture, and for each dtype how far fused and control end from plain."""

    def gap(name: str) -> Column:
        return f"loss: {name}", "r", lambda row: f"{row['largest_difference'][name]:.2g}"

    def miou(name: str) -> Column:
        return f"mIoU: {name}", "r", lambda row: f"{100 * row['miou'][name][-1]:.2f}" if "miou" in row else NOTHING

    columns: tuple[Column, ...] = (
        ("training in", "l", lambda row: row["dtype"]),
        ("steps", "r", lambda row: str(row["steps"])),
        *map(gap, ("fused", "control")),
        *map(miou, ("plain", "fused", "control")),
    )
    rows, row = file["rows"], file["rows"][0]
    images = next((row["val_images"] for row in rows if "miou" in row), None)
    note = f" mIoU is in percent, of {images} validation images after the last step." if images else ""
    text = (
        f"{row['data']}: PSPNet{row['layers']} from scratch, {row['batch']} crops of {row['crop']}×{row['crop']}, SGD, "
        "the same weights, crops and dropout for all. Loss columns are the largest difference from the plain network's "
        f"in any step; the control is the plain network with its weights changed in the last digit.{note}\n"
    )
    picture = f"![Loss and mIoU of plain, fused and control]({file['name']}.png)"
    return region(picture, table(columns, rows), text + machine_lines(file, rows))


@each_file
def aux_weight(results: File) -> str:
    """What the weight of the auxiliary loss does to mIoU and main loss, over seeds."""

    def spread(key: str, scale: float, form: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            mean, low, high = (format(scale * row[key][name], form) for name in ("mean", "min", "max"))
            return f"{mean} ({low} to {high})"

        return cell

    columns: tuple[Column, ...] = (
        ("λ", "r", lambda row: f"{row['weight']:g}"),
        ("val mIoU, %", "r", spread("final_miou", 100, ".2f")),
        ("against λ = 0", "r", spread("final_miou_difference", 100, "+.2f")),
        ("main loss, mean over the run", "r", spread("mean_loss", 1, ".3f")),
        ("against λ = 0 ", "r", spread("mean_loss_difference", 1, "+.3f")),
    )
    config, seeds = results["config"], len(results["summary"]["seeds"])
    crop = config["data"]["crop"]
    text = (
        f"{results['data']}: PSPNet{config['model']['layers']} from random weights, {config['run']['max_steps']} steps "
        f"of {config['optim']['batch_size']} crops of {crop}×{crop}; mean (least to most) of {seeds} "
        f"seed{'s' * (seeds > 1)}. The runs of a seed differ in λ alone: weights, crops and dropout are the same, and "
        "differences are taken seed by seed.\n"
    )
    picture = f"![Loss and mIoU for each weight of the auxiliary loss]({results['name']}.png)"
    return region(picture, table(columns, results["summary"]["weights"]), text + machine_line(results["machine"]))


@each_file
def accelerate(file: File) -> str:
    """A training step of other libraries' models, as they are and accelerated; those of most classes first."""

    def classes(row: Row) -> int:
        return int(row["shape"].rsplit(", ", 1)[1].removesuffix(" classes"))

    def over_ours(values: Callable[[Row], Mapping[str, float]], peer: str) -> Callable[[Row], str]:
        return lambda row: times(values(row)[peer] / values(row)[OURS] if peer in values(row) else None)

    def memory(row: Row) -> str:
        found = peaks(row)
        sizes = (short(found[peer] / 1e6) if peer in found else NOTHING for peer in (EAGER, COMPILE, OURS))
        return f"{' : '.join(sizes)} MB"

    columns = (
        ("model", "l", lambda row: row["model"]),
        ("classes", "r", lambda row: str(classes(row))),
        *TIMES[:3],
        ("**ours**, compiled", "r", median_of(OURS_COMPILED)),
        ("eager / ours", "r", over_ours(medians, EAGER)),
        ("compile / ours", "r", over_ours(medians, COMPILE)),
        ("peak memory, eager : compile : ours", "r", memory),
        ("eager / ours ", "r", over_ours(peaks, EAGER)),
    )

    rows = sorted(file["rows"], key=classes, reverse=True)
    batch, _, *size = rows[0]["shape"].split(", ")[0].split("x")
    autocast = "" if rows[0]["dtype"] == "float32" else f" under autocast in {rows[0]['dtype']}"
    text = (
        f"Forward, loss at full resolution and backward of {batch} images of {'×'.join(size)}{autocast}, random "
        "weights; medians of {rounds} rounds, the variants in turn. Ours: the same model after "
        "`pspnet_fast.accelerate(model)`; compiled: `torch.compile` of the step inside `pspnet_fast.fuse()`. "
        "– : not measured."
    )
    return section(file, rows, columns, text, lines=timed(rows))


@each_file
def gpu(file: File) -> str:
    """What was tested, the operators' rows, and the training of fused and plain operators."""

    def graph(row: Row) -> str:
        return milliseconds(row.get("graph_milliseconds", {}).get(row.get("ours"), {}).get("median"))

    columns = (OPERATOR_AND_DIRECTION, SHAPE, *TIMES, ("as a CUDA graph, ours", "r", graph), REACHED, MEMORY)
    rows, machine = file["rows"], file["machine"]
    tests = "; ".join(f"{name} {_gpu_tests(file, name)}" for name in KERNELS)
    trained = "; ".join(map(_gpu_training, file.get("training", [])))
    return region(
        f"### {machine['device']}",
        table(columns, rows) if rows else "",
        *failures(rows),
        f"Tests by back end: {tests}.",
        f"Training: {trained}." if trained else "",
        _gpu_line(machine),
    )


@each_file
def gpu_network(file: File) -> str:
    """A training step and inference of the whole network."""
    columns = (OPERATOR_AND_DIRECTION, SHAPE, *TIMES, ("**ours**, compiled", "r", median_of(OURS_COMPILED)), MEMORY)
    rows = [row for row in file["rows"] if row["operator"] in ("training_step", "inference")]
    return region(table(columns, rows), _gpu_line(file["machine"])) if rows else ""


def _gpu_tests(file: File, kernels: str) -> str:
    section = file["sections"].get(kernels, {"status": "not run"})
    counts = section.get("counts", {})
    if not any(counts.values()):  # of a run that was stopped there are none
        return str(section["status"])
    return f"{counts['passed']} passed, {counts['failed']} failed (commit {section['machine']['commit']})"


def _gpu_line(machine: Row) -> str:
    return (
        f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}, "
        f"triton {machine['triton']}, commit {machine['commit']}, {machine['date']}."
    )


def _gpu_training(row: Row) -> str:
    """The largest difference of the losses, mIoU and speed."""
    text = f"losses in {row['dtype']} differ by {row['largest_difference']['fused']:.1e} at most"
    speed = row.get("images_per_second", {})
    for name, values in row.get("miou", {}).items():
        if name != "steps":
            text += f", {name} {values[-1]:.3f} mIoU" + (f" at {speed[name]:.0f} images a second" if speed else "")
    return text

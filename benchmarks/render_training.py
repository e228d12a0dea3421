"""The tables of trainings, fused and plain and with other weights of the auxiliary loss, and of a GPU's results."""

from __future__ import annotations

from benchmarks import markdown as md
from benchmarks.markdown import Cell, Column, File, Row, from_files
from pspnet_fast.report import KERNELS

# ---- trainings -------------------------------------------------------------------------------------------------------


@from_files("training_camvid", command="python -m benchmarks.compare_training --root data/camvid --save")
def training(file: File) -> str:
    """A picture, and for each dtype how far fused and control end from plain."""

    def gap(name: str) -> Column:
        return f"loss: {name}", "r", lambda row: f"{row['largest_difference'][name]:.2g}"

    def miou(name: str) -> Column:
        return f"mIoU: {name}", "r", lambda row: f"{100 * row['miou'][name][-1]:.2f}" if "miou" in row else md.NOTHING

    columns = (
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
    return md.region(picture, md.table(columns, rows), text + md.machine_lines(file, rows))


@from_files("aux_weight_camvid", command="python -m benchmarks.aux_weight --root data/camvid --save")
def aux_weight(results: File) -> str:
    """What the weight of the auxiliary loss does to mIoU and main loss, over seeds."""

    def spread(key: str, scale: float, form: str) -> Cell:
        def cell(row: Row) -> str:
            mean, low, high = (format(scale * row[key][name], form) for name in ("mean", "min", "max"))
            return f"{mean} ({low} to {high})"

        return cell

    columns = (
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
    table = md.table(columns, results["summary"]["weights"])
    return md.region(picture, table, text + md.machine_line(results["machine"]))


# ---- a GPU's results -------------------------------------------------------------------------------------------------

GPU = "python -m benchmarks.gpu --out runs/gpu --save"


@from_files("gpu_*", command=GPU)
def gpu(file: File) -> str:
    """What was tested, the operators' rows, and the training of fused and plain operators."""

    def graph(row: Row) -> str:
        return md.milliseconds(row.get("graph_milliseconds", {}).get(row.get("ours"), {}).get("median"))

    def tested(kernels: str) -> str:
        section = file["sections"].get(kernels, {"status": "not run"})
        counts = section.get("counts", {})
        if not any(counts.values()):  # of a run that was stopped there are none
            return f"{kernels} {section['status']}"
        commit = section["machine"]["commit"]
        return f"{kernels} {counts['passed']} passed, {counts['failed']} failed (commit {commit})"

    graphs = ("as a CUDA graph, ours", "r", graph)
    columns = (md.OPERATOR_AND_DIRECTION, md.SHAPE, *md.TIMES, graphs, md.REACHED, md.MEMORY)
    rows, machine = file["rows"], file["machine"]
    trained = "; ".join(map(_trained, file.get("training", [])))
    return md.region(
        f"### {machine['device']}",
        md.table(columns, rows) if rows else "",
        *md.failures(rows),
        f"Tests by back end: {'; '.join(map(tested, KERNELS))}.",
        f"Training: {trained}." if trained else "",
        _gpu_line(machine),
    )


@from_files("gpu_*", command=GPU)
def gpu_network(file: File) -> str:
    """A training step and inference of the whole network."""
    columns = (md.OPERATOR_AND_DIRECTION, md.SHAPE, *md.TIMES, md.OURS_COMPILED_TIME, md.MEMORY)
    rows = [row for row in file["rows"] if row["operator"] in ("training_step", "inference")]
    return md.region(md.table(columns, rows), _gpu_line(file["machine"])) if rows else ""


def _gpu_line(machine: Row) -> str:
    return (
        f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}, "
        f"triton {machine['triton']}, commit {machine['commit']}, {machine['date']}."
    )


def _trained(row: Row) -> str:
    """The largest difference of the losses, mIoU and speed."""
    text = f"losses in {row['dtype']} differ by {row['largest_difference']['fused']:.1e} at most"
    speed = row.get("images_per_second", {})
    for name, values in row.get("miou", {}).items():
        if name != "steps":
            text += f", {name} {values[-1]:.3f} mIoU" + (f" at {speed[name]:.0f} images a second" if speed else "")
    return text

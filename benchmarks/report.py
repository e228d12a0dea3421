"""Fills the README's tables from results/*.json.

    python -m benchmarks.report              rewrite README.md between its markers
    python -m benchmarks.report --check      only say whether it is up to date (exit code 1: it is not)

A table stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->`` and comes from the file that
:data:`TABLES` names. No number enters the README in another way.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ROOT

README = ROOT / "README.md"
OURS = "pspnet_fast"
TITLES = {"eager": "stock PyTorch, eager", "compile": "stock PyTorch, `torch.compile`", OURS: "**pspnet_fast**"}

_REGION = re.compile(r"(<!-- benchmark:(\w+) -->\n)(.*?)(<!-- /benchmark -->)", re.DOTALL)


def training_step_table(results: Mapping[str, Any]) -> str:
    """Markdown of what benchmarks/training_step.py saved: a row for each number of classes and variant."""
    lines = [
        "| classes | one training step with | time, median (20th to 80th percentile) | time / ours | peak memory |",
        "|---:|:---|---:|---:|---:|",
    ]
    for row in results["rows"]:
        ours = row["milliseconds"][OURS]["median"]
        for name, time in row["milliseconds"].items():
            spread = f"{_seconds(time['p20'])} to {_seconds(time['p80'])}"
            lines.append(
                f"| {row['classes']} | {TITLES.get(name, name)} | {_seconds(time['median'])} s ({spread}) "
                f"| {time['median'] / ours:.2f} | {row['peak_megabytes'][name]:.0f} MB |"
            )
    return "\n".join([*lines, "", _conditions(results), ""])


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.2f}" if milliseconds < 1e4 else f"{milliseconds / 1e3:.1f}"


def _conditions(results: Mapping[str, Any]) -> str:
    """What was run, where, and on which sources."""
    row, machine = results["rows"][0], results["machine"]
    rounds = row["milliseconds"][OURS]["rounds"]
    layout = "channels_last" if row["channels_last"] else "NCHW"
    precision = "bfloat16 autocast" if row["bf16"] else "float32"
    return (
        f"PSPNet{row['layers']}, {row['batch']} crops of {row['size']}×{row['size']}, {layout}, {precision}: forward, "
        f"both losses, backward; {rounds} rounds, the variants in turn. Peak memory is what a step takes on top of "
        "network, images and labels, in a process of its own.\n" + _machine(machine)
    )


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, Python {machine['python']}, "
        f"commit {machine['commit']}, {machine['date']}."
    )


def cross_entropy_table(results: Mapping[str, Any]) -> str:
    """Markdown of what benchmarks/operators.py saved of the cross-entropies: a row for each case."""
    lines = [
        "| both losses, forward and backward | eager | `torch.compile` | **ours** | the better / ours "
        "| without page faults | extra memory, eager : ours |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    kept = {row["case"]: row for row in results["rows"] if row["allocator"] == "no page faults"}
    for row in results["rows"]:
        if row["operator"] != "dual_cross_entropy" or row["case"] not in kept or row["allocator"] != "default":
            continue
        median = {name: timing["median"] for name, timing in row["milliseconds"].items()}
        memory = {name: size / 1e6 for name, size in row["peak_bytes"].items()}
        name = ", ".join(
            [row["shape"].replace("->", "→"), row["layout"], *([row["logits"]] if "logits" in row else [])]
        )
        times = " | ".join(f"{_short(median[peer])} ms" for peer in ("eager", "compile", row["ours"]))
        lines.append(
            f"| {name} | {times} | {_faster(row)} | {_faster(kept[row['case']])} "
            f"| {_short(memory['eager'])} : {_short(memory[row['ours']])} MB |"
        )
    rounds = results["rows"][0]["milliseconds"]["eager"]["rounds"]
    text = (
        f"Batch×classes×height×width → height×width, float32; medians of {rounds} rounds, the variants in turn. Eager "
        "pays much of its time for memory that the C library returns and takes anew, page by page: the last but one "
        "column is of a process that keeps its memory.\n" + _machine(results["machine"])
    )
    return "\n".join([*lines, "", text, ""])


def _faster(row: Mapping[str, Any]) -> str:
    return f"{min(row['ratio']['eager'], row['ratio']['compile']):.0f}×"


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


# Of each table of the README: the file in results/, and what renders it.
TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "training_step": ("training_step_cpu_r50_473_nchw_fp32", training_step_table),
    "cross_entropy": ("operators_cpu_dual_cross_entropy_upsample_argmax", cross_entropy_table),
}


def filled(readme: str, results: Path = RESULTS) -> str:
    """``readme`` with every table rendered anew; a region whose file does not exist is left empty.

    Raises:
        ValueError: a marker of an unknown table, or a table without its marker.
    """
    names = [match.group(2) for match in _REGION.finditer(readme)]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"the README has markers for {names}, the report has tables for {list(TABLES)}")

    def region(match: re.Match[str]) -> str:
        name, table_of = TABLES[match.group(2)]
        path = results / f"{name}.json"
        table = table_of(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ""
        return match.group(1) + table + match.group(4)

    return _REGION.sub(region, readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the README differs")
    options = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if before == after:
        print("README.md is up to date")
    elif options.check:
        sys.exit("README.md differs from benchmarks/results: run `python -m benchmarks.report`")
    else:
        README.write_text(after, encoding="utf-8")
        print("README.md is rewritten")


if __name__ == "__main__":
    main()

"""What the GPU command reads (pytest's reports, compute-sanitizer's), puts together, and keeps in the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import sysconfig
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results as provenance
from benchmarks.results import ROOT, Row, load, write_json
from pspnet_fast.files import replacing
from pspnet_fast.report import KERNELS, VERIFIED, read_verified

ROWS = ("operators_gpu", "network_gpu")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_FINDING = re.compile(r"^=+ +(Invalid|Misaligned|Uninitialized|Out-of-range|Error:|Warning:|Race|Potential|Barrier)")
_KERNEL = re.compile(r"(?:__global__[^;{]*?\b|^def )(\w+_kernel)\(", re.M)
# initcheck does not see what cuDNN and cuBLAS write in half precision: on an H100 and an H200 it named only kernels
# that read their results, cuDNN's and PyTorch's own batch normalisation among them. What it says of these is uncertain.
_UNCERTAIN = re.compile(r"Uninitialized.*\b(pyramid_conv_add_kernel|pyramid_levels_kernel|pyramid_conv_fwd_kernel)\b")


# ---- reports ---------------------------------------------------------------------------------------------------------


def count_junit(path: Path) -> dict[str, int]:
    """Passed, failed (with errors in fixtures) and skipped tests of a pytest run; all 0 where it left no report."""
    suites = list(ElementTree.parse(path).iter("testsuite")) if path.is_file() else []
    tests, errors, failures, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "errors", "failures", "skipped")
    )
    return {"passed": tests - errors - failures - skipped, "failed": errors + failures, "skipped": skipped}


def find_sanitizer() -> str | None:
    """compute-sanitizer of the toolkit, the PATH, the usual folder, or NVIDIA's wheels."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    packed = (str(file) for file in sorted(wheels.glob("**/compute-sanitizer")) if os.access(file, os.X_OK))
    return shutil.which("compute-sanitizer", path=path) or next(packed, None)


def read_sanitizer(report: Path, junit: Path) -> dict[str, Any]:
    """The verdict on one run: the tool found nothing in this project's kernels, and the program under it ended well.

    After a crash the tool reports no errors either, so pytest's own report must exist, with tests that passed.
    Errors that cannot be attributed count as this project's.
    """
    text = report.read_text(errors="replace") if report.is_file() else ""
    sources = [*(ROOT / "csrc" / "cuda").rglob("*.cu*"), *(ROOT / "pspnet_fast" / "triton").glob("*.py")]
    own = {name for path in sources for name in _KERNEL.findall(path.read_text(encoding="utf-8"))}
    lines, kernels = text.splitlines(), re.compile(rf"\b({'|'.join(own)})\b")
    starts = [index for index, line in enumerate(lines) if _FINDING.match(line)]
    blocks = [" ".join(part.lstrip("= ") for part in lines[index : index + 4]) for index in starts]
    ours = [block[:300] for block in blocks if kernels.search(block) and not _UNCERTAIN.search(block)]
    problems, counts = [*ours], count_junit(junit)
    summaries = [int(number) for number in _SUMMARY.findall(text)]
    if not summaries:
        problems.append("the tool printed no summary")
    elif sum(summaries) > len(blocks):
        problems.append(f"{sum(summaries) - len(blocks)} errors of unknown origin")
    if counts["failed"] or not counts["passed"]:
        problems.append(f"tests under the tool: {counts}")
    return {"errors": sum(summaries), "ours": len(ours), "others": len(blocks) - len(ours), "problems": problems}


# ---- the result ------------------------------------------------------------------------------------------------------


def assembled(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The result of all sections whose files lie in ``out``, of this run or an earlier one.

    Only what was measured on one device, with the kernels of one state, belongs together: a section or row that differs
    from the section written last is left out; sections are named in "left_out". The tests of a back end stand by
    themselves, on the same device: their section says which kernels they were.
    """
    files = [path for name in names if (path := out / f"{name}.json").is_file()]
    files.sort(key=lambda path: path.stat().st_mtime)
    sections = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    last = [name for name in sections if name not in KERNELS] or list(sections)
    machine = sections[last[-1]]["machine"] if last else None
    found = [name for name in names if name in sections]
    kept = {name: sections[name] for name in found if same(sections[name]["machine"], machine, name not in KERNELS)}
    return {
        "machine": machine,
        "sections": kept,
        "tests": {name: kept[name]["counts"] for name in KERNELS if "counts" in kept.get(name, {})},
        "left_out": [name for name in sections if name not in kept],
        "rows": rows_of(out, ROWS, machine),
        "training": rows_of(out, ["training_*"], machine),
    }


def same(one: Mapping[str, Any], other: Mapping[str, Any] | None, kernels: bool = True) -> bool:
    """Whether two machines are one, with the same ``kernels``."""
    keys = ("device", "digest") if kernels else ("device",)
    return other is not None and all(one.get(key) == other.get(key) for key in keys)


def rows_of(out: Path, files: Sequence[str], machine: Mapping[str, Any] | None) -> list[Row]:
    """The rows of result files that were measured on this machine with these kernels."""
    found = load(out, files)
    return [row for file in found for row in file["rows"] if same(file["machines"][row["machine"]], machine)]


def summary(result: Mapping[str, Any]) -> str:
    """The closing table."""
    machine = result["machine"] or {}
    lines = [
        f"{machine.get('device', 'no device')}, driver {machine.get('driver')}, torch {machine.get('torch')}, "
        f"triton {machine.get('triton')}, nvcc {machine.get('nvcc')}, commit {machine.get('commit')}"
    ]
    for name, section in result["sections"].items():
        lines.append(f"{name:<11} {section['status']:<12} {section['seconds']:>6.0f} s")
        lines += [f"{'':<11} - {problem[:200]}" for problem in section["problems"]]
    lines += [f"{name:<11} left out: another device, or other kernels" for name in result["left_out"]]
    for backend, counts in result["tests"].items():
        lines.append(f"tests on {backend}: " + ", ".join(f"{number} {word}" for word, number in counts.items()))
    ratios = [(row["operator"], row.get("ratio")) for row in result["rows"]]
    lines += [f"{operator} {ratio.get('eager', float('nan')):.2f}x" for operator, ratio in ratios if ratio]
    return "\n".join(lines)


def save(result: Mapping[str, Any], results: Path, verified: Path = VERIFIED) -> list[Path]:
    """Keep the result as ``results/gpu_DEVICE.json``, and enter the device in ``verified.json`` for all that passed.

    Raises:
        ValueError: there is nothing to keep, or it is of a CPU.
    """
    machine = result["machine"]
    if not machine or machine.get("driver") is None:
        raise ValueError("there is no result of a GPU in this folder")
    sections = {name: {**found, "machine": known(found["machine"])} for name, found in result["sections"].items()}
    result = {**result, "machine": known(machine), "sections": sections}
    device = machine["device"]
    name = re.sub(r"\W+", "_", device).strip("_").lower()
    paths = [write_json(results / f"gpu_{name}.json", result)]
    before = read_verified(verified)
    tested_again = {(device, kernels) for kernels in result["tests"]}
    others = [old for old in before if not tested_again.intersection((old["device"], name) for name in old["digest"])]
    entries = sorted([*others, *verified_entries(result)], key=lambda entry: (entry["device"], *entry["digest"]))
    if entries != before:
        with replacing(verified) as file:
            file.write(json.dumps(entries, indent=1) + "\n")
        paths.append(verified)
    return paths


def verified_entries(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``python -m pspnet_fast`` reports of this device: an entry for each kind of kernel whose tests all passed.

    "sanitizer" names the runs of compute-sanitizer over these kernels that found nothing.
    """
    sections = result["sections"]
    sanitizer = sections.get("sanitizer", {"runs": {}, "machine": {"digest": {}}})
    clean = [name for name, run in sanitizer["runs"].items() if not run["problems"]]
    entries = []
    for kernels, counts in result["tests"].items():
        machine = sections[kernels]["machine"]
        digest = machine["digest"][kernels]
        if not counts["passed"] or counts["failed"]:
            continue
        checked = sanitizer["machine"]["digest"].get(kernels) == digest
        entry = {key: machine[key] for key in ("device", "commit", "date", "torch", "triton", "driver")}
        entry |= {"digest": {kernels: digest}, "tests": {kernels: counts}}
        entries.append(entry | {"sanitizer": [name for name in clean if checked and name.split()[1] == kernels]})
    return entries


def known(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The machine with the commit that was run; where it knew none, this tree's, if its kernels are the same."""
    if machine["commit"] == "unknown" and machine["digest"] == provenance.digests():
        return {**machine, "commit": provenance.commit()}
    return dict(machine)

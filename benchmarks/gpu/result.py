"""The suite's result: sections put together, told in a table, and kept in the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import provenance
from benchmarks.measure import write_json
from pspnet_fast.verification import KERNELS, VERIFIED, read_verified

SCHEMA = 1
Section = dict[str, Any]


def assembled(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The result of all sections whose files lie in ``out``, of this run or an earlier one.

    Only what was measured on one device, with the kernels of one state, belongs together: a section that differs from
    the one written last is left out, and told in "left_out".
    """
    files = sorted((path for name in names if (path := out / f"{name}.json").is_file()), key=_modified)
    sections: dict[str, Section] = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    machine = next(
        (sections[path.stem]["machine"] for path in reversed(files) if "machine" in sections[path.stem]), None
    )
    left_out = {}
    for name, section in list(sections.items()):
        origin = section.get("machine")
        for key in ("device", "digest"):
            if machine and origin and origin.get(key) != machine.get(key):
                left_out[name] = f"{key} differs"
                sections.pop(name, None)
    return {
        "schema": SCHEMA,
        "machine": machine,
        "sections": {name: sections[name] for name in names if name in sections},
        "tests": sections.get("tests", {}).get("backends", {}),
        "rows": sections.get("bench", {}).get("rows", []),
        "left_out": left_out,
    }


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def summary(result: Mapping[str, Any]) -> str:
    """The closing table."""
    machine = result["machine"] or {}
    lines = [
        f"{machine.get('device', 'no device')}, driver {machine.get('driver')}, torch {machine.get('torch')}, "
        f"triton {machine.get('triton')}, nvcc {machine.get('nvcc')}, commit {machine.get('commit')}",
        f"{'section':<11} {'status':<12} {'seconds':>8}  findings",
    ]
    for name, section in result["sections"].items():
        lines.append(f"{name:<11} {section['status']:<12} {section['seconds']:>8.0f}  {told(name, section)}")
        lines += [f"{'':<11} - {problem[:200]}" for problem in section["problems"]]
    lines += [f"{name:<11} left out: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines)


def told(name: str, section: Mapping[str, Any]) -> str:
    """A section's findings in a few words."""
    if name == "build" and "built" in section:
        spilling = len(section["spilling"])
        return (
            f"{' and '.join(section['built']) or 'nothing'} in {section['compile_seconds']:.0f} s for "
            f"{section['architecture']}, {len(section['kernels'])} kernels, {spilling} with spills"
        )
    if name == "tests" and "backends" in section:
        return "; ".join(
            f"{backend} {counts['passed']} passed {counts['failed']} failed {counts['skipped']} skipped"
            for backend, counts in section["backends"].items()
        )
    if name == "sanitizer" and "runs" in section:
        return str(section.get("skipped") or f"{len(section['runs'])} runs")
    if name == "bench" and "rows" in section:
        return "; ".join(
            f"{row['operator']} {row['ratio'].get('eager', float('nan')):.2f}x"
            for row in section["rows"]
            if row.get("ratio")
        )
    if name == "train" and "roads" in section:
        return ", ".join(f"{road} mIoU {values['miou']:.3f}" for road, values in section["roads"].items())
    return ""


def save(result: Mapping[str, Any], results: Path, verified: Path = VERIFIED) -> list[Path]:
    """Keep the result as ``results/gpu_DEVICE.json``, and if its tests passed, enter the device in ``verified.json``.

    Raises:
        ValueError: there is nothing to keep, or it is of a CPU.
    """
    machine = result["machine"]
    if not machine or machine.get("driver") is None:
        raise ValueError("there is no result of a GPU in this folder")
    machine = {**machine, "commit": known_commit(machine)}
    name = re.sub(r"\W+", "_", machine["device"]).strip("_").lower()
    paths = [write_json(results / f"gpu_{name}.json", {**result, "machine": machine})]
    entry = verified_entry({**result, "machine": machine})
    if entry is not None:
        others = [old for old in read_verified(verified) if old["device"] != entry["device"]]
        paths.append(write_json(verified, sorted([*others, entry], key=lambda item: item["device"])))
    return paths


def verified_entry(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``python -m pspnet_fast`` tells of this device; None unless all tests of both kinds of kernels passed."""
    section, machine = result["sections"].get("tests", {}), result["machine"]
    counts = section.get("backends", {})
    if section.get("status") != "passed" or section.get("quick"):
        return None
    if any(counts.get(name, {}).get("passed", 0) == 0 for name in KERNELS):
        return None
    return {
        **{key: machine[key] for key in ("device", "commit", "date", "torch", "triton", "driver")},
        "digest": {name: machine["digest"][name] for name in KERNELS},
        "tests": counts,
        "sanitizer": result["sections"].get("sanitizer", {}).get("status", "not run"),
    }


def known_commit(machine: Mapping[str, Any]) -> str:
    """The commit that was run; where the GPU's machine knew none, this tree's, if its kernels are the same."""
    if machine["commit"] == "unknown" and machine["digest"] == provenance.digests():
        return provenance.commit()
    return str(machine["commit"])

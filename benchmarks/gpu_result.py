"""The GPU command's result: sections of one device put together, summed up, and kept in the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results as provenance
from benchmarks.results import write_json
from pspnet_fast.files import replacing
from pspnet_fast.verification import KERNELS, VERIFIED, read_verified

ROWS = ("operators_gpu", "network_gpu")


def assembled(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The result of all sections whose files lie in ``out``, of this run or an earlier one.

    Only what was measured on one device, with the kernels of one state, belongs together: a section or row that differs
    from the section written last is left out; sections are named in "left_out".
    """
    files = sorted(
        (path for name in names if (path := out / f"{name}.json").is_file()), key=lambda p: p.stat().st_mtime
    )
    sections = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    machine = sections[files[-1].stem]["machine"] if files else None
    kept = {name: sections[name] for name in names if name in sections and same(sections[name]["machine"], machine)}
    return {
        "machine": machine,
        "sections": kept,
        "tests": kept.get("tests", {}).get("backends", {}),
        "left_out": [name for name in sections if name not in kept],
        "rows": [row for name in ROWS for row in rows_of(out / f"{name}.json", machine)],
        "training": [row for path in sorted(out.glob("training_*.json")) for row in rows_of(path, machine)],
    }


def same(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    """Whether two machines are one, with the same kernels."""
    return other is not None and all(one.get(key) == other.get(key) for key in ("device", "digest"))


def rows_of(path: Path, machine: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of a result file that were measured on this machine with these kernels."""
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return [row for row in content["rows"] if same(content["machines"][row["machine"]], machine)]


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
    lines += [
        f"{row['operator']} {row['ratio'].get('eager', float('nan')):.2f}x"
        for row in result["rows"]
        if row.get("ratio")
    ]
    return "\n".join(lines)


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
        entries = sorted([*others, entry], key=lambda item: str(item["device"]))
        with replacing(verified) as file:
            file.write(json.dumps(entries, indent=1) + "\n")
        paths.append(verified)
    return paths


def verified_entry(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``python -m pspnet_fast`` reports of this device: the kernels whose tests all passed; None without any.

    "sanitizer" names the runs of compute-sanitizer over these kernels that found nothing.
    """
    machine, counts = result["machine"], result["sections"].get("tests", {}).get("backends", {})
    passed = [name for name in KERNELS if name in counts and counts[name]["passed"] and not counts[name]["failed"]]
    if not passed:
        return None
    runs = result["sections"].get("sanitizer", {}).get("runs", {})
    return {
        **{key: machine[key] for key in ("device", "commit", "date", "torch", "triton", "driver")},
        "digest": {name: machine["digest"][name] for name in passed},
        "tests": {name: counts[name] for name in passed},
        "sanitizer": [name for name, run in runs.items() if name.split()[1] in passed and not run["problems"]],
    }


def known_commit(machine: Mapping[str, Any]) -> str:
    """The commit that was run; where the GPU's machine knew none, this tree's, if its kernels are the same."""
    if machine["commit"] == "unknown" and machine["digest"] == provenance.digests():
        return provenance.commit()
    return str(machine["commit"])

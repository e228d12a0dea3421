"""Result files: rows that are on disk as soon as they are measured, and the machine that each one was measured on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from buildtools.extension import csrc_digests
from pspnet_fast.digest import folder_digest
from pspnet_fast.extension import EXTENSION
from pspnet_fast.files import replacing
from pspnet_fast.machine import cpu_name, describe_machine, git_commit, output_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
# What benchmarks and report write: a new result does not change the sources that the next one is measured on.
WRITTEN = ("benchmarks/results", "docs", "README.md")
CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")
Row = dict[str, Any]


# ---- provenance ------------------------------------------------------------------------------------------------------


def machine(device: str | None = None) -> dict[str, Any]:
    """Where a result was measured, on which sources, and when.

    "cuda" adds driver, clocks and versions, which a GPU's result depends on; None for what cannot be found out.
    """
    described = {**describe_machine(device), "commit": commit(), "digest": digests(), "date": time.strftime("%Y-%m-%d")}
    if device != "cuda":
        return described
    query = f"--query-gpu=driver_version,{','.join(CLOCKS)}"
    driver, *clocks = output_of("nvidia-smi", query, "--format=csv,noheader").partition("\n")[0].split(", ")
    return {
        **described,
        "processor": cpu_name(),
        "driver": driver or None,
        "clocks": dict(zip(CLOCKS, clocks, strict=False)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "nvcc": EXTENSION.info.get("nvcc"),
    }


def commit() -> str:
    """The commit of this tree in 12 digits, "-dirty" if sources were edited; "unknown" where there is no repository."""
    name, dash, dirty = (git_commit(ROOT, WRITTEN) or "unknown").partition("-")
    return f"{name[:12]}{dash}{dirty}"


def digests() -> dict[str, str | None]:
    """Digests of the kernels' sources in this tree, for copies of it without a commit."""
    return {**csrc_digests(), "triton": folder_digest(ROOT / "pspnet_fast" / "triton")}


# ---- files -----------------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write ``content``, replacing an older file in one step; each entry of a list is a line."""
    parts = []
    for key, value in content.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    with replacing(path) as file:
        file.write("{\n" + ",\n".join(parts) + "\n}\n")
    return path


def load(folder: Path, patterns: Sequence[str]) -> list[Row]:
    """The files that match, each with its "name" without suffix; in the order of the patterns, then of the alphabet."""
    paths = [path for pattern in patterns for path in sorted(folder.glob(f"{pattern}.json"))]
    return [{**json.loads(path.read_text(encoding="utf-8")), "name": path.stem} for path in paths]


class ResultFile:
    """Rows in a file, written anew with each row that is added; a row replaces an earlier one of the same case.

    The file holds each machine once, and a row's "machine" is its index there.
    """

    def __init__(self, path: Path, device: str | None = None) -> None:
        self.path, self.now = path, machine(device)
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
        self.rows: dict[str, Row] = {
            row["case"]: {**row, "machine": content["machines"][row["machine"]]} for row in content["rows"]
        }

    def has(self, case_id: str) -> bool:
        """Whether the case was measured on this machine, with these sources and versions; the day does not matter."""
        row = self.rows.get(case_id)
        return row is not None and not row["failures"] and {**row["machine"], "date": self.now["date"]} == self.now

    def add(self, row: Row) -> None:
        """Keep a row; it is on disk when this returns."""
        self.rows[row["case"]] = {**row, "machine": self.now}
        machines: list[Row] = []
        for kept in self.rows.values():
            if kept["machine"] not in machines:
                machines.append(kept["machine"])
        rows = [{**kept, "machine": machines.index(kept["machine"])} for kept in self.rows.values()]
        write_json(self.path, {"machines": machines, "rows": rows})

"""One section, in the process that the suite started for it: ``python -m benchmarks.gpu.section NAME --out DIR …``"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.suite import LIMIT, SECTIONS, previous_path
from benchmarks.measure import write_json
from benchmarks.provenance import gpu_machine

MARGIN = 20.0  # seconds before the limit by which a section should have ended on its own


class Findings:
    """What a section has found so far; the file always holds all of it.

    Attributes:
        options: device ("cuda" or "cpu"), quick, camvid, cases, out, limit.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.options = options
        self._name, self._started = name, time.monotonic()
        self._content: dict[str, Any] = {"problems": [], "machine": gpu_machine(), "quick": options.quick}
        self._write()

    def add(self, **values: Any) -> None:
        """Set some values."""
        self._content |= values
        self._write()

    def problem(self, text: str) -> None:
        """Record what makes the section fail; it may go on."""
        print(f"PROBLEM: {text}", flush=True)
        self._content["problems"].append(text)
        self._write()

    @property
    def failed(self) -> bool:
        return bool(self._content["problems"])

    @property
    def seconds_left(self) -> float:
        """Until the section should end on its own."""
        return float(self.options.limit) - MARGIN - (time.monotonic() - self._started)

    def previous(self) -> dict[str, Any]:
        """What the same section found in an earlier run on this device and with these kernels; else nothing."""
        path = previous_path(Path(self.options.out), self._name)
        if not path.is_file():
            return {}
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        now, then = self._content["machine"], content.get("machine", {})
        same = (
            all(then.get(key) == now[key] for key in ("device", "digest"))
            and content.get("quick") == self.options.quick
        )
        return content if same else {}

    def _write(self) -> None:
        write_json(Path(self.options.out) / f"{self._name}.json", self._content)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SECTIONS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--camvid", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--limit", type=float, default=LIMIT)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    findings = Findings(options.name, options)
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            findings.problem("torch sees no GPU here; --device cpu makes a dry run")
            sys.exit(1)
    run: Callable[[Findings], None] = importlib.import_module(f"benchmarks.gpu.{options.name}").run
    run(findings)
    sys.exit(int(findings.failed))


if __name__ == "__main__":
    main()

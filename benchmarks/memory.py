"""How much memory there is, and how many images fit into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Line:
    """Bytes as a line over the batch: ``fixed + batch · each``."""

    fixed: float
    each: float

    @classmethod
    def through(cls, measured: Mapping[str, float]) -> Line:
        """The line through the bytes at two batch sizes, which are the keys (as JSON has them).

        Raises:
            ValueError: there are not two.
        """
        if len(measured) != 2:
            raise ValueError(f"a line needs the memory at two batch sizes, not at {sorted(measured)}")
        (small, least), (large, most) = sorted((int(batch), size) for batch, size in measured.items())
        each = (most - least) / (large - small)
        return cls(least - small * each, each)

    def at(self, batch: int) -> float:
        """The bytes at a batch."""
        return self.fixed + batch * self.each

    def largest(self, limit: float, least: int = 1) -> int | None:
        """The largest batch within ``limit`` bytes: 0 if not even ``least`` images fit, None if no batch takes more."""
        if self.each <= 0:
            return None
        batch = int((limit - self.fixed) // self.each)
        return batch if batch >= least else 0


def available_bytes(device: str) -> int:
    """What can still be allocated: of the GPU's memory, or of the machine's and its container's."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min(available, _container_bytes(CGROUP) or available)


def _container_bytes(group: Path) -> int | None:
    """What a container's limit leaves (cgroup v2), the cache that it would free included; None without a limit."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))

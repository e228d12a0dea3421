"""What was fused and what was not, call site by call site."""

from __future__ import annotations

import functools
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from pspnet_fast.fusion.projection import Projections

_OWN = str(Path(__file__).parent)


@dataclass
class Entry:
    """One kind of event at one call site.

    Attributes:
        module: the path of the module that called (``decode_head.classifier``), or ``file.py:line`` outside a module.
        operator: what was called.
        fused: whether a fused operator ran.
        reason: why not, or what was done instead.
        calls: how often.
        bytes_saved: the size of the tensors that were not allocated, of all calls.
        flop_saved: floating-point operations that were not executed, of all calls.
    """

    module: str
    operator: str
    fused: bool
    reason: str
    calls: int = 0
    bytes_saved: int = 0
    flop_saved: int = 0


class FusionReport:
    """The events of a model, or of a ``fuse()`` block: iterate over it, print it, or take :meth:`as_dicts`.

    ``model.fusion_report()`` returns the model's own, which continues to count; ``clear()`` starts it afresh.
    """

    def __init__(self, options: Any = None) -> None:
        self.options = options
        self._entries: dict[tuple[str, str, bool, str], Entry] = {}
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._outside: set[type[nn.Module]] = set()

    def __call__(self) -> FusionReport:
        return self

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            entries = list(self._entries.values())
        return iter(sorted(entries, key=lambda e: (e.module, e.operator, not e.fused, e.reason)))

    def __len__(self) -> int:
        return len(self._entries)

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def add(self, module: str, operator: str, fused: bool, reason: str, bytes_saved: int = 0, flop: int = 0) -> None:
        with self._lock:
            key = module, operator, fused, reason
            entry = self._entries.setdefault(key, Entry(*key))
            entry.calls += 1
            entry.bytes_saved += bytes_saved
            entry.flop_saved += flop

    def path(self, module: nn.Module, root: nn.Module | None) -> str:
        """The path of ``module`` below ``root``, or its class where it does not belong there."""
        kind = type(module)
        if id(module) not in self._paths and root is not None and kind not in self._outside:
            self._paths = {id(m): name or type(m).__name__ for name, m in root.named_modules()}
            if id(module) not in self._paths:
                self._outside.add(kind)  # a criterion that every forward makes anew is not looked for each time
        return self._paths.get(id(module), kind.__name__)

    def __str__(self) -> str:
        lines = [f"{'module':40} {'operator':16} {'calls':>6} {'MB saved':>9} {'GFLOP saved':>12}  result"]
        for e in self:
            result = "fused: " if e.fused else "not fused: "
            saved = f"{e.bytes_saved / 1e6:9.1f} {e.flop_saved / 1e9:12.2f}" if e.fused else f"{'':9} {'':12}"
            lines.append(f"{e.module:40} {e.operator:16} {e.calls:6} {saved}  {result}{e.reason}")
        return "\n".join(lines)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusionReport:
        copy = FusionReport(self.options)
        copy._entries = {key: Entry(**asdict(entry)) for key, entry in self._entries.items()}
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled model runs its class's own forward, and loads where this package is not installed: its
        # fusion_report() is an empty dict there.
        return functools.partial, (dict,)


@dataclass(frozen=True)
class Session:
    """Which rules are on, and where events are recorded."""

    loss: bool
    conv: bool
    argmax: bool
    report: FusionReport
    root: nn.Module | None
    projections: Projections = field(default_factory=Projections)

    def fused(self, operator: str, reason: str, bytes_saved: int = 0, flop: int = 0) -> None:
        self.report.add(self.site(), operator, True, reason, bytes_saved, flop)

    def refused(self, operator: str, reason: str) -> None:
        self.report.add(self.site(), operator, False, reason)

    def site(self) -> str:
        """The module that called into this package, or the file and line where no module did."""
        frame: FrameType | None = sys._getframe(1)
        outside = None
        while frame is not None:
            owner = _owner(frame.f_code.co_filename)
            if owner != "this package":
                module = _module_of(frame)
                if module is not None:
                    return self.report.path(module, self.root)
                if outside is None and owner != "torch":
                    outside = f"{owner}:{frame.f_lineno}"
            frame = frame.f_back
        return outside or "?"


@functools.cache
def _owner(filename: str) -> str:
    """Whose code the file is: of this package, of torch, or its own name."""
    if filename.startswith(_OWN):
        return "this package"
    path = Path(filename)
    return "torch" if "torch" in path.parts else path.name


def _module_of(frame: FrameType) -> nn.Module | None:
    """The module whose method, or hook, this is."""
    first = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
    return first if isinstance(first, nn.Module) else None


def calling_modules() -> set[int]:
    """The ids of all modules that are being called."""
    return {id(_module_of(frame)) for frame, _ in traceback.walk_stack(sys._getframe(1))}


def built(cell: Any, reader: str) -> None:
    """Record that ``reader`` needs the values of ``cell``."""
    if cell.value is None and not cell.adjoint:
        session = cell.session
        session.report.add(cell.site or "?", "interpolate", False, f"{reader} in {session.site()} reads the whole map")

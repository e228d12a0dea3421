"""A result file that grows row by row, so that a run that ends early has left what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from typing import Any

from benchmarks import measure
from benchmarks.provenance import machine

Row = dict[str, Any]


class ResultFile:
    """Rows in ``results/name.json``, written anew with each row that is added.

    Args:
        name: of the file; None keeps the rows in memory alone.
        key: what tells a row from all others; a row replaces an earlier one of the same key.
        resume: start from the rows that the file has, if they come from this machine and these sources.
    """

    def __init__(self, name: str | None, key: Callable[[Row], Hashable], *, resume: bool = False) -> None:
        self.path = None if name is None else measure.RESULTS / f"{name}.json"
        self.key, self.machine = key, machine()
        self._rows: dict[Hashable, Row] = {}
        if resume and self.path is not None and self.path.is_file():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
            if {**earlier["machine"], "date": None} == {**self.machine, "date": None}:
                self._rows = {key(row): row for row in earlier["rows"]}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._rows

    def add(self, row: Row) -> None:
        """Keep a row; it is on disk when this returns."""
        self._rows[self.key(row)] = row
        if self.path is not None:
            measure.write_json(self.path, {"machine": self.machine, "rows": self.rows})

    def wrong(self) -> list[str]:
        """Keys of the rows in which something failed."""
        return [str(self.key(row)) for row in self.rows if row.get("failures")]

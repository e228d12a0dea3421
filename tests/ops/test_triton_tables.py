"""Tables of Triton's kernels on their way to a device, where no GPU is: the host's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the package triton is not installed")

from pspnet_fast.triton import tables as module
from pspnet_fast.triton.cells import _cut_axis, cut_axis
from pspnet_fast.triton.partition import _partition, partition
from pspnet_fast.triton.pyramid_taps import _pyramid_taps, pyramid_taps
from pspnet_fast.triton.tables import HostTables

CPU = torch.device("cpu")
TABLES: dict[str, tuple[Callable[..., HostTables[Any]], Callable[..., Any], tuple[Any, ...]]] = {
    "partition": (_partition, partition, (11, 7, (1, 2))),
    "cells": (_cut_axis, cut_axis, (3, 8, False, torch.float32)),
    "pyramid_taps": (_pyramid_taps, pyramid_taps, (11, 7, ((1, 1), (2, 3)), (3, 3), True, torch.float32)),
}


def tensors_of(tables: Any) -> dict[str, Tensor]:
    return {name: value for name, value in vars(tables).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("kind", TABLES)
def test_made_once_and_copied_for_each_call(kind: str) -> None:
    """What becomes of one call's copy, on its stream or in its graph, is nothing to another call."""
    make, bring, arguments = TABLES[kind]
    host = make(*arguments)
    assert make(*arguments) is host
    expected = tensors_of(host.tables)
    assert any(tensor.count_nonzero() for tensor in expected.values())
    for name, tensor in tensors_of(bring(*arguments, CPU)).items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.is_contiguous()
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
        tensor.zero_()
    again = tensors_of(bring(*arguments, CPU))
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    assert len({tensor.data_ptr() // module.ALIGNMENT for tensor in again.values()}) == len(again)


def test_what_a_graph_copies_from_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay reads the host's memory again, whatever a cache has dropped by then."""
    kept: dict[int, Tensor] = {}
    monkeypatch.setattr(module, "_read_by_graphs", kept)
    host = module.host_tables(_partition(5, 4, (1, 2)).tables)
    host.on(CPU)
    assert kept == {}
    monkeypatch.setattr(module, "is_captured", lambda device: True)
    host.on(CPU)
    host.on(CPU)
    assert list(kept.values()) == [host.memory]


def test_pages_are_locked_outside_of_a_capture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = []
    empty = torch.empty

    def recorded(*sizes: int, pin_memory: bool, **options: Any) -> Tensor:
        locked.append(pin_memory)
        return empty(*sizes, **options)

    tables = _partition(5, 4, (1, 2)).tables
    monkeypatch.setattr(torch, "empty", recorded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for captured in (False, True):
        monkeypatch.setattr(module, "is_captured", lambda device, captured=captured: captured)
        module.host_tables(tables)
    assert locked == [True, False]

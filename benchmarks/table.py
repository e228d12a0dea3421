"""Rows as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = ("shape", "dtype", "layout", "direction", "logits", "compiled")


def ceilings_text(ceilings: Mapping[str, float]) -> str:
    """What the machine reaches, in one line."""
    return (
        f"copy {ceilings['copy']:.1f} GB/s, read {ceilings['read']:.1f} GB/s, arithmetic "
        f"{ceilings['float32'] / 1e3:.4g} TFLOP/s in float32 and {ceilings['bfloat16'] / 1e3:.4g} in bfloat16"
    )


def row_text(row: Mapping[str, Any]) -> str:
    """A row as a small table: a line for each peer."""
    lines = [f"\n{row['operator']}  {', '.join(str(row[key]) for key in LABELS if key in row)}"]
    if row.get("allocator", "default") != "default":
        lines[0] += f" ({row['allocator']})"
    if "floor" in row:
        lines[0] += f"\n  {floor_text(row['floor'])}"
    for name in row.get("milliseconds", {}):
        lines.append(_peer_text(name, row))
    lines += [f"  {name:<22} FAILED: {reason}" for name, reason in row["failures"].items()]
    return "\n".join(lines)


def floor_text(floor: Mapping[str, Any]) -> str:
    """The floor's two terms."""
    return (
        f"floor: {floor['memory_milliseconds']:.4g} ms for {floor['bytes'] / 1e6:.4g} MB, "
        f"{floor['arithmetic_milliseconds']:.4g} ms for {floor['flops'] / 1e9:.4g} GFLOP in {floor['rate']}"
    )


def _peer_text(name: str, row: Mapping[str, Any]) -> str:
    timing = row["milliseconds"][name]
    text = f"  {name:<22} {timing['median']:>9.4g} ms ({timing['p20']:.4g} to {timing['p80']:.4g})"
    if name in row.get("graph_milliseconds", {}):
        text += f"  as a graph {row['graph_milliseconds'][name]['median']:.4g} ms"
    if name in row["ratio"]:
        text += f"  {row['ratio'][name]:>7.2f} x ours"
    text += f"  {100 * row['floor_reached'].get(name, 0):>5.1f} % of the floor"
    if (peak := row.get("peak_bytes", {}).get(name)) is not None:
        text += f"  peak {peak / 1e6:.1f} MB"
        if row["gradient_bytes"]:
            text += f" ({peak / row['gradient_bytes']:.2f} x the gradients)"
    return text

"""What ``python -m pspnet_fast`` prints: versions, what was built, what every operator runs on, and why.

And on which GPUs the kernels were tested. ``verified.json`` next to this file is written by ``python -m benchmarks.gpu
--save`` after all tests of the CUDA or Triton kernels have passed on a GPU: an entry a device and kind of kernel, with
the digest of its sources. That is compared with what runs here: the digest of the CUDA sources that the build recorded
when it compiled them, and that of the Triton kernels as they lie in this folder.
"""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pspnet_fast import backend
from pspnet_fast.digest import folder_digest
from pspnet_fast.extension import EXTENSION
from pspnet_fast.ops.operator import OPERATORS, Operator

VERIFIED = Path(__file__).with_name("verified.json")
KERNELS = {"cuda": "CUDA C++", "triton": "Triton"}

_DESCRIPTION = {
    "cpu": "C++",
    "cuda": "CUDA C++",
    "triton": "Triton",
    backend.COMPOSED: "fused in PyTorch operators",
    "reference": "stock PyTorch operators",
}


def report() -> str:
    """The report as text."""
    return "\n".join([*_versions(), "", *_backends(), "", *_operators()])


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _versions() -> list[str]:
    info = EXTENSION.info
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees"
    rows = [
        ("pspnet_fast", _package("pspnet-fast")),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'not included'})"),
        ("triton", _package("triton")),
        ("compiler", info.get("compiler") or "nothing was compiled"),
        ("nvcc", _nvcc(info)),
        ("threads", str(torch.get_num_threads())),
        ("GPU", gpu),
    ]
    return [f"{name:<12} {value}" for name, value in rows]


def _nvcc(info: dict[str, object]) -> str:
    architectures = info.get("cuda_architectures")
    if not info.get("nvcc") or not isinstance(architectures, list):
        return "no CUDA kernels were compiled"
    return f"{info['nvcc']}, for {' '.join(architectures)}"


def _backends() -> list[str]:
    """One line a backend: that it is ready, or the reason why it is not."""
    lines = ["Backends"]
    cpu = EXTENSION.cpu
    if cpu is None:
        cpu = f"ready ({importlib.import_module('pspnet_fast._C').cpu_capability()} instructions)"
    lines.append(f"  {'cpu':<10} {cpu}")
    compiled = "compiled; " if EXTENSION.cuda is None else ""
    for name in ("cuda", "triton"):
        reason = backend.unavailable("pyramid_pool", name, "cuda")
        if reason is None and not torch.cuda.is_available():
            reason = "torch sees no CUDA GPU"
        prefix = compiled if name == "cuda" else ""
        lines.append(f"  {name:<10} {prefix}{reason or 'ready'}")
    lines.append(f"  {'reference':<10} ready")
    lines += [f"  {'on GPUs':<10} {line}" for line in verification(read_verified(), current_digests())]
    forced = backend.active_backend()
    if forced != "auto":
        lines.append(f"  forced by PSPNET_FAST_BACKEND or use_backend: {forced}")
    return lines


def _operators() -> list[str]:
    """One line an operator: what it runs on for CPU and for CUDA tensors; then why some run on no kernel."""
    lines = [f"{'Operator':<24} {'on CPU tensors':<28} on CUDA tensors"]
    notes = []
    for operator in OPERATORS.values():
        cpu, cuda = (_choice(operator, device) for device in ("cpu", "cuda"))
        lines.append(f"{operator.name:<24} {cpu:<28} {cuda}")
        notes += [note for device in ("cpu", "cuda") if (note := _why_no_kernel(operator, device))]
    return [*lines, "", *notes] if notes else lines


def _why_no_kernel(operator: Operator, device: str) -> str | None:
    """Why ``operator`` runs on no kernel for tensors of ``device``, or None if it does."""
    if backend.active_backend() != "auto" or _select(operator, device) in backend.BACKENDS[1:]:
        return None
    candidates = ("cpu",) if device == "cpu" else ("cuda", "triton")
    reasons = {name: backend.unavailable(operator.name, name, device) for name in candidates}
    if not any(reasons.values()):
        return f"{operator.name} has no kernel for {device.upper()} tensors in this version"
    return "; ".join(f"{operator.name} on {name}: {reason}" for name, reason in reasons.items() if reason)


def _select(operator: Operator, device: str) -> str:
    return backend.select(operator.name, device, operator.composed)


def _choice(operator: Operator, device: str) -> str:
    try:
        return _DESCRIPTION[_select(operator, device)]
    except backend.BackendError:
        return f"cannot run on {backend.active_backend()}"


def current_digests(build_info: Mapping[str, Any] = EXTENSION.info) -> dict[str, str | None]:
    """Digests of the kernels that run here, by back end; None for CUDA kernels that were not compiled."""
    cuda = None
    if "cuda" in build_info.get("built", ()):
        cuda = build_info.get("digests", {}).get("cuda") or "not recorded"  # by a build of an older version
    return {"cuda": cuda, "triton": folder_digest(Path(__file__).with_name("triton"))}


def read_verified(path: Path = VERIFIED) -> list[dict[str, Any]]:
    """The entries of ``verified.json``; none where it does not exist or cannot be read."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def verification(entries: Sequence[Mapping[str, Any]], current: Mapping[str, str | None]) -> list[str]:
    """A line for each device that kernels were tested on, and one for kernels that were tested on none."""
    lines = [
        f"{_titles(entry['digest'])} verified on {entry['device']} at {entry['commit']} on {entry['date']}; "
        f"{_since(entry['digest'], current)}"
        for entry in entries
    ]
    untested = [name for name in KERNELS if not any(name in entry["digest"] for entry in entries)]
    if untested:
        lines.append(f"the tests of the {_titles(untested)} kernels have not all passed on a GPU yet")
    return lines


def _titles(names: Iterable[str]) -> str:
    return " and ".join(title for name, title in KERNELS.items() if name in names)


def _since(tested: Mapping[str, str], current: Mapping[str, str | None]) -> str:
    """Whether the kernels that run here are those that were tested."""
    changed = [name for name, digest in tested.items() if current[name] not in (None, digest)]
    absent = [name for name in tested if current[name] is None]
    if changed:
        return f"kernels changed since ({_titles(changed)})"
    if absent:
        return f"kernels unchanged since (but there are no {_titles(absent)} kernels here)"
    return "kernels unchanged since"

"""Inference of PSPNet in other runtimes, on the stock network's graph and on the reduced one, compared with PyTorch.

The graphs are kept in build/runtimes while the sources that make them stay the same.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import pspnet_fast
from benchmarks import network
from benchmarks.case import Call, Case, Place, Results
from benchmarks.network import Setting, build_inference, evaluated_network
from benchmarks.peers import COMPILE, EAGER, OPTIMIZED, OPTIMIZED_COMPILED, OURS
from benchmarks.results import ROOT
from pspnet_fast.deploy.runtimes import onnxruntime_run, openvino_run

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
GRAPHS = ("stock", "reduced")
OURS_IN_TORCH = (OURS, OPTIMIZED, OPTIMIZED_COMPILED)
PEERS = tuple(f"{runtime} {graph}" for runtime in RUNTIMES for graph in GRAPHS)
NO_BFLOAT16 = "ONNX Runtime has no convolution in bfloat16 on a CPU"


class Labels(nn.Module):
    """The stock network as it is exported: with the arg-max behind it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image).argmax(dim=1).to(torch.uint8)


def graph_file(setting: Setting, graph: str) -> Path:
    """The ONNX file of a graph at the setting's size, exported if there is none of these sources."""
    package = Path(pspnet_fast.__file__).parent
    sources = sorted([*package.glob("deploy/*.py"), *package.glob("ops/*.py"), package / "geometry.py"])
    sources.append(Path(network.__file__))  # makes the weights
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + torch.__version__.encode()).hexdigest()
    height, width = setting.size
    name = f"{graph}_{setting.layers}_{setting.classes}_{setting.batch}x{height}x{width}_{digest[:12]}.onnx"
    file = ROOT / "build" / "runtimes" / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        net = evaluated_network(EAGER if graph == "stock" else OURS, replace(setting, place=Place()))
        part = file.with_suffix(".part.onnx")
        if graph == "reduced":
            pspnet_fast.export_onnx(net, part, setting.size, batch=setting.batch)
        else:
            example = torch.zeros(setting.batch, 3, *setting.size)
            options = {"input_names": ["image"], "external_data": False, "verbose": False}
            torch.onnx.export(Labels(net).eval(), (example,), part, **options)
        part.rename(file)
    return file


def build(setting: Setting, peer: str) -> Call:
    """Inference to labels by a peer."""
    runtime, _, graph = peer.partition(" ")
    if runtime not in RUNTIMES:
        return build_inference(setting, peer)
    file, threads = graph_file(setting, graph), torch.get_num_threads()
    if runtime == "onnxruntime":
        run = onnxruntime_run(file, threads)
    else:
        run = openvino_run(file, threads, "bf16" if setting.place.dtype == torch.bfloat16 else "f32")
    images = Place().normal(setting.batch, 3, *setting.size).numpy()

    def predict() -> Results:
        return (torch.from_numpy(run(images)).long(),)

    return predict


def cases(device: str, *, quick: bool = False) -> Iterator[Case]:
    """One image to labels on one thread of a CPU, in float32 and bfloat16."""
    if device != "cpu":
        return
    missing = {name: f"not installed: {name}" for name in RUNTIMES if importlib.util.find_spec(name) is None}
    if importlib.util.find_spec("onnxscript") is None:
        missing = dict.fromkeys(RUNTIMES, "not installed: onnxscript")
    sizes = ((57, 65),) if quick else ((473, 473), (512, 1024))
    for dtype in (torch.float32,) if quick else (torch.float32, torch.bfloat16):
        for size in sizes:
            setting = Setting(18 if quick else 50, 19, 1, size, Place(device, dtype, "channels_last"))
            skipped = {peer: reason for name, reason in missing.items() for peer in PEERS if peer.startswith(name)}
            if dtype == torch.bfloat16:
                skipped |= {peer: NO_BFLOAT16 for peer in PEERS if peer.startswith("onnxruntime")}
            yield replace(
                network.case(setting, "inference"),
                peers=(EAGER, OURS, OPTIMIZED, *PEERS) if quick else (EAGER, COMPILE, *OURS_IN_TORCH, *PEERS),
                build=functools.partial(build, setting),
                # Random weights leave many pixels undecided in half precision.
                tolerance=0.3 if dtype == torch.bfloat16 else 1e-3,
                threads=1,
                processor_time=True,
                hoarding=PEERS,
                skipped=skipped,
            )

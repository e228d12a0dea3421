"""PSPNet as it is used: images a second, peak memory, and the largest batch that fits into a given memory.

    python -m benchmarks.end_to_end                           PSPNet50 and 101, training step and inference
    python -m benchmarks.end_to_end --layers 50 --modes inference --size 713
    python -m benchmarks.end_to_end --memory 11,24,80         the memories to fill, in GB
    python -m benchmarks.end_to_end --resume                  only what the results do not have yet
    python -m benchmarks.end_to_end --quick                   a tiny network, in two minutes; nothing is saved

About 16 minutes on two cores, of which torch.compile takes half. Stock operators and this package, eager and compiled,
run in turn. Each one's memory is measured at two batch sizes, a process each; a line through both gives the largest
batch, with weights, gradients, SGD's momentum, images and labels counted. On a GPU that batch and its neighbours are
tried.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from benchmarks.case import COMPILE, EAGER, LAYOUTS, OURS, OURS_COMPILED, Call
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.measure import in_fresh_process, peak_bytes
from benchmarks.memory import Line, largest_tried
from benchmarks.network import Setting, inference, inference_case, training_case, training_step
from benchmarks.provenance import device_name
from benchmarks.rows import Row, measure_all
from benchmarks.store import ResultFile
from benchmarks.table import ceilings_text, row_text
from tests.plain_pspnet import PlainPSPNet

MODULE = "benchmarks.end_to_end"
PEERS = (EAGER, COMPILE, OURS, OURS_COMPILED)
MODES = ("training", "inference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How many times --batch the second batch is whose memory is measured. Resident memory comes and goes by some 10 MB, so
# that on a CPU what lies between both batches must be many times that; a GPU's allocator counts exactly.
SECOND_BATCH = {"cpu": {"training": 3, "inference": 8}, "cuda": {"training": 2, "inference": 2}}
LEAST = {"training": 2, "inference": 1}  # batch normalisation over the 1x1 level cannot train on one image


def setting(options: argparse.Namespace, layers: int, batch: int) -> Setting:
    """The options as the network benchmarks take them."""
    size, dtype = (options.size, options.size), DTYPES[options.dtype]
    return Setting(layers, options.classes, batch, size, options.layout, dtype, options.device)


def build(mode: str, peer: str, config: Setting) -> Call:
    """A training step, or the prediction of labels."""
    return training_step(peer, config) if mode == "training" else inference(peer, config)


def kept_bytes(mode: str, config: Setting) -> tuple[int, int]:
    """What lies in memory beside a call: weights (in training with SGD's momentum); images and labels, for each image.

    Gradients are the call's own, as they are made and freed in it.
    """
    weights, statistics = state_bytes(config)
    pixels = config.size[0] * config.size[1]
    if mode == "training":
        return 2 * weights + statistics, (3 * 4 + 8) * pixels
    return weights + statistics, 3 * 4 * pixels


def state_bytes(config: Setting) -> tuple[int, int]:
    """Bytes of the network's parameters, and of its running statistics."""
    with torch.device("meta"):
        net = PlainPSPNet(layers=config.layers, classes=config.classes)
    return sum(parameter.nbytes for parameter in net.parameters()), sum(buffer.nbytes for buffer in net.buffers())


def measure(mode: str, layers: int, ceilings: Ceilings, options: argparse.Namespace) -> Row:
    """A row: times interleaved, memory at two batch sizes, and the largest batches."""
    config = setting(options, layers, options.batch)
    case = (training_case if mode == "training" else inference_case)(config)
    case = replace(case, peers=tuple(options.variants))
    (row,) = measure_all([case], ceilings, options.rounds)
    row |= {"mode": mode, "layers": layers, "classes": config.classes, "size": options.size, "batch": config.batch}
    medians = {peer: timing["median"] for peer, timing in row.get("milliseconds", {}).items()}
    row["images_per_second"] = {peer: float(f"{1e3 * config.batch / time:.4g}") for peer, time in medians.items()}

    batches = (config.batch, SECOND_BATCH[options.device][mode] * config.batch)
    row["memory_batches"] = list(batches)
    row["peak_bytes_at"] = peaks(row, list(medians), batches, options)
    row["peak_bytes"] = {peer: sizes[str(config.batch)] for peer, sizes in row["peak_bytes_at"].items()}
    row["weights_bytes"], row["image_bytes"] = kept_bytes(mode, config)
    lines = {peer: line_of(row, peer) for peer in row["peak_bytes_at"]}
    row["largest_batch"] = {
        f"{memory:g}": {peer: line.largest(memory * 1e9, LEAST[mode]) for peer, line in lines.items()}
        for memory in options.memory
    }
    if options.device == "cuda":
        row["largest_tried"] = {memory: tried(row, float(memory), options) for memory in row["largest_batch"]}
    return row


def line_of(row: Row, peer: str) -> Line:
    """All memory that a peer's call needs, over the batch: what the call takes, and what lies beside it."""
    line = Line.through({int(batch): size for batch, size in row["peak_bytes_at"][peer].items()})
    return Line(line.fixed + row["weights_bytes"], line.each + row["image_bytes"])


def peaks(
    row: Row, peers: list[str], batches: tuple[int, int], options: argparse.Namespace
) -> dict[str, dict[str, int]]:
    """Of each peer the peak memory of a call at both batch sizes; a peer whose process fails is told and left out.

    On a CPU two processes run at once, as nothing is timed in them; a GPU is one process's alone.
    """
    with ThreadPoolExecutor(2 if options.device == "cpu" else 1) as pool:
        futures = {
            (peer, batch): pool.submit(in_fresh_process, MODULE, *worker_arguments(row, peer, batch, options), "--peak")
            for peer in peers
            for batch in batches
        }
    found: dict[str, dict[str, int]] = {peer: {} for peer in peers}
    for (peer, batch), future in futures.items():
        try:
            found[peer][str(batch)] = future.result()
        except subprocess.CalledProcessError as error:  # out of memory, most likely
            row["failures"][f"{peer}, memory"] = f"its process ended with exit code {error.returncode}"
    return {peer: sizes for peer, sizes in found.items() if len(sizes) == 2}


def tried(row: Row, memory: float, options: argparse.Namespace) -> dict[str, dict[str, int | None]]:
    """Of each peer the batches around the computed one that were tried on the GPU with ``memory`` GB of it."""
    if memory * 1e9 > torch.cuda.mem_get_info()[1]:
        return {}

    def fits(peer: str, batch: int) -> bool:
        arguments = worker_arguments(row, peer, batch, options)
        return bool(in_fresh_process(MODULE, *arguments, "--try", str(memory)))

    computed = row["largest_batch"][f"{memory:g}"]
    return {
        peer: largest_tried(lambda batch, peer=peer: fits(peer, batch), batch)  # type: ignore[misc]
        for peer, batch in computed.items()
        if batch
    }


def worker_arguments(row: Row, peer: str, batch: int, options: argparse.Namespace) -> list[str]:
    """The command line that builds a row's call for a peer at some batch."""
    words = {"layers": row["layers"], "modes": row["mode"], "variants": peer, "batch": batch}
    words |= {name: getattr(options, name) for name in ("size", "classes", "layout", "dtype", "device")}
    return [word for name, value in words.items() for word in (f"--{name}", str(value))]


def worker(options: argparse.Namespace) -> int | bool:
    """In a process of its own: the bytes that a call takes, or whether it fits into ``--try`` GB of the GPU."""
    (mode,), (peer,), (layers,) = options.modes, options.variants, options.layers
    config = setting(options, layers, options.batch)
    if options.peak:
        return peak_bytes(lambda: build(mode, peer, config), options.device)
    torch.cuda.set_per_process_memory_fraction(options.try_memory * 1e9 / torch.cuda.mem_get_info()[1])
    try:
        call = build(mode, peer, config)
        momentum = torch.empty(state_bytes(config)[0] if mode == "training" else 0, dtype=torch.uint8, device="cuda")
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        del momentum
    except torch.OutOfMemoryError:
        return False
    return True


def result_name(options: argparse.Namespace) -> str:
    """The file in results/ without its suffix."""
    return f"end_to_end_{'gpu' if options.device == 'cuda' else 'cpu'}_{options.size}_{options.classes}"


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; what is not given depends on the device (:func:`defaults`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=numbers, help="18, 34, 50, 101 or 152, by commas")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES), help="by commas")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(PEERS), help="by commas")
    parser.add_argument("--size", type=int, help="of the crops")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--batch", type=int, help="memory is measured at this one and a larger one")
    parser.add_argument("--layout", choices=list(LAYOUTS))
    parser.add_argument("--dtype", choices=list(DTYPES), help="bfloat16: autocast")
    parser.add_argument("--memory", type=lambda text: [float(word) for word in text.split(",")], default=[8, 24, 80])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--resume", action="store_true", help="keep this machine's rows of the same sources")
    parser.add_argument("--quick", action="store_true", help="a tiny network: does it work?")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--try", dest="try_memory", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, known in (("modes", MODES), ("variants", PEERS)):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name}: no {', '.join(sorted(unknown))}; choose from {', '.join(known)}")

    for name, value in defaults(options.device, quick=options.quick).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def defaults(device: str, *, quick: bool) -> dict[str, Any]:
    """Full training batches on a GPU, small crops on a CPU, and a tiny network where it shall be quick."""
    values = {"layers": [50, 101], "size": 321, "classes": 19, "batch": 2, "layout": "NCHW", "dtype": "float32"}
    values["rounds"] = 3
    if device == "cuda":
        values |= {"size": 473, "classes": 150, "batch": 16, "layout": "channels_last", "dtype": "bfloat16"}
        values["rounds"] = 10
    return {**values, "layers": [18], "size": 57, "batch": 2, "rounds": 1} if quick else values


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.peak or options.try_memory:
        print(json.dumps(worker(options)))
        return

    ceilings = measure_ceilings(options.device, quick=options.quick)
    print(f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(ceilings_text(ceilings.as_dict()), flush=True)
    name = None if options.no_save or options.quick else result_name(options)
    file = ResultFile(name, lambda row: (row["layers"], row["mode"]), resume=options.resume)
    for layers in options.layers:
        for mode in options.modes:
            if (layers, mode) in file:
                continue
            row = measure(mode, layers, ceilings, options)
            file.add(row)
            print(row_text(row))
            for key in ("images_per_second", "largest_batch", "largest_tried"):
                if key in row:
                    print(f"  {key.replace('_', ' ')}: {row[key]}", flush=True)
    if wrong := file.wrong():
        sys.exit(f"wrong results or errors in {', '.join(wrong)}")


if __name__ == "__main__":
    main()

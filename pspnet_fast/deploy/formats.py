"""ONNX, OpenVINO and torch.export files of a segmentation model, verified before they are written."""

from __future__ import annotations

import io
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pspnet_fast.files import check_writable, replacing

from .program import ExportError, Options, exportable, reduced_program
from .runtimes import Comparison, Run, compare, onnxruntime_run, openvino_run, require

SUFFIXES = {"onnx": (".onnx",), "openvino": (".xml", ".bin"), "torch-export": (".pt2",)}  # of each format's files
_NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch-export": (),
}
OPSET = 18
TOLERANCE = 1e-4  # of the largest logit: the same sums in another order


def export_onnx(
    model: nn.Module,
    path: str | Path,
    size: tuple[int, int] | None = None,
    labels: bool = True,
    opset: int = OPSET,
    *,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> list[Comparison]:
    """Write an ONNX file of a segmentation model, after running it in ONNX Runtime and comparing it with the model.

    The graph is the reduced one: standard operators, batch normalisation folded into convolutions, and the
    concatenation of a pyramid never built. The input is called ``image``, the output ``labels`` or ``logits``; class
    names, palette, mean and standard deviation lie in the metadata, lists as JSON.

    Args:
        model: a :class:`~pspnet_fast.PSPNet`, or a model of another library that returns logits [N, classes, h, w], a
            tuple that begins with them, ``{"out": logits}`` or an object with ``.logits``. It is left as it is.
        path: replaced if it exists.
        size: (H, W) of the images in pixels; None: any size from 33 up, chosen at each call.
        labels: uint8 labels [N, h, w] (int32 for more than 256 classes), else float32 logits [N, classes, h, w].
        opset: version of ONNX's operators, at least 18.
        tolerance: the largest difference from the model, as a part of its largest logit.
        options: ``batch``, ``multiple``, ``normalize``, ``mean``, ``std``, ``classes``, ``palette``, see
            :class:`~pspnet_fast.deploy.Options`.

    Returns:
        How far file and model differ, at three sizes (at the one size of a file for one size).

    Raises:
        ExportError: the model cannot be recorded, or the file differs from it; nothing is written.
        ImportError: onnx, onnxscript or onnxruntime is missing.
        OutputError: ``path`` cannot be written.
    """
    check_writable(path)
    (content,), comparisons = export_files(model, "onnx", Options(size, labels, **options), opset, tolerance)
    with replacing(path, "wb") as file:
        file.write(content)
    return comparisons


def export_files(
    model: nn.Module, to: str, options: Options, opset: int = OPSET, tolerance: float = TOLERANCE
) -> tuple[list[bytes], list[Comparison]]:
    """The verified files of a model in one of the formats of :data:`SUFFIXES`, and how far they differ from it.

    Arguments and errors as for :func:`export_onnx`; nothing is written.
    """
    for name in _NEEDED[to]:
        require(name)
    model = exportable(model)
    program = reduced_program(model, options)
    files, runs = _FORMATS[to](program, options, opset)
    return files, compare(runs, model, options, f"the {to} file", tolerance)


def _onnx(program: ExportedProgram, options: Options, opset: int) -> tuple[list[bytes], list[Run]]:
    content = onnx_bytes(program, options, opset)
    return [content], [onnxruntime_run(content), *map(onnxruntime_run, _with_logits(content, options))]


def _with_logits(content: bytes, options: Options) -> list[bytes]:
    """Of an ONNX file of labels the same graph up to its logits."""
    if not options.labels:
        return []
    onnx = require("onnx")
    model = onnx.load_from_string(content)
    name = [node.input[0] for node in model.graph.node if node.op_type == "ArgMax"][-1]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return [model.SerializeToString()]


def _openvino(program: ExportedProgram, options: Options, opset: int) -> tuple[list[bytes], list[Run]]:
    openvino = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "model.xml")
        content = onnx_bytes(program, options, opset)
        source.write_bytes(content)
        converted = openvino.convert_model(source)
        for key, text in options.metadata().items():
            converted.set_rt_info(text, ["model_info", key])
        openvino.save_model(converted, target, compress_to_fp16=False)
        del converted  # it maps the file
        files = [target.with_suffix(suffix).read_bytes() for suffix in SUFFIXES["openvino"]]
        runs = [openvino_run(target)]
        for logits in _with_logits(content, options):
            source.write_bytes(logits)
            runs.append(openvino_run(source))
        return files, runs


def _torch_export(program: ExportedProgram, options: Options, opset: int) -> tuple[list[bytes], list[Run]]:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(options.metadata())})
    runs: list[Run] = []
    for logits in (False, True) if options.labels else (False,):
        file.seek(0)
        module = torch.export.load(file).module()
        if logits:
            labels = module.graph.find_nodes(op="call_function", target=torch.ops.aten.argmax.default)[-1]
            (output,) = module.graph.find_nodes(op="output")
            output.replace_input_with(output.all_input_nodes[0], labels.args[0])
            module.recompile()
        runs.append(partial(_run_module, module))
    return [file.getvalue()], runs


def _run_module(module: nn.Module, images: Any) -> Any:
    return module(torch.from_numpy(images))


_FORMATS = {"onnx": _onnx, "openvino": _openvino, "torch-export": _torch_export}


def onnx_bytes(program: ExportedProgram, options: Options, opset: int = OPSET) -> bytes:
    """An exported program as an ONNX file.

    Raises:
        ExportError: an operator of the program has no counterpart of that version.
    """
    try:
        onnx_program = torch.onnx.export(
            program,
            opset_version=opset,
            input_names=["image"],
            output_names=["labels" if options.labels else "logits"],
            dynamic_shapes=options.dynamic_shapes(lambda name: name),
            external_data=False,
            verbose=False,
            dynamo=True,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch.onnx cannot translate the model: {error}") from error
    assert onnx_program is not None
    if (found := onnx_program.model.opset_imports[""]) != opset:
        raise ExportError(f"opset={opset} cannot be written, but {found} can; choose 18 or a later one")
    for node in onnx_program.model.graph.all_nodes():
        node.metadata_props.clear()  # paths of this machine
    onnx_program.model.metadata_props.update(options.metadata())
    content: bytes = onnx_program.model_proto.SerializeToString()
    return content

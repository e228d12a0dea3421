"""Files of a PSPNet give its logits and labels in ONNX Runtime and OpenVINO, at any size, or are not written.

The code of docs/deploy.md runs; the script for ONNX Runtime runs where PyTorch cannot be imported. The C++ programs are
compiled where the runtimes' headers are.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import torch
from network_pairs import make_pair
from small_networks import small_pair

import pspnet_fast
from pspnet_fast import PSPNet, export_onnx
from pspnet_fast.deploy import Comparison, ExportError, Options, export_files, formats
from pspnet_fast.deploy.runtimes import onnxruntime_run, openvino_run

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

CLASSES = ("road", "sky", "tree")
PALETTE = ((128, 64, 128), (70, 130, 180), (107, 142, 35))
SIZES = [(33, 33), (129, 193), (130, 190)]  # none is the size at which the file was recorded
RUNTIMES = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}


class Exported(NamedTuple):
    model: PSPNet
    file: Path
    comparisons: list[Comparison]


@pytest.fixture(scope="module")
def model() -> PSPNet:
    return small_pair()[0]


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Logits of any number of images of any size, of a whole network."""
    torch.manual_seed(0)
    model = make_pair(torch.float32)[0].eval()
    file = tmp_path_factory.mktemp("any") / "logits.onnx"
    return Exported(model, file, export_onnx(model, file, labels=False))


@pytest.fixture(scope="module")
def one_size(model: PSPNet, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Labels of one picture as it was decoded, with everything that is known of it."""
    file = tmp_path_factory.mktemp("one") / "labels.onnx"
    options = {"batch": 1, "normalize": True, "classes": CLASSES, "palette": PALETTE}
    return Exported(model, file, export_onnx(model, file, (74, 90), **options))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_logits_and_labels_at_sizes_it_was_not_recorded_at(any_size: Exported, runtime: str) -> None:
    pytest.importorskip(runtime, reason="needs the extra [export]")
    run = RUNTIMES[runtime](any_size.file, threads=1)
    for batch, size in enumerate(SIZES, start=1):
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = any_size.model(images)
        actual = torch.from_numpy(run(images.numpy()))
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
        best, second = expected.topk(2, dim=1).values.unbind(1)
        clear = best - second > 1e-4 * expected.abs().max()
        assert clear.float().mean() > 0.99
        assert torch.equal(actual.argmax(1)[clear], expected.argmax(1)[clear])


def test_it_was_compared_at_three_sizes(any_size: Exported) -> None:
    assert len({comparison.size for comparison in any_size.comparisons}) == 3
    for comparison in any_size.comparisons:
        assert 0 < comparison.difference < 1e-5
        assert comparison.equal_labels > 0.999


def test_the_graph_is_the_reduced_one(any_size: Exported, one_size: Exported) -> None:
    for file, convolutions in ((any_size.file, 29), (one_size.file, 9)):
        loaded = onnx.load(file)
        onnx.checker.check_model(loaded)
        counts = Counter(node.op_type for node in loaded.graph.node)
        assert {node.domain for node in loaded.graph.node} == {""}
        # One convolution for each of the network; normalisation is in them, and only the logits are resized.
        assert (counts["Conv"], counts["BatchNormalization"], counts["Resize"]) == (convolutions, 0, 1)
        shapes = [tuple(tensor.dims) for tensor in loaded.graph.initializer]
        assert (128, 512, 3, 3) in shapes  # the head's convolution over the map alone
        assert all(shape[1] < 1024 for shape in shapes if len(shape) == 4)
    assert len(onnx.load(one_size.file).graph.node) < 100


def test_labels_of_a_decoded_picture(one_size: Exported) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 74, 90, 3), np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((torch.from_numpy(picture) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    labels = onnxruntime_run(one_size.file)(picture)
    assert labels.dtype == np.uint8
    expected = one_size.model.predict(normalised)
    assert (torch.from_numpy(labels) == expected).float().mean() > 0.999
    assert len(expected.unique()) > 1


def test_metadata(any_size: Exported, one_size: Exported) -> None:
    found = {entry.key: entry.value for entry in onnx.load(one_size.file).metadata_props}
    assert json.loads(found["classes"]) == list(CLASSES)
    assert json.loads(found["palette"]) == [list(color) for color in PALETTE]
    assert json.loads(found["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(found["std"]) == [0.229, 0.224, 0.225]
    assert found["image"].startswith("uint8 [N, H, W, 3]")

    graph = onnx.load(any_size.file).graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == ("image", "logits")
    axes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in (image, logits)
    ]
    assert axes == [["batch", 3, "height", "width"], ["batch", 3, "height", "width"]]
    assert b"/pspnet_fast/" not in any_size.file.read_bytes()  # no paths of this machine


def test_the_model_is_left_as_it_is(any_size: Exported) -> None:
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in any_size.model.modules())
    assert all(parameter.requires_grad for parameter in any_size.model.parameters())


@pytest.mark.parametrize(
    ("to", "labels"), [("onnx", False), ("onnx", True), ("openvino", True), ("torch-export", True)]
)
def test_a_file_that_differs_is_refused(to: str, labels: bool, model: PSPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of labels, too, where every pixel has the same one whatever is wrong."""
    if to == "openvino":
        pytest.importorskip(to, reason="needs the extra [export]")
    real, model = formats.reduced_program, copy.deepcopy(model)
    model.get_parameter("cls.4.bias").data[1] += 10 * labels

    def wrong(model: torch.nn.Module, options: Options) -> torch.export.ExportedProgram:
        other = copy.deepcopy(model)
        other.get_parameter("cls.4.weight").data[0] *= 2
        return real(other, options)

    options = Options((41, 49), labels, batch=1)
    if to == "torch-export":  # to the others, which take longer, the fixtures and the tests of the command export
        export_files(model, to, options)
    monkeypatch.setattr(formats, "reduced_program", wrong)
    with pytest.raises(ExportError, match=r"differs from the model: 1 x 41x49: difference .*Nothing was written"):
        export_files(model, to, options)


def test_what_was_there_before_a_refusal_stays(model: PSPNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> NoReturn:
        raise ExportError("differs")

    monkeypatch.setattr(formats, "compare", refused)
    file = tmp_path / "kept.onnx"
    file.write_text("kept")
    with pytest.raises(ExportError, match="differs"):
        export_onnx(model, file, (41, 49), batch=1)
    assert file.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_runtime_names_the_extra(model: PSPNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript is not installed .*pip install 'pspnet-fast\[export\]'"):
        export_onnx(model, tmp_path / "model.onnx", (41, 49))
    assert not list(tmp_path.iterdir())


# ---- docs/deploy.md --------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "deploy.md").read_text(encoding="utf-8")
BLOCKS, PROGRAMS = (
    re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) for language in ("python", "cpp")
)
SCRIPT = (DOCS / "run_onnx.py").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name, reason="needs the extra [export]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pspnet_fast, "PSPNet", lambda **_: small_pair()[0])  # a network that is exported in no time
    names: dict[str, Any] = {}
    run = [block for block in BLOCKS if block != SCRIPT and "aoti" not in block]
    assert len(run) == 4
    for block in run:
        exec(compile(block, "deploy.md", "exec"), names)
    assert names["labels"].shape == (1, 130, 190)
    assert names["predicted"].shape == (2, 97, 129)
    assert not any("pspnet_fast" in str(node.target) for node in names["standard"].graph.nodes)


def test_the_script_needs_no_torch(one_size: Exported, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    assert SCRIPT in BLOCKS
    pixels = np.random.default_rng(0).integers(0, 256, (74, 90, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "street.png")
    arguments = [str(one_size.file), "street.png", "o.png"]
    blocked = f"import sys; sys.modules['torch'] = None; sys.argv[1:] = {arguments!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"([\d.]+)%  (\w+)", done.stdout)
    assert sum(float(share) for share, _ in found) == pytest.approx(100, abs=0.2)
    assert {name for _, name in found} <= set(CLASSES)
    overlay = np.asarray(image.open(tmp_path / "o.png"))
    colors = overlay.astype(int) - pixels // 2
    assert {tuple(color) for color in colors.reshape(-1, 3)} <= {tuple(c // 2 for c in color) for color in PALETTE}


def wheel_of(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed; needs the extra [export]")
    return Path(spec.submodule_search_locations[0])


def include_of_onnxruntime() -> Path:
    for root in (Path("/usr/include"), Path("/usr/local/include")):
        for header in root.rglob("onnxruntime_cxx_api.h"):
            return header.parent
    pytest.skip("no onnxruntime_cxx_api.h below /usr/include: apt-get install libonnxruntime-dev (Debian 13)")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_programs_in_cpp(runtime: str, one_size: Exported, tmp_path: Path) -> None:
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("needs g++")
    (source,) = (program for program in PROGRAMS if runtime in program)
    (tmp_path / "labels.cpp").write_text(source)
    wheel = wheel_of(runtime)
    include, libraries = (
        (wheel / "include", wheel / "libs") if runtime == "openvino" else (include_of_onnxruntime(), wheel / "capi")
    )
    library = next(libraries.glob(f"lib{runtime}.so.*"))
    command = [compiler, "-std=c++17", "labels.cpp", "-o", "labels", f"-I{include}", str(library)]
    subprocess.run([*command, f"-Wl,-rpath,{libraries}"], cwd=tmp_path, check=True)
    picture = np.random.default_rng(1).integers(0, 256, (1, 74, 90, 3), np.uint8)
    done = subprocess.run(
        ["./labels", str(one_size.file), "74", "90"],
        cwd=tmp_path, input=picture.tobytes(), capture_output=True, check=True,
    )  # fmt: skip
    expected = onnxruntime_run(one_size.file)(picture)
    assert np.mean(np.frombuffer(done.stdout, np.uint8) == expected.reshape(-1)) > 0.999

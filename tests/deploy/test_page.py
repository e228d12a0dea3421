"""The code of docs/deploy.md runs; the script for ONNX Runtime runs where PyTorch cannot be imported.

The C++ programs are compiled where the runtimes' headers are.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import CLASSES, PALETTE, Exported, small_pair

import pspnet_fast
from pspnet_fast.deploy import Options, export_files
from pspnet_fast.deploy.runtimes import onnxruntime_run

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


def test_a_program_is_compiled_ahead_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, images = small_pair()[0], torch.randn(1, 3, 41, 49)
    (content,), _ = export_files(model, "torch-export", Options((41, 49), batch=1))
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "best.pt2").write_bytes(content)
    (block,) = (block for block in BLOCKS if "aoti" in block)
    names: dict[str, Any] = {"images": images}
    exec(compile(block, "deploy.md", "exec"), names)
    assert names["labels"].dtype == torch.uint8
    assert torch.equal(names["labels"].long(), model.predict(images))


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

"""The code of docs/deploy.md runs; the script for ONNX Runtime runs where PyTorch cannot be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import CLASSES, PALETTE, Exported, small_pair

import pspnet_fast

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (DOCS / "deploy.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
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

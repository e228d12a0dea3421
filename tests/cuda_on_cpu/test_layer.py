"""The layer itself: what kernels may use gives what CUDA's documentation says, in every order of threads."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from compiling import CUDA, HERE, Target, build
from programs import cases, run_case

FEATURES, ARITHMETIC = (HERE / "kernels" / f"{name}.cu" for name in ("features", "arithmetic"))
CASES = [(source, case) for source in (FEATURES, ARITHMETIC) for case in cases(source)]


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize(("source", "case"), CASES, ids=[case for _, case in CASES])
def test_feature(source: Path, case: str, variant: str) -> None:
    results = [run_case(source, case, variant, order) for order in range(4)]
    for done in results:
        assert done.returncode == 0, done.stderr
        assert done.stdout == results[0].stdout


@pytest.mark.parametrize(("case", "dtype"), [("round_half", torch.float16), ("round_bfloat16", torch.bfloat16)])
def test_rounds_as_pytorch(case: str, dtype: torch.dtype) -> None:
    numbers, rounded = (bytearray.fromhex(line) for line in run_case(ARITHMETIC, case, "plain").stdout.split())
    x, actual = torch.frombuffer(numbers, dtype=torch.float32), torch.frombuffer(rounded, dtype=dtype)
    assert x.isnan().any()
    assert x.isinf().any()
    torch.testing.assert_close(actual, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_contexts_of_the_system() -> None:
    """On processors without the layer's own switching of stacks: the same kernels over ucontext."""
    fallback = Target("features_ucontext", (FEATURES,), "plain", defines=("CUDA_ON_CPU_UCONTEXT",))
    build([fallback])
    for case in ("reductions", "partial_warps", "large_frames"):
        done = subprocess.run([fallback.output, case], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == run_case(FEATURES, case, "plain").stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("source", [FEATURES, ARITHMETIC], ids=lambda source: source.stem)
def test_features_are_ordinary_cuda(source: Path, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", f"-I{CUDA}", "-c", str(source), "-o", str(tmp_path / "features.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kernels_are_not_written_for_the_layer() -> None:
    """csrc/cuda knows of the layer in one place: launch.h gives way to its launches and its dynamic shared memory."""
    own_words = re.compile(r"cuda_on_cpu|CUDA_ON_CPU|extern\s+__shared__|<<<")
    knowing = {path.name for path in CUDA.iterdir() if own_words.search(path.read_text())}
    assert knowing == {"launch.h"}

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from running import INTERPRETED, home

from pspnet_fast import BackendError, backend, pyramid_conv, pyramid_pool, reference, use_backend
from pspnet_fast.backend import BACKENDS, COMPOSED, active_backend, constant_in_graphs, kernels, unavailable
from pspnet_fast.extension import EXTENSION, Extension
from pspnet_fast.ops.operator import OPERATORS


def select(operator: str, device: str) -> str:
    return backend.select(operator, device, OPERATORS[operator].composed)


EXPECTED = set(filter(None, os.environ.get("PSPNET_FAST_EXPECT_BACKENDS", "").split(",")))


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_is_present(name: str) -> None:
    """Tells what this machine's run leaves out; fails for what PSPNET_FAST_EXPECT_BACKENDS says it must not."""
    reasons = {operator: unavailable(operator, name, home(name).type) for operator in OPERATORS}
    missing = "; ".join(f"{operator}: {reason}" for operator, reason in reasons.items() if reason)
    if missing and name in EXPECTED:
        pytest.fail(f"{name} was expected, but cannot run {missing}")
    if missing:
        pytest.skip(f"{name} cannot run {missing}")


def test_expected_backends_exist() -> None:
    assert set(BACKENDS) >= EXPECTED, "PSPNET_FAST_EXPECT_BACKENDS names a back end that there is not"


def test_use_backend_restores_the_one_before() -> None:
    before = active_backend()
    with use_backend("reference"):
        assert active_backend() == "reference"
        with use_backend("auto"):
            assert active_backend() == "auto"
        assert active_backend() == "reference"
        with pytest.raises(KeyError), use_backend("cuda"):
            raise KeyError
        assert active_backend() == "reference"
    assert active_backend() == before


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match=r"name='opencl' is not a backend; choose one of reference, cpu, triton"):
        use_backend("opencl").__enter__()


def test_forced_backend_that_cannot_run_says_why() -> None:
    with (
        use_backend("cuda"),
        pytest.raises(
            BackendError,
            match=r"backend 'cuda' cannot run pyramid_pool on cpu tensors: it runs on cuda tensors\. Use use_backend",
        ),
    ):
        pyramid_pool(torch.zeros(1, 1, 2, 2))


def test_composed_operators_refuse_a_backend_of_another_device_too() -> None:
    with use_backend("cuda"), pytest.raises(BackendError, match=r"cannot run pyramid_conv on cpu tensors"):
        pyramid_conv(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1), torch.zeros(1, 2, 1, 1), bins=(1,))


@pytest.mark.parametrize("operator", OPERATORS)
def test_auto_takes_the_fastest(operator: str) -> None:
    fallback = COMPOSED if OPERATORS[operator].composed else "reference"
    usable = "cpu" in kernels(operator) and unavailable(operator, "cpu", "cpu") is None
    with use_backend("auto"):
        assert select(operator, "cpu") == ("cpu" if usable else fallback)
        # A device without kernels works too.
        assert select(operator, "xpu") == fallback


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_reference_is_the_definition_everywhere(operator: str, device: str) -> None:
    with use_backend("reference"):
        assert select(operator, device) == "reference"


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", BACKENDS)
def test_select_agrees_with_unavailable(name: str, device: str, operator: str) -> None:
    with use_backend(name):
        if unavailable(operator, name, device):
            with pytest.raises(BackendError, match=rf"backend '{name}' cannot run {operator} on {device} tensors"):
                select(operator, device)
        else:
            own = name in (*kernels(operator), "reference")
            assert select(operator, device) == (name if own else COMPOSED)


def test_reasons_name_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    raw = getattr(unavailable, "__wrapped__", unavailable)  # not what tests/cuda_on_cpu puts in its place
    assert raw("pyramid_pool", "cpu", "cuda") == "it runs on cpu tensors"
    assert raw("pyramid_pool", "triton", "cpu") == "it runs on cuda tensors"
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend._missing_triton.__wrapped__() == "the package triton is not installed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert raw("pyramid_pool", "cuda", "cuda") == EXTENSION.cuda or "torch sees no CUDA GPU"


# What was compiled, the capabilities that it runs on, and some that it does not run on.
BUILDS = [
    ("90-real", [(9, 0)], [(8, 9), (10, 0), (12, 0)]),
    ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
    ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
    ("90-virtual", [(9, 0), (10, 3), (12, 1)], [(8, 9)]),
    ("120-real 120-virtual", [(12, 0), (12, 1)], [(10, 0), (11, 0)]),
    ("80-real 90-real 100-real 120-real 120-virtual", [(8, 9), (9, 0), (10, 3), (12, 1)], [(7, 5), (11, 0)]),
    ("90a-real 90a-virtual", [(9, 0)], [(10, 0), (12, 0)]),
]


@pytest.mark.parametrize(("built", "runs", "fails"), BUILDS, ids=lambda value: value if isinstance(value, str) else "")
def test_kernels_run_where_the_build_has_code_for_the_gpu(
    built: str, runs: list[tuple[int, int]], fails: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each GPU by itself, whichever of them is the current one."""
    gpus = [*runs, *fails]
    info = {"cuda_architectures": built.split()}
    monkeypatch.setattr(backend, "EXTENSION", Extension(None, None, info))
    monkeypatch.setattr(backend, "_unsupported_gpu", backend._unsupported_gpu.__wrapped__)
    monkeypatch.setattr(backend, "kernels", lambda operator: ("cuda", "triton"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpus.index(fails[0]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpus[index])
    raw = getattr(unavailable, "__wrapped__", unavailable)
    monkeypatch.setattr(backend, "unavailable", raw)
    for index, (major, minor) in enumerate(gpus):
        reason = raw("pyramid_pool", "cuda", "cuda", index)
        with use_backend("auto"):
            chosen = backend.select("pyramid_pool", "cuda", index=index)
        if (major, minor) in runs:
            assert (reason, chosen) == (None, "cuda")
        else:
            assert chosen == "triton"
            assert f"compiled for {built}, which do not run on cuda:{index} of" in reason
            assert f"TORCH_CUDA_ARCH_LIST={major}.{minor}" in reason
    assert raw("pyramid_pool", "cuda", "cuda") is not None, "the current GPU"


def test_forcing_changes_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    definition = reference.pyramid_pool

    def recorded(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(args)
        return definition(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "pyramid_pool", recorded)
    with use_backend("reference"):
        pyramid_pool(torch.zeros(1, 1, 2, 2))
    assert len(calls) == 1


def test_backward_runs_where_forward_ran() -> None:
    x = torch.rand(1, 2, 5, 5, requires_grad=True)
    pooled = pyramid_pool(x)
    with use_backend("reference"):
        (gradient,) = torch.autograd.grad(pooled.sum(), x)
    torch.testing.assert_close(gradient.sum(), torch.tensor(100.0))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "PSPNET_FAST_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def test_environment_variable_sets_the_default() -> None:
    code = "from pspnet_fast.backend import *; print(active_backend(), select('pyramid_pool', 'cpu'))"
    done = run_python(code, PSPNET_FAST_BACKEND="reference")
    assert done.stdout.split() == ["reference", "reference"], done.stderr


def test_environment_variable_with_a_typo() -> None:
    code = "import torch, pspnet_fast; pspnet_fast.pyramid_pool(torch.zeros(1, 1, 2, 2))"
    done = run_python(code, PSPNET_FAST_BACKEND="trtion")
    assert done.returncode != 0
    assert "PSPNET_FAST_BACKEND='trtion' is not a backend; choose one of reference, cpu, triton" in done.stderr


def test_constants_in_graphs_are_marked_as_torch_marks_them() -> None:
    def function() -> None: ...

    def marked_by_torch() -> None: ...

    assert vars(constant_in_graphs(function)) == vars(torch.compiler.assume_constant_result(marked_by_torch)) != {}


@pytest.mark.skipif(INTERPRETED, reason="triton is here on purpose")
def test_triton_and_dynamo_are_imported_only_where_they_run() -> None:
    code = """
import sys, torch, pspnet_fast
pspnet_fast.pyramid_pool(torch.rand(1, 2, 5, 5, requires_grad=True)).sum().backward()
assert "pspnet_fast.triton.pyramid_pool" not in sys.modules
assert "torch._dynamo" not in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr

"""Runs an operator's tests over every back end of the machine.

A test that asks for ``backend`` runs once for each implementation of its module's ``OPERATOR`` that can run here: the
definition, every back end that has a kernel for it (test ids ``reference``, ``cpu``, ``triton``, ``cuda``), and where
none has, the composition of PyTorch operators. What is missing, and why, is reported by test_backend.py's
test_backend_is_present, which fails for what the environment variable ``PSPNET_FAST_EXPECT_BACKENDS`` (``cpu,triton``,
say) names. Triton's kernels run on the CPU if triton is imported with TRITON_INTERPRET=1, so they take a run of their
own:

    PSPNET_FAST_EXPECT_BACKENDS=cpu pytest tests/ops
    TRITON_INTERPRET=1 PSPNET_FAST_EXPECT_BACKENDS=triton pytest tests/ops -k triton

and so do the CUDA kernels where there is no GPU: tests/cuda_on_cpu/run.py builds them for the CPU and calls pytest with
their library in ``PSPNET_FAST_CUDA_ON_CPU``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from running import CUDA_ON_CPU, INTERPRETED, Backend, home, implementations

from pspnet_fast import backend as backends
from pspnet_fast.backend import COMPOSED, use_backend

if CUDA_ON_CPU is not None:
    sys.path.append(str(Path(__file__).parents[1] / "cuda_on_cpu"))
    from cuda_operators import ORDERS, Operators

    operators = Operators(CUDA_ON_CPU, ORDERS if "CUDA_ON_CPU_ONE_ORDER" not in os.environ else ORDERS[:1])
    backends.unavailable = operators.unavailable(backends.unavailable)

if INTERPRETED:
    import faster_interpreter

    faster_interpreter.install()

hypothesis.settings.register_profile(
    "pspnet_fast",
    deadline=None,
    max_examples=3 if INTERPRETED else 20,
    derandomize=True,
    database=None,
    # The fixture only says where to run; nothing in it wears out from one example to the next.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("pspnet_fast")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and hasattr(metafunc.module, "OPERATOR"):  # or the module knows of several
        metafunc.parametrize("backend", implementations(metafunc.module.OPERATOR), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Everything in the test runs on this back end; ``backend.device`` is where its tensors belong."""
    name: str = request.param
    with use_backend("auto" if name.startswith(COMPOSED) else name):
        yield Backend(name, home(name))

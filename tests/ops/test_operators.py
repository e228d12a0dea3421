"""What every operator must keep, on every back end: see descriptions.py for what is tested of each.

The names of the tests begin with the operator's: ``pytest tests/ops -k "upsample_add and cpu"``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import fuzz
import hypothesis.strategies as st
import pytest
import torch
from descriptions import ANY_LAYOUT, DESCRIPTIONS
from drawing import Description
from hypothesis import given
from running import (
    DENSE,
    DTYPES,
    INTERPRETED,
    LAYOUTS,
    Backend,
    as_tuple,
    check_compiles,
    check_exactness,
    check_exports,
    check_gradients_twice,
    check_meta,
    check_same_bits,
    check_writes_everything,
    differentiate,
    implementations,
)
from torch import Tensor

CASES, CHUNK = 500, 25  # of fuzz.py
# What a test takes of each operator's own, unless the test itself is given values.
AXES = {"options": "options", "size": "sizes", "variant": "variants", "layout": "layouts", "dtype": "size_dtypes"}
CONCERNED: dict[str, Callable[[Description], bool]] = {
    "test_gradcheck": lambda operator: operator.with_gradient,
    "test_gradient_of_a_sum": lambda operator: operator.with_gradient,
    "test_gradients_come_from_the_steps": lambda operator: operator.gradient == "steps",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "operator" not in metafunc.fixturenames:
        return
    given = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    axes = [axis for axis in AXES if axis in metafunc.fixturenames and axis not in given]
    concerned = CONCERNED.get(metafunc.function.__name__, lambda operator: True)
    rows = []
    for operator in filter(concerned, DESCRIPTIONS):
        values = [getattr(operator, AXES[axis]) for axis in axes]
        for backend, *chosen in itertools.product(implementations(operator.operator), *values):
            names = [operator.name, backend, *(str(name) for name in chosen if name != "")]
            taken = [v[name] if isinstance(v, dict) else name for v, name in zip(values, chosen, strict=True)]
            rows.append(pytest.param(operator, backend, *taken, id="-".join(names)))
    metafunc.parametrize(["operator", "backend", *axes], rows, indirect=["backend"])


def exact(operator: Description, upstream_layout: str = "nchw", **arguments: Any) -> None:
    """Holds a sample to the rule for exactness, with its gradients where the kernels compute them."""
    sample = operator.compared(operator.draw(**arguments))
    check_exactness(*sample, upstream_layout, gradient=operator.with_gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options(
    operator: Description, backend: Backend, options: dict[str, Any], layout: str, dtype: torch.dtype
) -> None:
    backend.require(dtype, options)
    exact(operator, layout, layout=layout, dtype=dtype, device=backend.device, **options)


@pytest.mark.parametrize("layout", DENSE)
def test_sizes(operator: Description, backend: Backend, size: dict[str, Any], layout: str, dtype: torch.dtype) -> None:
    backend.require(dtype)
    exact(operator, layout, layout=layout, dtype=dtype, device=backend.device, **size)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(operator: Description, backend: Backend, layout: str) -> None:
    """Of the inputs, and of the upstream gradient."""
    exact(operator, layout=layout, device=backend.device)
    if operator.with_gradient:
        exact(operator, layout, device=backend.device)


@given(data=st.data())
def test_any_size_and_options(operator: Description, backend: Backend, data: st.DataObject) -> None:
    arguments = data.draw(st.fixed_dictionaries(operator.anything))
    exact(operator, data.draw(ANY_LAYOUT), device=backend.device, **arguments)


def test_gradient_of_a_sum(operator: Description, backend: Backend) -> None:
    """It is one number, seen everywhere: an upstream gradient without memory of its own."""
    fused, definition, inputs = operator.draw(device=backend.device)
    check_exactness(
        *(lambda *tensors, f=f: [r.sum() for r in as_tuple(f(*tensors))] for f in (fused, definition)), inputs
    )


def test_gradients_come_from_the_steps(operator: Description, backend: Backend) -> None:
    fused, definition, inputs = operator.draw(device=backend.device)
    actual, expected = (differentiate(function, inputs) for function in (fused, definition))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", DENSE[:1] if INTERPRETED else DENSE)
def test_gradcheck(operator: Description, backend: Backend, variant: dict[str, Any], layout: str) -> None:
    arguments = {"batch": 1, "dtype": torch.float64, "layout": layout, **operator.small, **variant}
    fused, _, inputs = operator.draw(device=backend.device, **arguments)
    check_gradients_twice(fused, inputs)


def test_empty_batch(operator: Description, backend: Backend, variant: dict[str, Any]) -> None:
    fused, definition, inputs = operator.draw(batch=0, device=backend.device, **variant)
    results, gradients = differentiate(fused, inputs, gradient=operator.gradient != "none")
    expected = as_tuple(definition(*(t.cpu() for t in inputs)))
    torch.testing.assert_close([t.cpu() for t in results], list(expected), equal_nan=True)
    for gradient, tensor in zip(gradients, inputs, strict=operator.gradient != "none"):
        torch.testing.assert_close(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("layout", DENSE)
def test_same_bits_every_run(operator: Description, backend: Backend, variant: dict[str, Any], layout: str) -> None:
    fused, _, inputs = operator.draw(layout=layout, device=backend.device, **{**operator.large, **variant})
    threads = operator.threads if backend.name == "cpu" else (1, 1)
    check_same_bits(fused, inputs, threads, gradient=operator.with_gradient)


@pytest.mark.parametrize("layout", DENSE)
def test_writes_every_element(operator: Description, backend: Backend, variant: dict[str, Any], layout: str) -> None:
    fused, _, inputs = operator.draw(layout=layout, device=backend.device, **variant)
    check_writes_everything(fused, inputs, gradient=operator.with_gradient)


@pytest.mark.parametrize("layout", DENSE)
def test_meta(operator: Description, backend: Backend, variant: dict[str, Any], layout: str) -> None:
    fused, _, inputs = operator.draw(layout=layout, device=backend.device, **variant)
    strides = backend.name != "reference" and layout in operator.meta_strides  # stock operators choose their own
    check_meta(fused, inputs, strides, gradient=operator.with_gradient)


def test_compile(operator: Description, backend: Backend) -> None:
    """With other operators before and behind, for two sizes."""
    sizes = operator.small, operator.small | operator.other
    samples = [operator.draw(device=backend.device, **arguments) for arguments in sizes]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(1 + result for result in as_tuple(samples[0].fused(*(2 * tensor for tensor in tensors))))

    check_compiles(
        function,
        *(sample.inputs for sample in samples),
        backend=backend.compiler if operator.inductor else "aot_eager",
        gradient=operator.with_gradient,
    )


def test_export(operator: Description, backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("the definition is exported as the operators it is made of")
    fused, _, inputs = operator.draw(device=backend.device)
    check_exports(fused, inputs, backend.operator(operator.operator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(operator: Description, backend: Backend, dtype: torch.dtype) -> None:
    """It lowers what convolutions are part of, as it does a convolution; of other operators it changes nothing."""
    backend.require(torch.bfloat16 if operator.lowered else dtype)
    fused, definition, inputs = operator.draw(dtype=dtype, device=backend.device)
    gradient = operator.with_gradient

    def under_autocast(*tensors: Tensor) -> Sequence[Tensor]:
        with torch.autocast(backend.device.type, dtype=torch.bfloat16):
            return as_tuple(fused(*tensors))

    results, gradients = differentiate(under_autocast, inputs, gradient=gradient)
    if not operator.lowered:
        torch.testing.assert_close((results, gradients), differentiate(fused, inputs, gradient=gradient))
        return
    assert {result.dtype for result in results} == {torch.bfloat16}
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs if gradient]
    expected = differentiate(definition, [t.bfloat16().float() for t in inputs], gradient=gradient)
    torch.testing.assert_close([t.float() for t in results], list(expected[0]), rtol=0.02, atol=0.05)
    torch.testing.assert_close([t.float() for t in gradients], list(expected[1]), rtol=0.05, atol=0.1)


@pytest.mark.skipif(INTERPRETED, reason="runs what is fastest here, which is not the interpreter")
@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_random_cases(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``python tests/ops/fuzz.py`` tests any number of, on the back end that is chosen by itself."""
    wrong = fuzz.main(["--first", str(first), "--count", str(CHUNK)])
    assert not wrong, capsys.readouterr().out

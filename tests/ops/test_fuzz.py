"""Five hundred cases of fuzz.py; the command there runs any number."""

from __future__ import annotations

import fuzz
import pytest
from running import INTERPRETED

CASES, CHUNK = 500, 25


@pytest.mark.skipif(INTERPRETED, reason="runs what is fastest here, which is not the interpreter")
@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_random_cases(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = fuzz.main(["--first", str(first), "--count", str(CHUNK)])
    assert not wrong, capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["pyramid_pool", "pyramid_concat", "pyramid_conv", "upsample_cross_entropy", "upsample_softmax_add"]
)
def test_a_wrong_result_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = getattr(fuzz.ops, name)
    monkeypatch.setattr(fuzz.ops, name, lambda *inputs, **options: right(*inputs, **options) * (1 + 1e-4))
    assert fuzz.main(["--count", "60"]) == 1
    assert name in capsys.readouterr().out

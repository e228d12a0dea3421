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


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = fuzz.ops.pyramid_pool
    monkeypatch.setattr(fuzz.ops, "pyramid_pool", lambda x, bins: right(x, bins) * (1 + 1e-4))
    assert fuzz.main(["--count", "40"]) == 1
    assert "pyramid_pool" in capsys.readouterr().out

from __future__ import annotations

from buildtools.cmake import BuildResult
from buildtools.summary import WIDTH, framed

FULL = BuildResult("2.99.0", ["cpu", "cuda"], {}, "GNU 12.2.0", "13.0.88", ["90-real", "90-virtual"])


def test_what_was_built() -> None:
    text = framed(FULL)
    assert "for torch 2.99.0" in text
    assert "CPU kernels (C++)  built: GNU 12.2.0" in text
    assert "CUDA kernels       built: nvcc 13.0.88, 90-real 90-virtual" in text
    assert "NOT" not in text


def test_why_the_rest_was_not() -> None:
    text = framed(BuildResult("2.99.0", ["cpu"], {"cuda": "no nvcc was found"}, "GNU 12.2.0"))
    assert "CPU kernels (C++)  built" in text
    assert "CUDA kernels       NOT built: no nvcc was found" in text


def test_without_torch() -> None:
    text = framed(BuildResult(None, [], {"cpu": "no torch", "cuda": "no torch"}))
    assert "for torch (none found)" in text
    assert text.count("NOT built: no torch") == 2


def test_the_frame_is_closed_around_long_reasons() -> None:
    reason = "error: " + "/a/very/long/path" * 20 + " is not a compiler " * 10
    lines = framed(BuildResult("2.99.0", [], {"cpu": reason, "cuda": reason})).splitlines()
    assert {len(line) for line in lines} == {WIDTH}
    assert all(line[0] + line[-1] in ("||", "++") for line in lines)

"""The benchmarks' logic: peers must agree, floors and ratios are counted right, memory is what was allocated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import operators, pyramid, rows
from benchmarks.case import OURS_COMPILED, Case, blocky_labels, difference, is_ours, our_peers
from benchmarks.ceilings import Ceilings, Floor, measure_ceilings
from benchmarks.measure import interleaved, timing
from benchmarks.network import Setting, network_flops
from benchmarks.rows import all_cases, measure_all, measure_case
from benchmarks.table import row_text
from pspnet_fast import reference
from pspnet_fast.backend import KERNELS

ROOT = Path(__file__).parents[2]
CEILINGS = Ceilings(copy=100.0, read=80.0, float32=1000.0, bfloat16=4000.0)


def fake_case(peers: dict[str, Any], **options: Any) -> Case:
    """A case whose peers return the given tensors (or raise the given exceptions)."""

    def build(peer: str) -> Any:
        def call() -> tuple[Tensor, ...]:
            if isinstance(peers[peer], Exception):
                raise peers[peer]
            return (peers[peer],)

        return call

    return Case("fake", {"shape": "3 -> 4"}, "cpu", tuple(peers), build, Floor(10**6, 10**6), 1e-3, **options)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_cases_are_told_apart(device: str, quick: bool) -> None:
    cases = all_cases(device, quick=quick)
    names = [case.id for case in cases]
    assert len(names) == len(set(names))
    assert {case.operator for case in cases} == {
        "dual_cross_entropy", "upsample_argmax", "pyramid_pool", "psp_head", "training_step", "inference",
    }  # fmt: skip
    for case in cases:
        assert case.floor.milliseconds(CEILINGS) > 0
        assert any(is_ours(peer) for peer in case.peers)
        assert not any(character.isspace() for character in case.id)


def test_cases_by_operator() -> None:
    assert {case.operator for case in all_cases("cpu", quick=True, only=["psp_head"])} == {"psp_head"}
    with pytest.raises(ValueError, match="no benchmark of psp_haed; choose from dual_cross_entropy"):
        all_cases("cpu", only=["psp_haed"])


def test_unknown_operator_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        operators.parse(["--only", "dual"])
    assert "no benchmark of dual" in capsys.readouterr().err


def test_peers_follow_the_kernels() -> None:
    built = [f"pspnet_fast {name}" for name in ("cuda", "triton") if name in KERNELS["pyramid_pool"]]
    assert list(our_peers(["pyramid_pool"], "cuda"))[: len(built)] == built


@pytest.mark.parametrize("case", all_cases("cpu", quick=True), ids=lambda case: case.id)
def test_peers_agree(case: Case) -> None:
    """Those that need no compiler; and what is timed beside them runs."""
    expected = case.compared(case.build(case.peers[0])())
    for peer in case.peers[1:]:
        if is_ours(peer) and peer != OURS_COMPILED:
            assert difference(case.compared(case.build(peer)()), expected) <= case.tolerance
    for part in case.parts:
        case.build(part)()


def test_difference() -> None:
    x, labels = torch.tensor([3.0, 4.0]), torch.tensor([1, 2, 3, 4])
    assert difference((x, labels), (x, labels)) == 0
    assert difference((x + torch.tensor([0.0, 0.5]),), (x,)) == pytest.approx(0.1)
    assert difference((torch.tensor([1, 2, 3, 5]),), (labels,)) == 0.25
    assert difference((x * torch.nan,), (x,)) == torch.inf


def test_wrong_and_broken_peers_are_told_and_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    one = torch.ones(8)
    case = fake_case(
        {"eager": one, "compile": RuntimeError("no compiler"), "pspnet_fast cpu": one, "pspnet_fast": one * 2}
    )
    row = measure_case(case, CEILINGS, rounds=2)
    assert set(row["milliseconds"]) == {"eager", "pspnet_fast cpu"}
    assert row["failures"] == {
        "compile": "RuntimeError: no compiler",
        "pspnet_fast": "differs from eager by 1.0, allowed 0.001",
    }
    assert row["ours"] == "pspnet_fast cpu"
    assert "FAILED: RuntimeError: no compiler" in row_text(row)
    assert "differs from eager" in capsys.readouterr().err
    json.dumps(row)


def test_a_case_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [fake_case({"pspnet_fast": torch.ones(2)}, parts=("unknown",)), fake_case({"pspnet_fast": torch.ones(2)})]
    broken, whole = measure_all(cases, CEILINGS, rounds=1)
    assert list(broken["failures"]) == ["all"]
    assert whole["failures"] == {}
    assert "FAILED" in row_text(broken)


def test_ratios_and_floor() -> None:
    times = {"eager": 12.0, "compile": 6.0, "pspnet_fast cuda": 2.0, "pspnet_fast triton": 3.0, "x.sum()": 1.0}
    row = rows.summarised(
        {
            "milliseconds": {name: {"median": value} for name, value in times.items()},
            "floor": {"memory_milliseconds": 0.5, "arithmetic_milliseconds": 1.0},
        }
    )
    assert row["ours"] == "pspnet_fast cuda"
    assert row["ratio"] == {
        "eager": 6.0, "compile": 3.0, "pspnet_fast cuda": 1.0, "pspnet_fast triton": 1.5, "x.sum()": 0.5,
    }  # fmt: skip
    assert row["floor_reached"]["pspnet_fast cuda"] == 0.5


def test_floor_is_the_longer_of_memory_and_arithmetic() -> None:
    assert Floor(bytes=10**8, flops=0).milliseconds(CEILINGS) == pytest.approx(1.0)
    assert Floor(bytes=10**8, flops=2 * 10**9).milliseconds(CEILINGS) == pytest.approx(2.0)
    assert Floor(bytes=10**8, flops=2 * 10**9, rate="bfloat16").milliseconds(CEILINGS) == pytest.approx(1.0)


def test_heads_floor_counts_its_products() -> None:
    """By hand for one image of 12x12 pixels and 64 channels: x, levels, products of levels and weights, rows."""
    (case,) = (case for case in all_cases("cpu", quick=True) if case.operator == "psp_head")
    batch, pixels = 2, 144
    products = 9 * 64 * 16 * pixels + 50 * 64 * 16 + 50 * 9 * 16 * 16 + 36 * 16 * pixels
    assert case.floor.flops == 3 * 2 * batch * products


def test_network_flops_leave_out_the_concatenation() -> None:
    setting = Setting(50, 19, 2, (473, 473), "NCHW", torch.float32, "cpu")
    # The stock network takes 340 GFLOP an image, of these 17 for the auxiliary head; 67 are for upsampled maps.
    assert network_flops(setting, training=False) / 2 == pytest.approx((340 - 17 - 67) * 1e9, rel=0.02)
    assert network_flops(setting, training=True) / 2 == pytest.approx(3 * (340 - 67) * 1e9, rel=0.02)


def test_quick_ceilings() -> None:
    ceilings = measure_ceilings("cpu", quick=True, rounds=1)
    assert all(value > 0 for value in ceilings.as_dict().values())


def test_blocky_labels() -> None:
    labels = blocky_labels(2, 473, 480, 19)
    assert (labels.dtype, labels.shape) == (torch.int64, (2, 473, 480))
    assert 0.07 < (labels == 255).double().mean() < 0.13
    assert set(labels.unique().tolist()) <= {*range(19), 255}
    assert (labels[:, :, 1:] == labels[:, :, :-1]).double().mean() > 0.95
    torch.testing.assert_close(labels, blocky_labels(2, 473, 480, 19), rtol=0, atol=0)


def test_interleaved_runs_all_in_turn() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "abababab"
    assert times["a"].rounds == 3


def test_timing_is_median_and_percentiles() -> None:
    values = [float(value) for value in (5, 1, 4, 2, 3, 6, 7, 8, 9, 10, 11)]
    assert timing(values) == timing(values[::-1])
    assert (timing(values).median, timing(values).p20, timing(values).p80) == (6.0, 3.0, 9.0)
    assert timing([0.000123456]).median == 0.0001235


PEAK = """
import torch
from benchmarks.measure import peak_bytes
torch.set_num_threads(1)
x = torch.ones(1 << 20)
def prepare():
    kept = []
    def run():
        if not kept:
            torch.ones(200 << 18).sum()        # 200 MB the first time, and 48 that stay: they do not count
            kept.append(torch.ones(48 << 18))
        return torch.ones(64 << 18).sum()      # 64 MB each time
    return run
print(peak_bytes(prepare) / 2**20)
"""


def test_peak_memory_is_that_of_a_call() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    resettable = os.access("/proc/self/clear_refs", os.W_OK)
    assert float(done.stdout) == pytest.approx(64 if resettable else 200, abs=4)


def test_head_peers_share_their_weights() -> None:
    case = pyramid.head((2, 16, 6, 6), "NCHW", "cpu")
    assert difference(*(case.compared(case.build(peer)()) for peer in ("pspnet_fast", "eager"))) < 1e-4
    assert reference.DEFAULT_BINS == pyramid.BINS

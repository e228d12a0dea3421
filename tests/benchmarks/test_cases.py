"""The cases: all peers of a case are one function, another function is found out, and the least work is counted."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from samples import RATES

from benchmarks import cases, losses, network, pyramid
from benchmarks.case import Call, Case, Floor, Place, blocky_labels, difference
from benchmarks.cases import TABLES, Recipe, cases_of
from benchmarks.peers import EAGER, MMSEG, OURS, PACKAGES, SEMSEG, SMP, TRANSFORMERS, is_ours, our_peers
from benchmarks.session import agreeing
from pspnet_fast import reference
from pspnet_fast.ops.operator import OPERATORS

EXACT = Place()
# Small, and with what distinguishes arrangements: ignored pixels, a crop that is no multiple of the map.
SMALL = Recipe("small", SEMSEG, 5, (121, 97), 2, channels=32)


def small_cases() -> list[Case]:
    """Every operator and arrangement, on a small map; and the quick ones of the network's table."""
    found = [*cases.loss_cases(SMALL, EXACT)]
    found += [case for project in (SEMSEG, MMSEG) for case in cases.map_cases(replace(SMALL, project=project), EXACT)]
    found += [cases.head_case(SMALL, EXACT, project) for project in pyramid.ARRANGEMENTS]
    return [*found, *cases.operators("cpu", quick=True), *cases.networks("cpu", quick=True)]


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.id)
def test_peers_are_one_function(case: Case) -> None:
    """Those that need no compiler; projects where they are installed; and what is timed besides them runs."""
    peers = [peer for peer in case.peers if "compile" not in peer]
    calls, errors, failures = agreeing(case, peers)
    assert failures == {}
    assert list(calls) == peers
    assert errors["eager"] == 0
    assert any(is_ours(peer) for peer in peers)
    assert max(case.floor.milliseconds(RATES).values()) > 0
    for part in case.parts:
        case.build(part)()


def with_ours(case: Case, other: Case) -> Case:
    """``case``, whose ours computes what ``other`` is."""

    def build(peer: str) -> Call:
        return (other if is_ours(peer) else case).build(peer)

    return replace(case, build=build)


@pytest.mark.parametrize(("project", "other"), [(SEMSEG, MMSEG), (MMSEG, TRANSFORMERS), (TRANSFORMERS, MMSEG)])
def test_another_projects_loss_is_found_out(project: str, other: str) -> None:
    found = {case.labels["arrangement"]: case for case in cases.loss_cases(SMALL, EXACT) if "cross" in case.operator}
    # The labels of semseg's are no part of the others' results.
    case = replace(found[project], compared=lambda results: (results[0], *results[-2:]))
    ours = case.peers[-1]
    _, errors, failures = agreeing(with_ours(case, found[other]), [EAGER, ours])
    assert list(failures) == [ours]
    assert errors[ours] > 100 * case.tolerance


@pytest.mark.parametrize("option", [{"align_corners": False}, {"x_first": False}], ids=str)
def test_another_head_is_found_out(option: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pyramid.ARRANGEMENTS, "other", replace(pyramid.ARRANGEMENTS[SEMSEG], **option))
    case, other = (cases.head_case(SMALL, EXACT, project) for project in (SEMSEG, "other"))
    ours = case.peers[-1]
    _, errors, _ = agreeing(with_ours(case, other), [EAGER, ours])
    assert errors[ours] > 3 * case.tolerance


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_cases_have_distinct_names_and_travel_to_other_processes(device: str, quick: bool) -> None:
    found = [case for table in TABLES for case in cases_of(table, device, quick=quick)]
    assert len({case.id for case in found}) == len(found)
    assert not any(character.isspace() for case in found for character in case.id)
    assert {case.operator for case in found} >= {*OPERATORS} - {
        "pyramid_levels", "pyramid_conv_norm_relu", "upsample_cross_entropy", "upsample_softmax_add",
    }  # fmt: skip
    assert {case.labels.get("arrangement") for case in found} == {None, SEMSEG, MMSEG, SMP, TRANSFORMERS}
    copies = pickle.loads(pickle.dumps(found))
    assert [(copy.id, copy.floor, copy.peers) for copy in copies] == [(c.id, c.floor, c.peers) for c in found]


def test_recipes_have_the_maps_of_their_crops() -> None:
    chosen = cases.recipes("cpu", quick=False)
    assert [r.map_shape()[2:] for r in chosen] == [(90, 90), (64, 128), (60, 60), (60, 60), (64, 64)]
    assert [r.name for r in chosen if r not in cases.of_distinct_maps(chosen)] == ["VOC 473"]


def test_absent_projects_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, TRANSFORMERS, ("no_such_module", "transformers"))
    case = next(case for case in cases.loss_cases(SMALL, EXACT) if case.labels["arrangement"] == TRANSFORMERS)
    assert TRANSFORMERS not in case.peers
    assert case.skipped == {TRANSFORMERS: "not installed: pip install transformers"}


def test_peers_follow_the_kernels() -> None:
    assert our_peers(["pyramid_pool"], "cpu") in (("pspnet_fast cpu",), ("pspnet_fast",))
    assert reference.DEFAULT_BINS == pyramid.BINS


# ---- the least work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "arithmetic"), [("float32", 2.0), ("bfloat16", 0.5)])
def test_floor_is_of_memory_and_arithmetic(rate: str, arithmetic: float) -> None:
    times = Floor(bytes=10**8, flops=2 * 10**9, rate=rate).milliseconds(RATES)
    assert times == {"memory_milliseconds": 1.0, "arithmetic_milliseconds": arithmetic}


def test_heads_floor_counts_its_products() -> None:
    """By hand for one image of 12x12 pixels and 64 channels: x, levels, products of levels and weights, rows."""
    batch, pixels = 2, 144
    products = 9 * 64 * 16 * pixels + 50 * 64 * 16 + 50 * 9 * 16 * 16 + 36 * 16 * pixels
    assert pyramid.head((2, 64, 12, 12), EXACT).floor.flops == 3 * 2 * batch * products


def test_network_flops_leave_out_the_concatenation() -> None:
    setting = network.Setting(50, 19, 2, (473, 473), EXACT)
    # The stock network takes 340 GFLOP an image, of these 17 for the auxiliary head; 67 are for upsampled maps.
    assert network.network_flops(setting, "inference") / 2 == pytest.approx((340 - 17 - 67) * 1e9, rel=0.02)
    assert network.network_flops(setting, "training") / 2 == pytest.approx(3 * (340 - 67) * 1e9, rel=0.02)


# ---- scaling, end to end ---------------------------------------------------------------------------------------------


def test_points_vary_one_axis() -> None:
    found = list(cases.scaling("cpu"))
    values = {axis: [c.labels["value"] for c in found if c.labels["axis"] == axis] for axis in cases.AXES}
    spans = {axis: (min(each), max(each)) for axis, each in values.items()}
    threads = torch.get_num_threads()
    assert spans == {"classes": (2, 1000), "batch": (1, 32), "size": (257, 1025), "threads": (1, threads)}
    shapes = {(c.labels["axis"], c.labels["value"], c.operator): c.labels["shape"] for c in found}
    assert shapes["classes", 1000, "dual_cross_entropy"] == "2x1000x60x60 -> 473x473"
    assert shapes["size", 1025, "psp_head"] == shapes["batch", 2, "psp_head"].replace("60", "129")
    assert not [c for c in cases.scaling("cuda") if c.labels["axis"] == "threads"]
    one = [c for c in found if c.skipped]
    assert {(c.operator, c.labels["axis"], c.labels["value"]) for c in one} == {("psp_head", "batch", 1)}


def test_needed_memory_is_above_what_was_measured() -> None:
    """Peak of eager at 2x150x60x60 -> 473x473: 1074 MB, of full-resolution logits with 268 MB a head."""
    (case,) = (c for c in cases.scaling("cpu") if c.labels["value"] == 150)
    assert case.needed_bytes[EAGER] == 5 * 4 * 2 * 150 * 473**2
    assert 1.07e9 < case.needed_bytes[EAGER] < 1.5e9
    assert case.needed_bytes[OURS] < case.needed_bytes[EAGER] / 4


def test_memory_besides_a_call() -> None:
    training, inference = cases.end_to_end("cpu", quick=True, options="size=33")
    net = network.PlainPSPNet(layers=18, classes=19)
    weights, statistics = (sum(tensor.nbytes for tensor in group) for group in (net.parameters(), net.buffers()))
    assert training.batches.weights_bytes == 2 * weights + statistics
    assert training.batches.image_bytes == 33 * 33 * (3 * 4 + 8)
    assert training.batches.sizes == (2, 6)
    assert training.batches.at(6).labels["shape"] == "PSPNet18, 6x3x33x33, 19 classes"
    assert (inference.batches.weights_bytes, inference.batches.image_bytes) == (weights + statistics, 33 * 33 * 12)


def test_end_to_end_depends_on_device_and_options() -> None:
    assert [c.labels["size"] for c in cases.end_to_end("cuda")] == [473] * 4
    chosen = cases.end_to_end("cpu", options="layers=34 dtype=bfloat16")
    assert [(c.labels["layers"], c.labels["dtype"]) for c in chosen] == [(34, "bfloat16")] * 2


def test_blocky_labels() -> None:
    labels = blocky_labels(2, 473, 480, 19)
    assert (labels.dtype, labels.shape) == (torch.int64, (2, 473, 480))
    assert 0.07 < (labels == 255).double().mean() < 0.13
    assert set(labels.unique().tolist()) <= {*range(19), 255}
    assert (labels[:, :, 1:] == labels[:, :, :-1]).double().mean() > 0.95
    torch.testing.assert_close(labels, blocky_labels(2, 473, 480, 19), rtol=0, atol=0)


def test_losses_are_far_apart_where_they_say() -> None:
    problem = losses.Problem(1, 4, (3, 3), (9, 9), EXACT)
    near, far = problem.logits(0).detach(), replace(problem, far_apart=True).logits(0).detach()
    assert difference((near[:, 1:],), (far[:, 1:],)) == 0
    assert float((near - far).amax()) == pytest.approx(losses.FAR_BELOW, rel=1e-5)

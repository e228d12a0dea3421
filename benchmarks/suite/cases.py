"""All cases of the suite, and their names."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.suite import heads, losses, maps


def suite_cases(device: str, *, quick: bool) -> list[Case]:
    """What `pytest benchmarks/` measures on a device."""
    return [case for module in (losses, maps, heads) for case in module.cases(device, quick=quick)]


def case_of(case_id: str, device: str, *, quick: bool) -> Case:
    """The case of that id."""
    (case,) = (case for case in suite_cases(device, quick=quick) if case.id == case_id)
    return case


def peers_and_absent(case: Case) -> tuple[str, ...]:
    """Everybody who is told of in the case's table, ours last: those that run here and those that are missing."""
    at = next((i for i, peer in enumerate(case.peers) if peer.startswith("pspnet_fast")), len(case.peers))
    return (*case.peers[:at], *case.absent, *case.peers[at:])


def group_name(case: Case) -> str:
    """Operator, shape and arrangement: what is compared within a group is one function of the same inputs."""
    told = case.labels
    return (
        f"{case.operator}, {told['configuration']}, {told['shape']}, {told['dtype']} {told['layout']}, "
        f"as {told['arrangement']}"
    )


def peer_id(case: Case, peer: str) -> str:
    """What pytest calls the measurement of a peer, to select by: ``-k "psp_head and semseg"``."""
    told = case.labels
    words = (case.operator, told["configuration"], told["dtype"], told["layout"], told["arrangement"], peer)
    return "-".join(words).replace(" ", "_")


def function_words(operator: str, arrangement: str) -> str:
    """What is computed in an arrangement, in words."""
    if operator == "dual_cross_entropy":
        return losses.ARRANGEMENTS[arrangement].words
    if operator == "pyramid_pool":
        return "the same in every project"
    if operator == "upsample_argmax":
        return "align_corners"
    return heads.ARRANGEMENTS[arrangement].words

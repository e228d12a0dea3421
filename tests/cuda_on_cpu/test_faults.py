"""What a GPU would punish is found: planted faults, each with how it shows.

``ORDERS``: the results differ between orders of threads. ``REPORT``: the launch fails with these words. ``CHECKED``:
the sanitizers stop the program with these words. ``BINARY``: its symbols tell.
"""

from __future__ import annotations

import re

import pytest
from compiling import HERE, build, operators
from programs import cases, program, run_case, static_shared_memory

FAULTS = HERE / "kernels" / "faults.cu"
ORDERS = [
    *("missing_barrier", "overwritten", "missing_syncwarp", "unwritten_static", "unwritten_dynamic", "float_atomics"),
    "blocks_depend",
]
REPORT = {
    "two_barriers": r"thread \(32, 0, 0\): barrier divergence: it waits at __syncthreads \(faults.cu:\d+\), "
    r"but thread \(0, 0, 0\) waits at __syncthreads \(faults.cu:\d+\)",
    "early_exit": r"thread \(50, 0, 0\): barrier divergence: it exits, "
    r"but thread \(0, 0, 0\) waits at __syncthreads \(faults.cu:\d+\)",
    "barrier_and_shuffle": r"block \(0, 0, 0\): divergence, no thread can continue: 16 threads from \(0, 0, 0\) wait "
    r"at __shfl_xor_sync with mask 0xffffffff \(faults.cu:\d+\); 48 threads from \(16, 0, 0\) wait at __syncthreads",
    "exited_lane": r"__shfl_xor_sync \(faults.cu:\d+\) of thread \(0, 0, 0\) reads lane 16, which is not active",
    "absent_lane": r"thread \(39, 0, 0\) reads lane 8, which is not active",
    "lane_outside_mask": r"reads lane 20, which is not in its mask 0x0000ffff",
    "caller_outside_mask": r"with mask 0x0000ffff, which leaves out the calling lane 16",
    "different_masks": r"with mask 0xffffffff, but thread \(0, 0, 0\) waits at __shfl_xor_sync .* with mask 0x7fffffff",
    "different_calls": r"thread \(1, 0, 0\): __shfl_xor_sync .* but thread \(0, 0, 0\) waits at __shfl_down_sync",
    "odd_width": r"__shfl_xor_sync .* with width 12",
    "too_many_threads": r"launch of kernel \(faults.cu:\d+\): block \(1025, 1, 1\) .* has more than 1024 threads",
    "no_threads": r"block \(0, 1, 1\) is empty",
    "too_much_shared": r"49153 bytes of dynamic shared memory, but 49152 are allowed",
    "grid_too_high": r"grid \(1, 65536, 1\) is empty or larger",
    "cached_local": r"__ldg \(faults.cu:\d+\) of a local variable",
    "cached_shared": r"__ldcg \(faults.cu:\d+\) of shared memory",
    "empty_grid": r"grid \(0, 1, 1\) is empty or larger",
    "more_than_opt_in": r"not so: cudaFuncSetAttribute",
}
CHECKED = {
    "static_bound": r"AddressSanitizer: global-buffer-overflow",
    "dynamic_bound": r"AddressSanitizer: use-after-poison",
    "global_bound": r"AddressSanitizer: heap-buffer-overflow",
    "misaligned": r"misaligned address .* for type 'struct float4', which requires 16 byte alignment",
}


BINARY = ["large_static"]


def test_every_fault_has_its_test() -> None:
    assert sorted(cases(FAULTS)) == sorted([*ORDERS, *REPORT, *CHECKED, *BINARY])


def test_static_shared_memory_is_counted() -> None:
    sizes = static_shared_memory(program(FAULTS, "plain"))
    (large,) = [size for kernel, size in sizes.items() if "large_static_kernel" in kernel]
    assert large == 48 * 1024 + 4
    assert [size for kernel, size in sizes.items() if "unwritten_static_kernel<float>" in kernel] == [65 * 4]


def test_kernels_of_the_operators_have_no_more_than_a_gpu() -> None:
    library = operators("plain")
    build([library])
    assert {k: size for k, size in static_shared_memory(library.output).items() if size > 48 * 1024} == {}


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize("case", ORDERS)
def test_result_depends_on_the_order(case: str, variant: str) -> None:
    results = [run_case(FAULTS, case, variant, order) for order in range(3)]
    assert {done.returncode for done in results} == {0}, results[0].stderr
    assert len({done.stdout for done in results}) > 1
    assert run_case(FAULTS, case, variant, 2).stdout == results[2].stdout, "a shuffled order is not the same every time"


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize("case", REPORT)
def test_launch_fails(case: str, variant: str) -> None:
    done = run_case(FAULTS, case, variant)
    assert done.returncode == 1
    assert re.search(REPORT[case], done.stderr), done.stderr


@pytest.mark.parametrize("case", REPORT)
@pytest.mark.parametrize("order", [1, 2])
def test_launch_fails_in_every_order(case: str, order: int) -> None:
    assert run_case(FAULTS, case, "plain", order).returncode == 1


@pytest.mark.parametrize("case", CHECKED)
def test_sanitizers_stop(case: str) -> None:
    done = run_case(FAULTS, case, "checked")
    assert done.returncode != 0
    assert re.search(CHECKED[case], done.stderr), done.stderr

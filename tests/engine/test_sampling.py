"""The samples of a step depend on the seed and the step alone."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from pspnet_fast.data import open_dataset, train_transform
from pspnet_fast.data.processes import STOPPING, process_loader
from pspnet_fast.engine.errors import LoaderError
from pspnet_fast.engine.sampling import SeededDataset, StepSampler, loader_errors, mix, train_loader


def test_an_epoch_is_a_permutation() -> None:
    steps = list(StepSampler(10, 3, seed=1, stop=6))
    for epoch in range(2):
        keys = [key for step in steps[3 * epoch : 3 * epoch + 3] for key in step]
        assert {key[0] for key in keys} == {epoch}
        assert len({key[1] for key in keys}) == 9
    assert steps[:3] != [[(0, i) for _, i in step] for step in steps[3:]]


def test_resuming_goes_on_with_the_same_samples() -> None:
    straight = list(StepSampler(10, 3, seed=1, stop=8))
    assert list(StepSampler(10, 3, seed=1, start=5, stop=8)) == straight[5:]
    assert list(islice(StepSampler(10, 3, seed=1, start=5), 3)) == straight[5:]
    assert list(StepSampler(10, 3, seed=2, stop=8)) != straight


def test_ranks_share_the_same_global_batch() -> None:
    whole = list(StepSampler(10, 4, seed=1, stop=5))
    shares = [list(StepSampler(10, 4, seed=1, rank=rank, world_size=2, stop=5)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_samples_do_not_depend_on_the_loader_processes(scenes: Path) -> None:
    dataset = open_dataset("scenes", scenes, "train", transform=train_transform(33))
    batches = {}
    for workers in (0, 2):
        torch.manual_seed(workers)  # must not matter
        sampler = StepSampler(len(dataset), 4, seed=5, start=1, stop=3)
        batches[workers] = list(train_loader(dataset, sampler, workers=workers, pin=False))
    torch.testing.assert_close(batches[0], batches[2], rtol=0, atol=0)


def test_drawing_a_sample_leaves_the_stream_alone(scenes: Path) -> None:
    dataset = SeededDataset(open_dataset("scenes", scenes, "train", transform=train_transform(33)), seed=5)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first, again, later = dataset[0, 1], dataset[0, 1], dataset[1, 1]
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], later[0])


def test_mix_separates_neighbours() -> None:
    seeds = {mix(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


class Process(Dataset[object]):
    """A sample is what the loader process says about itself, or its end."""

    def __init__(self, killed: bool) -> None:
        self.killed = killed

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        if self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        death_signal = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(death_signal))  # PR_GET_PDEATHSIG
        return death_signal.value, [int(signal.getsignal(number)) for number in STOPPING]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_loader_processes_end_with_their_parent_and_leave_it_the_signals() -> None:
    death_signal, handlers = next(iter(process_loader(Process(killed=False), 1, batch_size=None)))
    assert death_signal == signal.SIGKILL
    assert handlers == [signal.SIG_IGN] * 3


def test_a_program_ends_although_something_still_reads_from_loader_processes() -> None:
    code = """
from pspnet_fast.data.processes import process_loader
batches = iter(process_loader(range(9), 1))
next(batches)
raise ValueError("the only error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.count("Error") == 1
    assert done.stderr.endswith("ValueError: the only error\n")


def test_a_killed_loader_process_is_one_line() -> None:
    message = r"loader process \d+ is killed by signal: Killed.*data\.workers"
    with pytest.raises(LoaderError, match=message) as caught, loader_errors():
        list(process_loader(Process(killed=True), 1, batch_size=None))
    assert "\n" not in str(caught.value)

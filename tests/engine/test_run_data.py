"""The samples of a step, which depend on its number and the seed alone; pixels of each class, and class weights."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import MakeConfig, call, refused, save_picture, save_pixels
from torch.utils.data import Dataset

from pspnet_fast.data import DATASETS, open_dataset, train_transform
from pspnet_fast.data.processes import STOPPING, process_loader
from pspnet_fast.engine import ConfigError, OptimConfig, TrainConfig, train
from pspnet_fast.engine.distributed import World
from pspnet_fast.engine.errors import LoaderError, loader_errors
from pspnet_fast.engine.optim import median_frequency_weights, training_class_weights
from pspnet_fast.engine.run_data import PixelCounts, SeededDataset, StepSampler, mix, train_loader


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


INFO = DATASETS["scenes"].info
SOME = torch.ones(256, dtype=torch.int64)
Masks = Callable[[list[int], list[int]], TrainConfig]


def test_median_frequency_weights() -> None:
    counts = torch.tensor([100, 400, 25, 0])
    weights = median_frequency_weights(counts, power=0.5)
    ratios = torch.tensor([1.0, 0.5, 2.0, 2.0])  # (median 100 / count) ** 0.5; the absent class gets the largest
    torch.testing.assert_close(weights, ratios / ratios.mean())


def test_pixel_counts(scenes: Path) -> None:
    train_set, val_set = (open_dataset("scenes", scenes, split) for split in ("train", "val"))
    counts = PixelCounts.of(train_set, val_set, World(torch.device("cpu")), workers=0)
    for name, dataset in (("training", train_set), ("validation", val_set)):
        expected = sum(torch.bincount(dataset[i][1].flatten(), minlength=256) for i in range(len(dataset)))
        torch.testing.assert_close(counts.splits[name], expected)


def test_class_weights_options() -> None:
    assert training_class_weights(OptimConfig(), INFO, SOME) is None
    given = training_class_weights(OptimConfig(class_weights=tuple(range(1, 12))), INFO, SOME)
    torch.testing.assert_close(given, torch.arange(1.0, 12.0))
    counts, third = SOME.clone(), tuple(float(i == 3) for i in range(11))
    counts[3] = 0
    with pytest.raises(ConfigError, match="is 0 for every class with a pixel"):
        training_class_weights(OptimConfig(class_weights=third), INFO, counts)


@pytest.fixture
def masks(make_config: MakeConfig, tmp_path: Path) -> Masks:
    """A data set of two classes whose training and validation labels hold the given values; one training step."""

    def make(training: list[int], validation: list[int]) -> TrainConfig:
        rng = np.random.default_rng(0)
        for split, values in (("train", training), ("val", validation)):
            for i in range(2):
                save_picture(tmp_path / f"images/{split}/{i}.png", (65, 65), i)
                label = rng.choice(np.array(values, dtype=np.uint8), (65, 65))
                save_pixels(tmp_path / f"labels/{split}/{i}.png", label)
        return make_config("data.name=folder", f"data.root={tmp_path}", "data.classes=2", "run.max_steps=1")

    return make


@pytest.mark.parametrize(
    ("training", "validation", "parts"),
    [
        ([0, 255], [0, 255], ["no training pixel has class 'class 1'", "% of the training pixels have the value 255",
                              "save that as an index below 2"]),
        ([1], [0, 1], ["no training pixel has class 'class 0'", "data.classes (now 2)", "data.allow_absent_classes"]),
        ([255], [0, 1], ["split 'train': none of the 2 images has a labelled pixel"]),
        ([0, 1], [255], ["split 'val': none of the 2 images has a labelled pixel"]),
    ],
)  # fmt: skip
def test_labels_that_cannot_train(masks: Masks, training: list[int], validation: list[int], parts: list[str]) -> None:
    config = masks(training, validation)
    with pytest.raises(ConfigError) as caught:
        train(config)
    for part in parts:
        assert part in str(caught.value)
    assert not (Path(config.run.folder or "") / "last.pt").exists()


def test_absent_classes_that_are_allowed(masks: Masks, capsys: pytest.CaptureFixture[str]) -> None:
    config = masks([0], [0, 1])
    config.data.allow_absent_classes = True
    with pytest.raises(ConfigError, match="'class 1'"):  # with one class alone there is nothing to learn
        train(config)
    config = masks([0, 2], [0, 2])
    config.data.classes = 3
    config.data.allow_absent_classes = True
    train(config)
    printed = capsys.readouterr().err
    for split in ("training", "validation"):
        assert f"warning: no {split} pixel has class 'class 1'" in printed


def test_table_of_pixels() -> None:
    """A public data set's class without a pixel is a warning: a part of the data set may lack it."""
    train_counts, val_counts = SOME.clone(), SOME.clone()
    train_counts[4], val_counts[5] = 0, 0
    counts = PixelCounts(INFO, {"training": train_counts, "validation": val_counts})
    counts.check(TrainConfig().data, (1, 1))
    lines = counts.table().splitlines()
    assert len(lines) == 1 + 11 + 1 + 2
    assert lines[5].split() == [*INFO.classes[4].split(), "0", "(", "0.00%)", "1", "(", "0.39%)"]
    assert lines[-2:] == [
        f"warning: no training pixel has class {INFO.classes[4]!r}: the network cannot learn it",
        f"warning: no validation pixel has class {INFO.classes[5]!r}: its IoU is not measured",
    ]


def test_evaluating_without_labels(masks: Masks, tmp_path: Path) -> None:
    config = masks([0, 1], [0, 1])
    train(config)
    record = tmp_path / "metrics.json"
    arguments = ("evaluate", f"{config.run.folder}/best.pt", "--json", record)
    masks([0, 1], [255])
    assert "folder, split 'val': none of the 2 images has a labelled pixel" in refused(*arguments)
    assert not record.exists()
    masks([0, 1], [0])
    assert "-100" not in call(*arguments)
    assert json.loads(record.read_text())["classes"]["class 1"]["accuracy"] is None

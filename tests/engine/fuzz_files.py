"""Change random bytes of files, and use them: an error in a frame, or no change of the result, or one that is reported.

    python tests/engine/fuzz_files.py --cases 300

Checkpoints, configurations, list files, and images and labels as PNG. (Nothing can tell that the pixels of a JPEG
changed: it has no checksum.)
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from run_files import TINY
from typer.testing import CliRunner, Result

from pspnet_fast.data import write_scenes
from pspnet_fast.engine import config_from_dict, load_config, train
from pspnet_fast.engine.commands import app
from pspnet_fast.engine.datasets import open_split

NAMES = ("alpha", "bravo", "charlie", "delta")  # more than a byte apart: another name is no other sample


def call(*arguments: object) -> Result:
    """The command's result: success, or one framed message."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    framed = result.exit_code == 2 and "pspnet-fast: error" in result.stderr
    assert result.exit_code == 0 or framed, f"{result.exception!r}\n{result.output}"
    assert "Traceback" not in result.output
    return result


class Files:
    """A data set of four pictures with list files, and a run of one step on it."""

    def __init__(self, place: Path) -> None:
        self.root, self.run, self.copy = place / "data", place / "run", place / "copy"
        drawn = write_scenes(place / "drawn", train=4, val=1, size=(48, 64))
        self.root.mkdir()
        for index, name in enumerate(NAMES):
            with Image.open(drawn / "images" / "train" / f"{index:05d}.jpg") as picture:
                picture.save(self.root / f"{name}.png")
            with Image.open(drawn / "labels" / "train" / f"{index:05d}.png") as label:
                values = np.where(np.asarray(label) == 11, 255, label).astype(np.uint8)
            values[0, :11] = range(11)  # each class in each picture
            Image.fromarray(values).save(self.root / f"{name}_label.png")
        for split, names in (("train", NAMES[:2]), ("val", NAMES[2:])):
            (self.root / f"{split}.txt").write_text("".join(f"{name}.png {name}_label.png\n" for name in names))
        tree = {
            "data": {"name": "list", "root": str(self.root), "classes": 11, "workers": 0},
            "optim": {"batch_size": 2},
            "run": {"folder": str(self.run), "max_steps": 1, "device": "cpu", "amp": "none", "pictures": 0},
        }
        lists = [f"data.{split}_list={self.root}/{split}.txt" for split in ("train", "val")]
        self.config = config_from_dict(tree, (*TINY, *lists))
        train(self.config)

    def pixels(self) -> str:
        """A digest of every sample, in order."""
        digest = hashlib.sha256()
        for split in ("train", "val"):
            dataset = open_split(self.config.data, split, training=False)
            dataset.transform = None
            for image, label in (dataset[i] for i in range(len(dataset))):
                digest.update(image.numpy().tobytes() + label.numpy().tobytes())
        return digest.hexdigest()

    def use_checkpoint(self) -> object:
        result = call("evaluate", self.run / "best.pt")
        return result.stdout if result.exit_code == 0 else None

    def use_configuration(self) -> object:
        """Resume a copy of the run; a configuration that changed must be reported."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.run, self.copy)
        result = call("train", "--resume", "--folder", self.copy)
        if result.exit_code or "resuming with another" in result.stderr:
            return None
        loaded = load_config(self.run / "config.yaml").to_dict()
        del loaded["run"]["folder"]  # --folder counts
        return loaded

    def use_data(self) -> object:
        result = call("check", "--config", self.run / "config.yaml", "--images")
        return (result.stdout, self.pixels()) if result.exit_code == 0 else None

    def targets(self) -> dict[str, tuple[list[Path], Callable[[], object]]]:
        """By kind: the files to change, and what uses them; that returns ``None`` for a reported error or change."""
        return {
            "checkpoint": ([self.run / "best.pt"], self.use_checkpoint),
            "configuration": ([self.run / "config.yaml"], self.use_configuration),
            "list": ([self.root / "train.txt", self.root / "val.txt"], self.use_data),
            "picture": (sorted(self.root.glob("*.png")), self.use_data),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw, counts = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        targets = Files(Path(place)).targets()
        expected = {kind: use() for kind, (_, use) in targets.items()}
        assert all(expected.values()), expected
        started = time.monotonic()
        for case in range(options.cases):
            kind = list(targets)[case % len(targets)]
            files, use = targets[kind]
            path = draw.choice(files)
            good = path.read_bytes()
            changed = bytearray(good)
            # Half of the changes near the ends, where headers and directories are.
            position = draw.choice((draw.randrange(len(good)), draw.randrange(-1000, 1000) % len(good)))
            changed[position] = draw.choice([value for value in range(256) if value != good[position]])
            path.write_bytes(changed)
            what = f"{path.name}: byte {position} is {changed[position]:#04x}, not {good[position]:#04x}"
            try:
                found = use()
            except BaseException as error:
                raise AssertionError(what) from error
            assert found in (None, expected[kind]), f"{what}: a change that is not reported"
            counts[f"{kind}: {'reported' if found is None else 'no effect'}"] += 1
            path.write_bytes(good)
        assert {kind: use() for kind, (_, use) in targets.items()} == expected
    print(f"{options.cases} cases in {time.monotonic() - started:.0f} s:", dict(sorted(counts.items())))


if __name__ == "__main__":
    main()

"""All cases: which shapes are measured on which device, table by table.

A table is the first word of its tests' names, a result file, and some tables of the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from benchmarks import accelerate, losses, network, pyramid, runtimes, scales, upsampled
from benchmarks.case import Case, Place
from benchmarks.losses import Problem
from benchmarks.network import Setting
from benchmarks.peers import EAGER, MMSEG, OURS, SEMSEG, SMP

LAST = "channels_last"


def map_size(*crop: int) -> tuple[int, int]:
    """Height and width of the maps and logits of a crop: a backbone of stride 8 gives (n - 1) // 8 + 1."""
    height, width = ((n - 1) // 8 + 1 for n in crop)
    return height, width


# ---- operators, as this package's network has them -------------------------------------------------------------------


def both_ways(case: Callable[..., Case], place: Place, *shapes: pyramid.Shape) -> list[Case]:
    """Forward, and with backward."""
    return [case(shape, place, backward=backward) for shape, backward in product(shapes, (False, True))]


def operators(device: str, *, quick: bool = False) -> Iterator[Case]:
    """Each operator at typical shapes and in every layout."""
    place, last, half = Place(device), Place(device, layout="channels_last"), Place(device, torch.bfloat16, LAST)
    crop, city = ((60, 60), (473, 473)), ((64, 128), (512, 1024))
    if quick:
        small = Problem(1, 19, (16, 16), (121, 121), place)
        yield from (losses.losses(small), losses.losses(replace(small, far_apart=True)), losses.argmax(small))
        yield from both_ways(pyramid.pool, place, (2, 64, 13, 17))
        yield from (pyramid.head((2, 64, 12, 12), last), upsampled.sum_case((2, 16, 16, 24), place))
        yield from both_ways(upsampled.conv_case, place, (1, 16, 16, 24))
    elif device == "cpu":
        many, wide = Problem(2, 150, *crop, place), Problem(1, 19, *city, place)
        yield from (losses.losses(one) for one in (Problem(2, 19, *crop, place), many, replace(many, place=last), wide))
        yield from (losses.losses(replace(many, far_apart=True)), losses.argmax(wide))
        for size, where in product(((60, 60), (64, 128)), (place, last)):
            yield from both_ways(pyramid.pool, where, (2, 2048, *size))
        yield from (pyramid.head((2, 2048, 60, 60), where) for where in (place, last, half))
        yield from (upsampled.sum_case((2, 256, 128, 128), where) for where in (place, last))
        yield from both_ways(upsampled.conv_case, place, (1, 512, 128, 128), (1, 256, 128, 256))
    else:
        yield from (losses.losses(Problem(16, 150, *crop, where)) for where in (place, half))
        yield losses.losses(Problem(16, 19, *crop, place))
        yield losses.argmax(Problem(8, 19, (128, 256), (1024, 2048), place))
        for where in (half, place):
            yield from both_ways(pyramid.pool, where, (16, 2048, 60, 60))
            yield upsampled.sum_case((8, 256, 128, 128), where)
            yield from both_ways(upsampled.conv_case, where, (8, 512, 128, 128), (8, 256, 128, 256))
        yield pyramid.head((16, 2048, 60, 60), half)


# ---- operators, as each project arranges them at the shapes of published trainings -----------------------------------


@dataclass(frozen=True)
class Recipe:
    """A training as its recipe has it.

    Attributes:
        name: data set and crop.
        project: whose recipe it is; its arrangement of the head is measured at it.
        classes, crop: of the data set; height and width.
        images: in a step on one device.
        channels: of the backbone's last map.
    """

    name: str
    project: str
    classes: int
    crop: tuple[int, int]
    images: int
    channels: int = 2048

    def map_shape(self, narrowed: int = 1) -> pyramid.Shape:
        """Of the backbone's map: two images at least, as the 1x1 level's normalisation takes no single value."""
        return max(self.images, 2), self.channels // narrowed, *map_size(*self.crop)


def recipes(device: str, *, quick: bool) -> list[Recipe]:
    """What is measured on a device. ``quick``: one recipe, with one image's logits and a narrow map."""
    if quick:
        return [Recipe("VOC 473", SEMSEG, 21, (473, 473), 1, channels=128)]
    images = 2 if device == "cpu" else 8
    return [
        Recipe("Cityscapes 713", SEMSEG, 19, (713, 713), images),
        Recipe("Cityscapes 512x1024", MMSEG, 19, (512, 1024), images),
        Recipe("ADE20K 473", SEMSEG, 150, (473, 473), images),
        Recipe("VOC 473", SEMSEG, 21, (473, 473), images),
        Recipe("COCO-Stuff 512", MMSEG, 171, (512, 512), images),
    ]


def of_distinct_maps(chosen: list[Recipe]) -> list[Recipe]:
    """``chosen`` without those whose map is that of an earlier one: classes change nothing before the logits."""
    first = {(recipe.map_shape(), recipe.project): recipe for recipe in reversed(chosen)}
    return list(first.values())[::-1]


def projects(device: str, *, quick: bool = False) -> Iterator[Case]:
    """Losses and arg-max of every recipe, then pyramid and head of every distinct map, in each precision."""
    exact = Place(device)
    places = [exact] if device == "cpu" else [Place(device, torch.bfloat16, LAST), exact]
    chosen = recipes(device, quick=quick)
    yield from (case for recipe in chosen for place in places for case in loss_cases(recipe, place))
    for recipe in of_distinct_maps(chosen):
        for place in places:
            yield from map_cases(recipe, place)
            # The head of its project, and that of smp, which has no recipes; all if quick.
            heads = (name for name in pyramid.ARRANGEMENTS if quick or name in (recipe.project, SMP))
            yield from (head_case(recipe, place, name) for name in heads)


def labelled(case: Case, recipe: Recipe, project: str) -> Case:
    """A case with the names of its recipe and of the project whose arrangement it is."""
    return replace(case, labels={"configuration": recipe.name, **case.labels, "arrangement": project})


def loss_cases(recipe: Recipe, place: Place) -> Iterator[Case]:
    """The losses of every project, and the arg-max of validation."""
    problem = Problem(recipe.images, recipe.classes, map_size(*recipe.crop), recipe.crop, place)
    yield from (labelled(losses.losses(problem, project), recipe, project) for project in losses.ARRANGEMENTS)
    if place.dtype == torch.float32:
        yield labelled(losses.argmax(problem), recipe, SEMSEG)


def map_cases(recipe: Recipe, place: Place) -> Iterator[Case]:
    """The pyramid's operators alone; pooling is the same in every project."""
    shape, project = recipe.map_shape(), recipe.project
    yield labelled(pyramid.pool(shape, place), recipe, SEMSEG)
    for operator in ("pyramid_concat", "pyramid_conv"):
        yield labelled(pyramid.merging(operator, shape, place, project), recipe, project)


def head_case(recipe: Recipe, place: Place, project: str) -> Case:
    """A project's head; the channels behind it follow from the backbone's."""
    shape = recipe.map_shape(pyramid.ARRANGEMENTS[project].narrowed)
    case = pyramid.head(shape, place, project, out=recipe.channels // 4)
    return labelled(replace(case, parts=(), page_faults=False), recipe, project)


# ---- the whole network -----------------------------------------------------------------------------------------------


def uncompiled(case: Case) -> Case:
    """Without the peers whose compiling takes minutes."""
    return replace(case, peers=(EAGER, OURS))


def networks(device: str, *, quick: bool = False) -> Iterator[Case]:
    """A training step at the usual crop, inference of a whole Cityscapes image."""
    if quick:
        small = Setting(18, 19, 2, (57, 57), Place(device, layout=LAST))
        yield from (uncompiled(network.case(small, mode)) for mode in network.OPERATORS)
        return
    place = Place(device) if device == "cpu" else Place(device, torch.bfloat16, LAST)
    infer = Setting(50, 19, 1, (1024, 2048), replace(place, layout=LAST))
    if device == "cpu":
        yield from (network.case(Setting(50, n, 2, (473, 473), place), "training") for n in (19, 150))
        yield network.case(infer, "inference")
        return
    train = Setting(50, 150, 16, (473, 473), place)
    for autotuned in (False, True):  # the autotuned ones last and by themselves, as the search takes minutes
        yield network.case(train, "training", autotuned=autotuned)
        yield network.case(infer, "inference", autotuned=autotuned)


# Times the first batch, the second one whose memory is measured. Resident memory varies by some 10 MB, so that on a
# CPU the batches must differ by many times that; a GPU's allocator counts exactly.
SECOND_BATCH = {"cpu": {"training": 3, "inference": 8}, "cuda": {"training": 2, "inference": 2}}


def end_to_end(device: str, *, quick: bool = False, options: str = "") -> Iterator[Case]:
    """PSPNet50 and 101: images a second, and the largest batches. Full training batches on a GPU, crops on a CPU.

    Args:
        options: replaces some of the values, as in "layers=50 size=713 classes=150 batch=4 dtype=bfloat16".

    Raises:
        ValueError: an option that there is not.
    """
    values = {"layers": "50,101", "size": "321", "classes": "19", "batch": "2", "dtype": "float32", "layout": "NCHW"}
    if device == "cuda":
        values |= {"size": "473", "classes": "150", "batch": "16", "dtype": "bfloat16", "layout": LAST}
    if quick:
        values |= {"layers": "18", "size": "57", "batch": "2"}
    given = dict(word.split("=", 1) for word in options.split())
    if unknown := set(given) - set(values):
        raise ValueError(f"no option {', '.join(sorted(unknown))} of the network; choose from {', '.join(values)}")
    values |= given
    batch, size, classes = (int(values[name]) for name in ("batch", "size", "classes"))
    place = Place(device, getattr(torch, values["dtype"]), values["layout"])
    for layers in values["layers"].split(","):
        setting = Setting(int(layers), classes, batch, (size, size), place)
        for mode in network.OPERATORS:
            case = network.end_to_end(setting, mode, SECOND_BATCH[device][mode] * batch)
            yield uncompiled(case) if quick else case


# ---- scaling ---------------------------------------------------------------------------------------------------------

AXES = {
    "classes": (2, 7, 19, 60, 150, 400, 1000),
    "batch": (1, 2, 4, 8, 16, 32),
    "size": (257, 353, 473, 713, 1025),
    "threads": (),  # powers of two up to what torch uses
}
QUICK_AXES = {"classes": (2, 7), "batch": (1, 2), "size": (33, 49), "threads": ()}
# About what a call holds, inputs included, in float32 tensors of one head's full-resolution logits or of the pooled
# map: measured at middle sizes, rounded up. It decides what is not even tried.
HOLDS = {
    "dual_cross_entropy": {EAGER: 5, OURS: 1},
    "pyramid_pool": {EAGER: 5, OURS: 4},
    "psp_head": {EAGER: 16, OURS: 8},
}
ONE_IMAGE = "batch normalisation over the 1x1 level cannot train on one image"


def scaling(device: str, *, quick: bool = False) -> Iterator[Case]:
    """One axis varies, the rest stays in the middle. Only the losses know classes; a GPU has no threads.

    On a CPU the pyramid has PSPNet18's 512 channels, as 2048 take minutes.
    """
    place = Place(device) if quick or device == "cpu" else Place(device, torch.bfloat16, LAST)
    middle = {"batch": 8, "size": 473, "classes": 150, "channels": 2048}
    if device == "cpu":
        middle |= {"batch": 2, "classes": 19, "channels": 512}
    if quick:
        middle = {"batch": 2, "size": 33, "classes": 5, "channels": 16}
    for axis, values in (QUICK_AXES if quick else AXES).items():
        if axis == "threads" and device == "cpu":
            values = tuple(1 << i for i in range(torch.get_num_threads().bit_length()))
        for operator in ("dual_cross_entropy",) if axis == "classes" else HOLDS:
            for value in values:
                case = at_point(operator, place, **(middle if axis == "threads" else {**middle, axis: value}))
                labels = {"axis": axis, "value": value, **case.labels}
                yield replace(case, labels=labels, threads=value if axis == "threads" else None)


def at_point(operator: str, place: Place, *, batch: int, size: int, classes: int, channels: int) -> Case:
    """The operator's case with eager and this package alone, and about what they need.

    Crops are of ``size``² pixels; the losses get the classes, and the pyramid the channels on an eighth of the size.
    """
    low = map_size(size, size)
    if operator == "dual_cross_entropy":
        case = losses.losses(Problem(batch, classes, low, (size, size), place))
        one = classes * size**2
    else:
        case = (pyramid.pool if operator == "pyramid_pool" else pyramid.head)((batch, channels, *low), place)
        one = channels * low[0] * low[1]
    needed = {peer: 4 * batch * one * tensors for peer, tensors in HOLDS[operator].items()}
    skipped = dict.fromkeys((EAGER, OURS), ONE_IMAGE) if operator == "psp_head" and batch == 1 else {}
    return replace(uncompiled(case), parts=(), page_faults=False, graph=False, needed_bytes=needed, skipped=skipped)


TABLES: dict[str, Callable[..., Iterator[Case]]] = {
    "operators": operators,
    "projects": projects,
    "network": networks,
    "end_to_end": end_to_end,
    "scaling": scaling,
    "accelerate": accelerate.cases,
    "runtimes": runtimes.cases,
    "scales": scales.cases,
}


def cases_of(table: str, device: str, *, quick: bool = False, **options: Any) -> list[Case]:
    """The cases of a table on a device."""
    cases = list(TABLES[table](device, quick=quick, **options))
    if quick:  # a process that is started from nothing takes seconds: one shows that it works
        cases[1:] = [replace(case, page_faults=False) for case in cases[1:]]
    return cases

"""What the README says: its numbers are the measured ones, commands parse, snippets run, tables are true."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import pspnet_fast
from benchmarks import report
from pspnet_fast import backend
from pspnet_fast.extension import EXTENSION
from pspnet_fast.ops.operator import OPERATORS

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The README and the other pages, but the one that a program writes: all their commands must work.
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", *(f"docs/{name}" for name in DOCS))
    if name != "docs/counters.md"
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [
    (name, line.strip())
    for name, text in PAGES.items()
    for block in blocks(text, "bash")
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_tables_are_what_was_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert report.filled(text, report.PAGES[page]) == text, "run `python -m benchmarks.report`"


def test_pictures_show_what_was_measured() -> None:
    assert report.outdated(write=False) == [], "run `python -m benchmarks.report`"


# ---- commands -------------------------------------------------------------------------------------------------------


def source_text() -> str:
    files = [*(ROOT / "buildtools").glob("*.py"), *(ROOT / "pspnet_fast").rglob("*.py"), *(ROOT / "cmake").iterdir()]
    files += [*(ROOT / "tests").rglob("*.py"), ROOT / "CMakeLists.txt", ROOT / "Makefile", ROOT / ".ci" / "run"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path != Path(__file__))


def check_typer(arguments: list[str]) -> None:
    """Options, sub-command and their types, without running it."""
    from typer.main import get_command

    from pspnet_fast.engine.commands import app

    group = get_command(app)
    name, command, rest = group.resolve_command(group.make_context("pspnet-fast", list(arguments)), arguments)  # type: ignore[attr-defined]
    command.make_context(name, rest)


def check_overrides(arguments: list[str]) -> None:
    from pspnet_fast.engine import load_config

    configs = [word for word in arguments if re.fullmatch(r"\w+_r\d+", word)]
    load_config(configs[0] if configs else "camvid_r18", [word for word in arguments if re.match(r"\w+\.\w+=", word)])


def check_program(words: list[str]) -> None:
    """Fails where the command would not even start."""
    program, arguments = words[0], words[1:]
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), (
            f"no target {arguments[0]}"
        )
    elif program == "pspnet-fast":
        check_typer(arguments)
        if arguments[0] == "train":
            check_overrides(arguments)
    elif program == "torchrun":
        check_program(["pspnet-fast", *arguments[arguments.index("pspnet_fast.cli") + 1 :]])
    elif program == "python" and arguments[0] == "-m":
        assert find_spec(arguments[1]) is not None, f"no module {arguments[1]}"
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), f"no {arguments[0]}"
    elif program in ("pytest", "cmake", "ctest"):
        for path in (word for word in arguments if word.startswith(("tests", "benchmarks"))):
            assert (ROOT / path).exists(), f"no {path}"
    elif program.startswith((".ci/", "./")):
        assert os.access(ROOT / program, os.X_OK), f"{program} cannot be run"
    else:
        assert program in ("pip", "git", "cd"), f"{program} is a program that this test does not know"


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[:60])
def test_command(page: str, line: str) -> None:
    pytest.importorskip("typer", reason="the commands need the extra [train]")
    assert subprocess.run(["bash", "-n"], input=line, text=True, check=False).returncode == 0
    for part in re.split(r"&&|;(?![\d])", line.split(" #")[0]):
        words = shlex.split(part)
        while words and re.match(r"[A-Z_]+=", words[0]):
            variable = words.pop(0).split("=")[0]
            assert variable in ("PATH", "PYTHONPATH") or variable in source_text(), f"nothing reads {variable}"
        check_program(words)


# ---- snippets, tables, links ----------------------------------------------------------------------------------------


def snippet_names() -> dict[str, Any]:
    """What a snippet finds in its surroundings: two tiny labelled images, and maps of two heads."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 33, 33, generator=generator)
    target = torch.randint(0, 19, (2, 33, 33), generator=generator)
    main, aux = (torch.randn(2, 19, 5, 5, generator=generator) for _ in range(2))
    maps = {"features": torch.randn(2, 8, 13, 9, generator=generator), "main_logits": main, "aux_logits": aux}
    return {"loader": [(images, target)], "target": target, **maps}


# Their snippets build on one another and need other libraries: tests/fusion/test_training_runs.py,
# tests/deploy/test_exports.py, tests/engine/test_own_data_page.py.
RUN_ELSEWHERE = ("docs/accelerate.md", "docs/deploy.md", "docs/own_data.md")
SNIPPETS = {
    f"{name}-{i}": code
    for name in PAGES
    if name not in RUN_ELSEWHERE
    for i, code in enumerate(blocks(PAGES[name], "python"))
}


@pytest.mark.parametrize("code", SNIPPETS.values(), ids=SNIPPETS)
def test_snippet_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), snippet_names())


def test_snippets_were_found() -> None:
    assert len(blocks(README, "python")) >= 2
    assert len(COMMANDS) > 15


def test_replacement_for_semsegs_import() -> None:
    (diff,) = blocks(README, "diff")
    (added,) = re.findall(r"^\+(.*)", diff, re.MULTILINE)
    names: dict[str, Any] = {}
    exec(added, names)
    assert names["PSPNet"] is pspnet_fast.PSPNet


def test_operator_table_names_the_kernels_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \|([^|]*)\|$", README, re.MULTILINE)
    named = {name: set(re.findall(r"`(\w+)`", kernels)) for name, kernels in rows}
    not_built = {name for name, reason in (("cpu", EXTENSION.cpu), ("cuda", EXTENSION.cuda)) if reason is not None}
    for operator in OPERATORS:
        assert named[operator] - not_built == {*backend.kernels(operator)}


def test_data_set_table_names_the_data_sets_there_are() -> None:
    data = pytest.importorskip("pspnet_fast.data")
    rows = re.search(r"\| data set \|.*?\n\n", README, re.DOTALL)
    assert rows is not None
    first_cells = " ".join(line.split("|")[1] for line in rows.group().splitlines()[2:-1])
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(data.DATASETS)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_figure_is_a_picture() -> None:
    assert ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot().tag.endswith("svg")

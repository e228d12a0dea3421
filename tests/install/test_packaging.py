"""Which torch a build links against, and what the source distribution carries."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from buildtools import backend
from buildtools.extension import find_torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("isolated", [False, True])
def test_finds_the_torch_that_will_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated: bool) -> None:
    """Not one of an isolated build."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '0.0.decoy'\n")
    if isolated:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = find_torch()
    assert (found.version, Path(found.folder)) == (torch.__version__, Path(torch.__file__).parent)


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_torch_is_a_build_requirement_only_where_there_is_none(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend._setuptools, hook, lambda config_settings: ["setuptools"])
    assert getattr(backend, hook)() == ["setuptools"]
    monkeypatch.setattr(backend, "find_torch", lambda: None)
    assert getattr(backend, hook)() == ["setuptools", "torch>=2.11"]


def test_an_old_setuptools_is_named_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "setuptools"
    old.mkdir()
    (old / "__init__.py").write_text("__version__ = '65.5.0'\nExtension = setup = None\n")
    (old / "build_meta.py").touch()
    (old / "command").mkdir()
    (old / "command" / "build_ext.py").write_text("build_ext = object\n")
    for command in (["-c", "import buildtools.backend"], ["setup.py", "build_ext"]):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith(
            "pspnet_fast needs setuptools 77 or newer to build, but this environment has 65.5.0"
        )
        assert 'pip install "setuptools>=77,<82" cmake ninja pybind11' in done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution, made from a copy: setuptools writes next to the sources."""
    pytest.importorskip("build", reason="python -m build is not installed")
    work = tmp_path_factory.mktemp("sdist")
    top = shutil.ignore_patterns(".*", "build", "dist", "demo", "runs", "*.egg-info")
    below = shutil.ignore_patterns("__pycache__")  # a package may be called demo
    shutil.copytree(ROOT, work / "source", ignore=lambda *place: (top if Path(place[0]) == ROOT else below)(*place))
    (work / "source" / "pspnet_fast" / "verified.json").write_text("[]\n")  # as after a run of the GPU suite
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check"]
    command += ["--outdir", str(work), str(work / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work / "unpacked", filter="data")
    (folder,) = (work / "unpacked").iterdir()
    return folder


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("ops", "reference.py", "backend.py", "extension.py", "layout.py"), ()),
        (("deploy",), ("export",)),
        (("data", "engine", "demo", "files.py", "machine.py"), ("train",)),
    ],
)
def test_imported_packages_are_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + [item for extra in extras for item in project["optional-dependencies"][extra]]
    names = {re.split(r"[<>=~! ]", item)[0].lower() for item in declared}

    imported: set[str] = set()
    for folder in folders:
        place = ROOT / "pspnet_fast" / folder
        for path in [place] if place.is_file() else place.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    imported.add(node.module.split(".")[0])
    packages = {"PIL": "pillow", "yaml": "pyyaml"}
    others = {packages.get(name, name) for name in imported - sys.stdlib_module_names - {"pspnet_fast"}}
    assert "torch" in others
    assert others - names <= {"triton"}  # comes with torch, where there is one


def test_sdist_has_every_source(sdist: Path) -> None:
    wanted = {"setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "CONTRIBUTING.md", "Makefile",
              "pspnet_fast/py.typed", "pspnet_fast/verified.json"}  # fmt: skip
    for folder, patterns in {
        "csrc": ("*.h", "*.cpp", "*.cu", "*.cuh"),
        "cmake": ("*.cmake",),
        "buildtools": ("*.py",),
        "pspnet_fast": ("*.py", "*.yaml"),
        "tests": ("*.py", "*.cpp"),
        "docs": ("*.py", "*.svg", "*.md"),
        "benchmarks": ("*.py", "*.md", "*.json"),
    }.items():
        wanted |= {path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / folder).rglob(pattern)}
    missing = {name for name in wanted if not (sdist / name).is_file()}
    assert not missing


def test_sdist_has_nothing_built(sdist: Path) -> None:
    built = [path for path in sdist.rglob("*") if path.suffix in (".so", ".o", ".pyc") or "_build_info" in path.name]
    assert not built


def test_installation_has_what_the_package_reads(sdist: Path, tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=sdist, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("verified.json", "py.typed", "configs/camvid_r18.yaml", "digest.py", "triton/atoms.py"):
        assert (tmp_path / "pspnet_fast" / name).is_file(), name


def test_sdist_configures(sdist: Path, configure: Callable[..., Any], tmp_path: Path) -> None:
    """CMake wants every source and header that it lists to exist."""
    done = configure(sdist, tmp_path, "OFF")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "build_info.json").read_text())["cuda_problem"] == "PSPNET_FAST_CUDA=OFF"

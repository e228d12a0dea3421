"""One name, one thing: two types of one name in a namespace are undefined behaviour that no compiler need tell."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

from compiling import COMPILER, CUDA, FLAGS, ROOT, TORCH_FLAGS

CSRC = ROOT / "csrc"
TYPE = re.compile(
    r"^(?:struct|class|union|enum(?: class| struct)?|using) (?:alignas\(.*\) )?(\w+)(?:<.*>)?(?: [:=].*| \{.*)?$"
)


def types_of(text: str) -> set[str]:
    """The types that ``text`` defines outside of unnamed namespaces, with their namespaces and specialisations."""
    found: set[str] = set()
    namespaces: list[str] = []
    for line in text.splitlines():
        if opened := re.match(r"^namespace ?([\w:]*) ?\{", line):
            namespaces.append(opened[1] or "unnamed")
        elif line.startswith("}") and "// namespace" in line:
            namespaces.pop()
        elif (defined := TYPE.match(line)) and not line.endswith(";") and "unnamed" not in namespaces:
            specialised = re.search(r"\w+(<.*>)", line)
            found.add("::".join([*namespaces, defined[1]]) + (specialised[1] if specialised else ""))
    return found


def doubled(files: dict[str, str]) -> dict[str, list[str]]:
    """The types that more than one of the files define."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, text in files.items():
        for type_ in types_of(text):
            places[type_].append(name)
    return {type_: names for type_, names in places.items() if len(names) > 1}


def test_no_type_is_defined_twice() -> None:
    files = {str(path.relative_to(CSRC)): path.read_text() for path in CSRC.rglob("*.*")}
    assert sum(len(types_of(text)) for text in files.values()) > 40
    assert doubled(files) == {}


def test_a_doubled_type_is_found() -> None:
    product = "namespace a {\nstruct Strides {\n  int outer;\n};\n}  // namespace a\n"
    unnamed = "namespace a {\nnamespace {\nstruct Strides {\n};\n}  // namespace\n}  // namespace a\n"
    elsewhere = product.replace("namespace a", "namespace b")
    files = {"product.h": product, "loss.h": product, "kernel.cu": unnamed, "elsewhere.h": elsewhere}
    assert doubled(files) == {"a::Strides": ["product.h", "loss.h"]}


def test_headers_can_be_included_together(tmp_path: Path) -> None:
    headers = sorted([*CSRC.glob("*.h"), *CUDA.glob("*.h"), *CUDA.glob("*.cuh")])
    source = tmp_path / "all.cpp"
    source.write_text("".join(f'#include "{header}"\n' for header in headers))
    command = [COMPILER, *FLAGS, *TORCH_FLAGS, "-Wno-unknown-pragmas", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

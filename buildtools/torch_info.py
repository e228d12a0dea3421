"""Finds the torch that the package will be imported with, from inside or outside an isolated build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

# Reads version.py instead of importing torch, which takes seconds.
_PROBE = """
import importlib.util, json, os
spec = importlib.util.find_spec("torch")
answer = None
if spec is not None and spec.origin:
    folder, scope = os.path.dirname(spec.origin), {}
    with open(os.path.join(folder, "version.py")) as file:
        exec(file.read(), scope)
    answer = {"version": str(scope["__version__"]), "folder": folder, "cuda": scope.get("cuda")}
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class TorchInfo:
    """One installed torch: its version, its package folder, and the CUDA it was built with (None: without)."""

    version: str
    folder: str
    cuda: str | None


def find_torch() -> TorchInfo | None:
    """The torch to link against, or None where there is none.

    An isolated build hides the environment's packages behind PYTHONPATH, but runs the environment's interpreter: the
    same interpreter without those variables sees what the user will import. A torch that was put into the build
    environment on purpose is taken only if the environment itself has none.
    """
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")}
    return _probe(clean) or _probe(dict(os.environ))


def _probe(environment: dict[str, str]) -> TorchInfo | None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, cwd=sys.prefix, capture_output=True, text=True, check=False
    )
    answer = json.loads(done.stdout) if done.returncode == 0 else None
    return TorchInfo(**answer) if answer else None

"""Runs pytest in forks of a process that has imported what the operators' tests need: most of a short run is imports.

Reads a line of JSON for each run, [library, arguments of pytest...]; answers with [exit code, what was printed].
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

LIMIT = 300  # seconds of a run
IMPORTED = ("pytest", "hypothesis", "pspnet_fast", "torch._dynamo", "torch.testing._internal.optests")


class Forks:
    """The process, started by the first run."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root, self.environment = root, environment
        self.process: subprocess.Popen[str] | None = None

    def run(self, library: Path, arguments: Sequence[str]) -> tuple[int, str]:
        """The exit code of pytest, and what it printed; the code is below 0 where a signal ended it."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__], cwd=self.root, env=self.environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([str(library), *arguments]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:  # it has said why on stderr
            raise RuntimeError(f"the process that forks ended with exit code {self.process.wait()}")
        code, printed = json.loads(answer)
        return code, printed

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


def run_forked(library: str, arguments: Sequence[str], out: IO[bytes]) -> int:
    child = os.fork()
    if child == 0:
        os.environ["PSPNET_FAST_CUDA_ON_CPU"] = library
        signal.alarm(LIMIT)
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
        import pytest

        code = pytest.main(list(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    sys.path.insert(0, os.getcwd())
    for name in IMPORTED:
        __import__(name)
    for line in sys.stdin:
        library, *arguments = json.loads(line)
        with tempfile.TemporaryFile() as out:
            code = run_forked(library, arguments, out)
            out.seek(0)
            print(json.dumps([code, out.read().decode(errors="replace")]), flush=True)


if __name__ == "__main__":
    main()

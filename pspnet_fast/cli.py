"""The console script ``pspnet-fast`` (also ``python -m pspnet_fast.cli``, which torchrun can start)."""

from __future__ import annotations

import importlib
import sys


def main(module: str = "pspnet_fast.engine.commands", name: str = "pspnet-fast") -> None:
    """Run a module's command line; without the packages of the extra ``[train]``, say how to get them."""
    try:
        app = importlib.import_module(module).app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pspnet_fast"):
            raise
        sys.exit(f"{name} needs the package {error.name!r}: pip install 'pspnet-fast[train]'")
    app()


if __name__ == "__main__":
    main()

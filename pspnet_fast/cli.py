"""The console script ``pspnet-fast`` (also ``python -m pspnet_fast.cli``, which torchrun can start)."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the packages of the extra ``[train]``, say how to get them."""
    try:
        from pspnet_fast.engine.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pspnet_fast"):
            raise
        sys.exit(f"pspnet-fast needs the package {error.name!r}: pip install 'pspnet-fast[train]'")
    app()


if __name__ == "__main__":
    main()

"""Starts the demo; without the packages of the extra ``[train]``, says how to get them."""

from __future__ import annotations

import sys

try:
    from pspnet_fast.demo.command import app
except ModuleNotFoundError as error:
    if (error.name or "").startswith("pspnet_fast"):
        raise
    sys.exit(f"the demo needs the package {error.name!r}: pip install 'pspnet-fast[train]'")

app()

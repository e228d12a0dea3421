"""What setup.py needs to build the extension: finding torch, driving CMake, and saying what was built."""

import setuptools

LEAST_SETUPTOOLS = 77  # reads the licence as pyproject.toml has it; older ones stop there with a page about the format


def require_setuptools() -> None:
    """Ends the build with the remedy where setuptools is too old: without build isolation pip does not look."""
    if int(setuptools.__version__.split(".")[0]) < LEAST_SETUPTOOLS:
        raise SystemExit(
            f"pspnet_fast needs setuptools {LEAST_SETUPTOOLS} or newer to build, but this environment has "
            f"{setuptools.__version__}. Install what a build without isolation needs:\n"
            f'    pip install "setuptools>={LEAST_SETUPTOOLS},<82" cmake ninja pybind11\n'
            "or leave out --no-build-isolation."
        )

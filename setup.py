"""Builds pspnet_fast._C through CMake and Ninja. Everything else about the package is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))
from buildtools import require_setuptools
from buildtools.extension import BuildResult, build_extension, find_torch, framed

require_setuptools()
BUILD_INFO = "_build_info.json"


class CMakeBuild(build_ext):
    """Hands the extension to CMake. A part that cannot be built is left out and reported; the install continues."""

    result: BuildResult

    def run(self) -> None:
        super().run()
        folders = [Path(self.get_ext_fullpath("pspnet_fast._C")).parent]
        if self.inplace:
            folders.append(Path(__file__).resolve().parent / "pspnet_fast")
        for folder in folders:
            self.result.write(folder / BUILD_INFO)
        print(framed(self.result), file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.unlink(missing_ok=True)
        self.result = build_extension(find_torch(), output, Path("build").resolve())

    def copy_extensions_to_source(self) -> None:
        # An older build must not be left behind where this one gave nothing.
        for stale in (Path(__file__).resolve().parent / "pspnet_fast").glob("_C.*.so"):
            stale.unlink()
        super().copy_extensions_to_source()


setup(
    ext_modules=[Extension("pspnet_fast._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)

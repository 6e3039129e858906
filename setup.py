"""Build entry for pip: metadata is in pyproject.toml, the native build in vdiff_fast/_build.py."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

ROOT = Path(__file__).resolve().parent


def _load_builder():
    """Load vdiff_fast/_build.py by path: importing the package would import torch, which a build environment lacks."""
    spec = importlib.util.spec_from_file_location("vdiff_fast_build", ROOT / "vdiff_fast" / "_build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


builder = _load_builder()
REQUEST = builder.BuildRequest.from_environment()
TOOLCHAIN = builder.find_toolchain(REQUEST)


class NativeDistribution(Distribution):
    """A platform wheel where the native libraries are built, a pure one elsewhere."""

    def has_ext_modules(self) -> bool:
        return TOOLCHAIN.usable


class WheelForEveryPython(bdist_wheel):
    """The libraries use torch's stable ABI and nothing of Python's, so the platform is all that a wheel is tied to."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class BuildWithNative(build_py):
    """Copy the Python files, then build the libraries beside them; the C++ sources go along for `vdiff-fast build`."""

    def run(self) -> None:
        super().run()
        package = ROOT / "vdiff_fast" if self.editable_mode else Path(self.build_lib) / "vdiff_fast"
        # An editable package is for this machine, a wheel for every machine.
        record = builder.build(package, source=ROOT, request=REQUEST, toolchain=TOOLCHAIN, here_only=self.editable_mode)
        print(record.summary(), file=sys.stderr)
        if not self.editable_mode:
            self._carry_sources(package / "_source")

    def _carry_sources(self, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(ROOT / "csrc", target / "csrc")
        shutil.copy2(ROOT / "CMakeLists.txt", target)


class DevelopWithNative(develop):
    """`setup.py develop`, which old tools still call, builds in place too."""

    def run(self) -> None:
        super().run()
        builder.build(ROOT / "vdiff_fast", source=ROOT, request=REQUEST, toolchain=TOOLCHAIN)


setup(
    distclass=NativeDistribution,
    cmdclass={"bdist_wheel": WheelForEveryPython, "build_py": BuildWithNative, "develop": DevelopWithNative},
)

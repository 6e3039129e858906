"""Kernels' own source, built for the host."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def compiled(source: str, folder: Path) -> ctypes.CDLL:
    """A C++ file of this folder as a library in `folder`."""
    library = folder / Path(source).with_suffix(".so").name
    # Products and sums apart: a GPU's fused ones round less.
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    path = ROOT / "tests" / "native" / source
    subprocess.run(["g++", *flags, f"-I{ROOT / 'csrc'}", str(path), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))

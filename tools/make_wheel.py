"""Build the wheel: `make wheel`, or `python tools/make_wheel.py [--platform manylinux_2_28_x86_64]`.

One wheel serves every Python and every torch from 2.11 on, because the libraries use torch's stable ABI and no API of
Python. It holds all CPU instruction sets, and the CUDA library where nvcc is on PATH (VDIFF_FAST_CUDA=1 insists on it).

auditwheel names the platform after the symbols of glibc and libstdc++ that the libraries want: the machine that builds
decides how old a system may be. In the container quay.io/pypa/manylinux_2_28_x86_64 it is manylinux_2_28.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
# torch brings them; their names are all that the wheel knows of them.
TORCH_LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so")


def build(folder: Path) -> Path:
    environment = os.environ | {"VDIFF_FAST_NATIVE": "1", "VDIFF_FAST_ISAS": "all"}
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def foreign_symbols(library: Path) -> list[str]:
    """Symbols of torch's C++ classes that a library wants: any of them would tie it to one version of torch.

    Raises:
        ValueError: the library asks nothing of torch, so it is not what was meant to be read.
    """
    command = ["nm", "-DC", "--undefined-only", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = [line.split(maxsplit=1)[1] for line in text.splitlines() if re.search(r"\b(at|c10)::", line)]
    if not wanted and "aoti_torch" not in text:
        raise ValueError(f"{library} wants no function of torch's stable ABI")
    return wanted


def check(wheel: Path) -> None:
    """Tags, files, and the symbols that the libraries want of torch."""
    if "-py3-none-" not in wheel.name:
        raise SystemExit(f"{wheel.name} is not for every Python 3")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = [name for name in names if name.endswith(".so")]
        if "vdiff_fast/_lib/libvdiff_fast_cpu.so" not in libraries:
            raise SystemExit(f"{wheel.name} has no CPU library")
        for name in libraries:
            if wanted := foreign_symbols(Path(archive.extract(name, folder))):
                raise SystemExit(f"{name} wants C++ symbols of torch: {', '.join(wanted[:5])}")
            print(f"{name}: {archive.getinfo(name).file_size / 1e6:.1f} MB, only torch's stable ABI")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files")


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--platform", default="auto", help="fail unless the libraries fit it; default: what they fit")
    platform = parse.parse_args().platform
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        shutil.rmtree(DIST, ignore_errors=True)
        command = [sys.executable, "-m", "auditwheel", "repair", "--plat", platform, "-w", str(DIST), str(wheel)]
        subprocess.run([*command, *(f"--exclude={name}" for name in TORCH_LIBRARIES)], check=True)
    (repaired,) = DIST.glob("*.whl")
    check(repaired)


if __name__ == "__main__":
    main()

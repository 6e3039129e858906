"""Make the virtual environment of the Makefile: `python tools/make_venv.py .venv`. Standard library only.

A Python that already has torch >= 2.11 lends it (system site packages); else torch 2.13.0 is installed, because a plain
`torch` would take the newest release with gigabytes of CUDA packages.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

PINNED = "torch==2.13.0"


def active_torch_is_new_enough() -> bool:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2]) >= (2, 11)


def main(folder: Path) -> None:
    lent = active_torch_is_new_enough()
    print(f"making {folder}: {'torch of the active Python' if lent else PINNED}", flush=True)
    venv.create(folder, with_pip=True, system_site_packages=lent)
    if not lent:
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", PINNED], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Files that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def demo_clip() -> Path:
    """Big Buck Bunny, 72 frames of 128x128 at 24 fps, (c) 2008 Blender Foundation, CC BY 3.0; see NOTICE."""
    return Path(str(files("vdiff_fast.data").joinpath("assets", "big_buck_bunny.mp4")))

"""Finished clips on disk, each whole or absent, so that a killed run goes on with what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff_fast._files import save_safetensors, write_text

_SETTINGS = "settings.json"


class SegmentError(ValueError):
    """A folder of segments belongs to another video, or a file in it is damaged; the message says what to do."""


class SegmentFiles:
    """FOLDER/settings.json and FOLDER/level_0/00000000.safetensors, ...: tensor "frames" (C, T, H, W).

    Files are written beside, flushed to the disk and renamed. Several processes may write different segments.

    Args:
        folder: made where it is missing.
        settings: what the segments depend on; a folder with other settings is refused.

    Raises:
        SegmentError: the folder holds segments of other settings; the message names those that differ.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _SETTINGS
        mine = json.loads(json.dumps(settings))
        if path.exists():
            self._compare(json.loads(path.read_text()), mine)
        else:
            write_text(path, json.dumps(mine, indent=1) + "\n")

    def path(self, level: int, index: int) -> Path:
        return self.folder / f"level_{level}" / f"{index:08d}.safetensors"

    def load(self, level: int, index: int, shape: tuple[int, ...]) -> Tensor | None:
        """The frames of a segment, None where it is not finished.

        Raises:
            SegmentError: the file cannot be read or holds another shape.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(level, index)
        if not path.exists():
            return None
        try:
            frames = load(path.read_bytes())["frames"]
        except (SafetensorError, KeyError, OSError) as error:
            raise SegmentError(f"{path}: cannot be read ({error}); remove it, and it is made again") from error
        if tuple(frames.shape) != tuple(shape):
            raise SegmentError(f"{path}: holds {tuple(frames.shape)}, not {tuple(shape)}; remove it")
        return frames

    def save(self, level: int, index: int, frames: Tensor) -> None:
        save_safetensors(self.path(level, index), {"frames": frames.to("cpu", torch.float32).contiguous()})

    def _compare(self, saved: dict[str, Any], mine: dict[str, Any]) -> None:
        differing = [
            f"{key}: {saved.get(key)} saved, {mine.get(key)} now"
            for key in sorted(saved.keys() | mine.keys())
            if saved.get(key) != mine.get(key)
        ]
        if differing:
            raise SegmentError(
                f"{self.folder} holds segments of another video ({'; '.join(differing)}); "
                "restore these, choose another folder, or remove this one"
            )

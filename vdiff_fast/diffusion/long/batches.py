"""Many independent clips: in batches, on all ranks, from and to disk, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vdiff_fast.diffusion.conditioning import ConditionError
from vdiff_fast.diffusion.long.clips import ClipDenoiser
from vdiff_fast.diffusion.long.files import SegmentFiles


class ClipBatches:
    """Draws all clips of a level that are not on disk yet: rank r the r-th of equal shares, in runs of batch_size.

    A context manager, for its progress bars: clips, and nested the steps of a batch.

    Args:
        clips: draws clips by number.
        files: where finished clips are kept; None keeps them in memory alone.
        batch_size: clips denoised side by side.
        total: clips of all levels, for the bar.
        progress: show bars, on rank 0.
    """

    def __init__(
        self, clips: ClipDenoiser, files: SegmentFiles | None, batch_size: int, total: int, progress: bool
    ) -> None:
        if batch_size < 1:
            raise ConditionError(f"batch_size must be at least 1, got {batch_size}")
        self.clips, self.files, self.batch_size = clips, files, batch_size
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
        self._bars = _Bars(total, clips.steps, progress and self.rank == 0)

    def __enter__(self) -> ClipBatches:
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.close()

    def __call__(
        self, level: int, first_number: int, known: Callable[[int], Tensor], count: int, mask: Tensor
    ) -> list[Tensor]:
        """Clips 0 .. count - 1 of a level, (C, T, H, W) each, on every rank.

        Args:
            level: names their files; first_number: the number of clip 0, which is the number of its noise.
            known: index -> (C, T, H, W) with what is known of that clip; mask: where that is, the same for all.
        """
        mine = range(count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks)
        made: dict[int, Tensor] = {}
        for index in mine:
            frames = None if self.files is None else self.files.load(level, index, self.clips.shape)
            if frames is not None:
                made[index] = frames
        self._bars.done(len(made))
        for batch in _runs([index for index in mine if index not in made], self.batch_size):
            self._bars.start_batch(level)
            conditions = torch.stack([known(index) for index in batch])
            drawn = self.clips(first_number + batch[0], conditions, mask, self._bars.step)
            for index, frames in zip(batch, drawn):
                made[index] = frames.clone()
                if self.files is not None:
                    self.files.save(level, index, frames)
            self._bars.done(len(batch))
        everything = _from_all_ranks(made)
        self._bars.done(count - len(mine))
        return [everything[index] for index in range(count)]

    def one(self, index: int, known: Tensor, mask: Tensor) -> Tensor:
        """Clip `index` alone, in a chain where every clip waits for the one before: rank 0 draws it, all get it."""
        shared: list[Any] = [None]
        if self.rank == 0:
            frames = None if self.files is None else self.files.load(0, index, self.clips.shape)
            if frames is None:
                self._bars.start_batch(0)
                frames = self.clips(index, known[None], mask, self._bars.step)[0]
                if self.files is not None:
                    self.files.save(0, index, frames)
            shared = [frames]
        self._bars.done(1)
        if _distributed():
            dist.broadcast_object_list(shared)
        return shared[0]


def open_files(folder: Any, settings: dict[str, Any]) -> SegmentFiles | None:
    """The folder's files, made by rank 0 and then opened by all; None without a folder."""
    if folder is None:
        return None
    if not _distributed():
        return SegmentFiles(folder, settings)
    if dist.get_rank() == 0:
        try:
            return SegmentFiles(folder, settings)
        finally:
            # Also after an error, or the other ranks would wait.
            dist.barrier()
    dist.barrier()
    return SegmentFiles(folder, settings)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _from_all_ranks(made: dict[int, Tensor]) -> dict[int, Tensor]:
    if not _distributed():
        return made
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, made)
    return {index: frames for part in gathered for index, frames in part.items()}


def _runs(indices: Sequence[int], longest: int) -> Iterator[range]:
    """Neighbours in runs of up to `longest`: a batch's noise is numbered through."""
    start = 0
    for i in range(1, len(indices) + 1):
        if i == len(indices) or indices[i] != indices[i - 1] + 1 or i - start == longest:
            yield range(indices[start], indices[i - 1] + 1)
            start = i


class _Bars:
    """Clips done, and below them the steps of the batch at hand."""

    def __init__(self, total: int, steps: int, shown: bool) -> None:
        self.clips = self.steps = None
        if shown:
            from tqdm.auto import tqdm

            self.clips = tqdm(total=total, desc="clips", unit="clip")
            self.steps = tqdm(total=steps, desc="steps", unit="step", leave=False)

    def start_batch(self, level: int) -> None:
        if self.steps is not None:
            self.steps.reset()
            self.steps.set_description(f"level {level}, steps")

    def step(self) -> None:
        if self.steps is not None:
            self.steps.update()

    def done(self, clips: int) -> None:
        if self.clips is not None:
            self.clips.update(clips)

    def close(self) -> None:
        for bar in (self.steps, self.clips):
            if bar is not None:
                bar.close()

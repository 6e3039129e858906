"""What a model is told of a video: known frames or pixels, zeros elsewhere, and their mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import layout


class ConditionError(ValueError):
    """A model or a condition that does not fit; the message says what would."""


def condition(video: Tensor, mask: Tensor) -> Tensor:
    """cond = [video where mask, else 0 | mask]: what `model(x, t, cond=cond)` is told.

    Args:
        video: (B, C, T, H, W) in [-1, 1]; values where the mask is False do not matter.
        mask: bool, broadcasts to (B, 1, T, H, W): True where the video is known. See `frame_mask`, `box_mask`.

    Returns:
        (B, C + 1, T, H, W) of video's dtype, channels-last.

    Raises:
        ConditionError: the mask does not broadcast to the video.

    Source: Yin et al. 2023, "NUWA-XL", section 3.1 (mask temporal diffusion).
    """
    batch, _, *rest = video.shape
    try:
        mask = mask.to(video.device).expand(batch, 1, *rest)
    except RuntimeError:
        raise ConditionError(
            f"mask {tuple(mask.shape)} does not broadcast to {(batch, 1, *rest)}, one entry per pixel or frame"
        ) from None
    known = torch.where(mask, video, video.new_zeros(()))
    return layout.canonical(torch.cat([known, mask.to(video.dtype)], dim=1))


def frame_mask(frames: int, known: Iterable[int], *, device: torch.device | str | None = None) -> Tensor:
    """True for whole frames, (1, 1, T, 1, 1): [0] continues an image, [0, -1] fills in between, range(k) predicts.

    Raises:
        ConditionError: a position is not a frame of the clip.
    """
    mask = torch.zeros(frames, dtype=torch.bool, device=device)
    for position in known:
        if not -frames <= position < frames:
            raise ConditionError(f"known frame {position} is not within a clip of {frames} frames")
        mask[position] = True
    return mask.view(1, 1, frames, 1, 1)


def box_mask(size: Sequence[int], box: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """True outside the box (top, left, height, width), which is to be painted in every frame: (1, 1, 1, H, W).

    Raises:
        ConditionError: the box is empty or leaves the frame.
    """
    height, width = size
    top, left, box_height, box_width = box
    inside = 0 <= top < top + box_height <= height and 0 <= left < left + box_width <= width
    if not inside:
        raise ConditionError(
            f"box {tuple(box)} (top, left, height, width) is not within a frame of {height}x{width}: "
            f"height and width from 1 on, top + height <= {height}, left + width <= {width}"
        )
    mask = torch.ones(height, width, dtype=torch.bool, device=device)
    mask[top : top + box_height, left : left + box_width] = False
    return mask.view(1, 1, 1, height, width)


def keep_known(video: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """The video with its known parts exactly as they were given."""
    return layout.canonical(torch.where(mask.to(video.device), known.to(video.device, video.dtype), video))


def require_conditioning(model: Any, channels: int) -> None:
    """Raise `ConditionError` if the model tells by its `config` that it was built without known frames and a mask.

    A model that has no config is taken to be built for them.
    """
    built_for = getattr(getattr(model, "config", None), "cond_channels", None)
    if built_for is None or built_for == channels + 1:
        return
    what = "without known frames" if built_for == 0 else f"for {built_for} condition channels"
    raise ConditionError(
        f"the model was built {what} (cond_channels={built_for}); frames of {channels} channels and their mask need "
        f"cond_channels={channels + 1}, which training with masks sets: vdiff-fast train --masks global,local"
    )


def require_frames(model: Any, frames: int) -> None:
    """Raise `ConditionError` if the model tells by its `config` that it cannot see so many frames at once."""
    config = getattr(model, "config", None)
    longest = getattr(config, "max_frames", None)
    if getattr(config, "positions", None) == "bias" and isinstance(longest, int) and frames > longest:
        raise ConditionError(f"clips of {frames} frames > {longest} learned positions; use clips of {longest} or fewer")
    together = getattr(config, "patch", (1,))[0]
    if frames > 1 and frames % together:
        below = frames // together * together
        fitting = " or ".join(str(n) for n in (below, below + together) if n >= 3)
        raise ConditionError(
            f"clips of {frames} frames are not a multiple of the {together} frames of a patch; use clips of {fitting}"
        )

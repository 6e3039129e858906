"""Which parts of a training clip the model is told: a role per clip, drawn by counters as everything else.

The loss counts every frame, known ones too. x_t holds a noised copy of what is known, and a network that has learned to
read it off the condition follows, while sampling, a path it has seen in training; the known parts cost a few percent of
the loss, for copying is easy, and the fused loss stays one pass. Samplers put the known frames back exactly at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from vdiff_fast.diffusion.conditioning import box_mask, frame_mask
from vdiff_fast.training.draws import uniforms

Role = Literal["global", "local", "first", "prediction", "inpaint", "random"]
ROLES: tuple[Role, ...] = get_args(Role)
# The shares of a frame's sides that the box of "inpaint" takes.
_BOX = (0.25, 0.75)
# Streams of the counter-based noise, after those of `draws`.
_ROLE, _SHAPE = -3, -4


def parse_masks(value: object) -> object:
    """ "global,local=2" as {"global": 1, "local": 2}; anything else as it is."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    return {role.strip(): weight.strip() or 1.0 for role, _, weight in pairs}


def roles_of_stride(roles: Mapping[Role, float], strides: Sequence[int], stride: int) -> dict[Role, float]:
    """The roles that a clip of this stride can have.

    "global" makes key frames, so it is for the largest stride; "local" fills between the frames of the level above, so
    it is for all others; what else there is, is for neighbouring frames, the smallest. One stride has all roles.
    """
    levels = sorted(set(strides))
    if len(levels) < 2:
        return dict(roles)
    largest, smallest = stride == levels[-1], stride == levels[0]
    wanted = {role: largest if role == "global" else not largest if role == "local" else smallest for role in roles}
    return {role: weight for role, weight in roles.items() if wanted[role]}


def check_masks(roles: Mapping[Role, float], strides: Sequence[int]) -> None:
    """Raise ValueError unless every stride has a role to train."""
    for stride in sorted(set(strides)):
        if sum(roles_of_stride(roles, strides, stride).values()) <= 0:
            needed = "global" if stride == max(strides) else "local"
            raise ValueError(
                f"diffusion.masks {dict(roles)} has no role for clips of stride {stride} (of {sorted(set(strides))}); "
                f"add {needed}, or leave the stride out"
            )


def draw_masks(
    roles: Mapping[Role, float], strides: Sequence[int], of_clip: Sequence[int], clip: Sequence[int],
    seed: int, sample_offset: int,
) -> Tensor:  # fmt: skip
    """bool (B, 1, T, H, W), True where known; clip b's mask depends on its stride and on sample_offset + b alone.

    Args:
        roles: weight of each role, see `roles_of_stride`.
        strides: all that the run trains; of_clip: those of this batch's clips.
        clip: (T, H, W).
    """
    count = len(of_clip)
    chosen = uniforms(count, 1, seed, sample_offset, _ROLE)[:, 0].tolist()
    shapes = uniforms(count, 4 + clip[0], seed, sample_offset, _SHAPE).tolist()
    masks = [
        role_mask(_pick(roles_of_stride(roles, strides, stride), u), clip, shape)
        for stride, u, shape in zip(of_clip, chosen, shapes)
    ]
    return torch.stack([mask.expand(1, 1, *clip)[0] for mask in masks])


def _pick(roles: Mapping[Role, float], u: float) -> Role:
    total, reached = sum(roles.values()), 0.0
    for role, weight in roles.items():
        reached += weight / total
        if u < reached:
            return role
    return [role for role, weight in roles.items() if weight > 0][-1]


def role_mask(role: Role, clip: Sequence[int], u: Sequence[float]) -> Tensor:
    """The mask of a role, broadcasting to (1, 1, T, H, W); `u` are 4 + T uniform numbers that decide what is open."""
    frames, height, width = clip
    if role == "inpaint":
        sides = [max(1, round(side * (_BOX[0] + (_BOX[1] - _BOX[0]) * v))) for side, v in zip((height, width), u)]
        corner = [int(v * (side - inner + 1)) for side, inner, v in zip((height, width), sides, u[2:])]
        return box_mask((height, width), (*corner, *sides))
    known: Sequence[int] = ()
    if role == "local":
        known = (0, frames - 1)
    elif role == "first":
        known = (0,)
    elif role == "prediction":
        known = range(1 + int(u[0] * max(1, frames - 1)))
    elif role == "random":
        known = [i for i in range(frames) if u[4 + i] < u[0]]
        # All frames known teaches nothing: one, drawn, stays open.
        known = [i for i in known if len(known) < frames or i != int(u[1] * frames)]
    return frame_mask(frames, known)

"""What a long video asks of a run: the roles its clips were trained in, and the time between their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vdiff_fast.diffusion import ConditionError, LongVideoPlan
from vdiff_fast.training.masks import ROLES, Role

# What a run can be used for, and the roles that it then needs.
USES: dict[str, tuple[Role, ...]] = {
    "long": ("global", "local"),
    "long --autoregressive": ("global", "prediction"),
    "long --autoregressive --first-frame": ("prediction",),
    "interpolate": ("local",),
    "sample --first-frame": ("first",),
    "sample --first-frame --last-frame": ("local",),
    "sample --last-frame": ("random",),
    "sample --video --keep": ("prediction",),
    "sample --box": ("inpaint",),
}


# Roles whose masks another role draws too.
_INCLUDED: dict[Role, tuple[Role, ...]] = {"prediction": ("first",), "random": ROLES}


def require_roles(run: Path, masks: Mapping[Role, float], needed: Sequence[Role], command: str) -> None:
    """Raise ConditionError unless a run was trained in the needed roles, or in some that draw the same masks.

    Args:
        masks: the run's `diffusion.masks`.
        command: what needs the roles, for the message.
    """
    trained = [role for role, weight in masks.items() if weight > 0]
    known = {*trained, *(role for wider in trained for role in _INCLUDED.get(wider, ()))}
    missing = [role for role in needed if role not in known]
    if not missing:
        return
    able = [use for use, roles in USES.items() if known.issuperset(roles)]
    raise ConditionError(
        f"{run} was trained with --masks {','.join(trained)}; {command} needs {' and '.join(needed)}: train it with "
        f"--masks {','.join([*trained, *missing])}" + (f"; as it is, it can {', '.join(able)}" if able else "")
    )


def sampling_use(first_frame: bool, last_frame: bool, keep: int | None, box: bool) -> str | None:
    """Which of USES a clip of `vdiff-fast sample` is; None where nothing of it is known. One kept frame is a first."""
    if box:
        return "sample --box"
    if keep is not None:
        return "sample --video --keep" if keep > 1 else "sample --first-frame"
    options = " --first-frame" * first_frame + " --last-frame" * last_frame
    return "sample" + options if options else None


def stride_note(strides: Sequence[int]) -> str | None:
    """How a clip that is drawn freely moves, where a run has clips of several strides; None where it has one."""
    trained = sorted(set(strides))
    if len(trained) == 1:
        return None
    return (
        f"of the strides {trained} a clip of its own has the largest, as the key frames of a long video: its frames "
        f"are {trained[-1] // trained[0]} of the smallest apart; vdiff-fast long makes what is between them"
    )


def strides_of(clip: int, levels: int, smallest: int = 1) -> list[int]:
    """smallest * (clip - 1)^k for k < levels: the strides of a long video's clips, those of its last level first."""
    return [smallest * (clip - 1) ** k for k in range(levels)]


def strides_note(clip: int, strides: Sequence[int], masks: Mapping[Role, float]) -> str | None:
    """Why clips of these strides will not be the levels of a long video, where the roles say that they are to be."""
    trained = sorted(set(strides))
    wanted = strides_of(clip, len(trained), trained[0])
    if clip < 3 or trained == wanted or not (masks.get("global") and masks.get("local")):
        return None
    return f"strides {trained} do not match clips of {clip} frames for vdiff-fast long: {wanted} do"


def time_scale_note(plan: LongVideoPlan, strides: Sequence[int], first_frame: bool = False) -> str | None:
    """How a plan's video moves otherwise than the training videos, why, and what would not; None where it does not.

    Key frames come out as far apart as in training, at the largest of the `strides`, and stand `plan.stride(0)` frames
    apart in the video. Only clips of the smallest stride learn to go on from a known first frame, so key frames that do
    so are neighbouring frames.
    """
    trained = sorted(set(strides))
    wanted = strides_of(plan.clip, plan.levels, trained[0])
    made = trained[0] if first_frame else trained[-1]
    if made == wanted[-1] and (plan.levels == 1 or trained == wanted):
        return None
    if first_frame and len(trained) > 1:
        cause = f"of the strides {trained}, a known first frame was trained at {made} alone"
        fix = "--autoregressive goes on from a picture at their speed"
    else:
        cause = f"strides {trained} do not match {plan.levels} level(s) of {plan.clip}-frame clips: {wanted}"
        fix = f"train with --strides {','.join(map(str, wanted))}"
        if plan.levels < len(trained) and trained == strides_of(plan.clip, len(trained), trained[0]):
            fix = f"--levels {len(trained)} --length {plan.frames} keeps their speed"
    return f"{cause}; {_pace(made / wanted[-1])} the training videos; {fix}"


def _pace(pace: float) -> str:
    if pace == 1:
        return "key frames alone move like those of"
    return f"it plays {max(pace, 1 / pace):.3g} times {'as fast as' if pace > 1 else 'slower than'}"

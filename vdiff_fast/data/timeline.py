"""When each frame is shown: time stamps made into seconds, repaired where they cannot be true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median

import numpy as np

# A picture that stands longer than this, and longer than so many of its video's typical intervals, is no picture of the
# video but a hole in it: a clock that jumped, a recording that was interrupted.
_MAX_PAUSE_SECONDS, _MAX_PAUSE_INTERVALS = 2.0, 8
# Stamps in the order of storage run back by a few frames; further back, the clock was set anew.
_MAX_REORDERED_FRAMES = 16
# Slower than this no stamp is believed, and no header's rate; faster neither.
_SLOWEST_INTERVAL_SECONDS = 10.0
_USUAL_RATE, _FASTEST_RATE = 25.0, 10_000.0


@dataclass(frozen=True)
class TimeLine:
    """Seconds from the first frame, in the decoder's order, never decreasing.

    `pts` are the stamps themselves (0, 1, 2, ... where there are none); `in_order`: they increase and so identify
    frames; `closed`: seconds of holes that were closed; `note`: what was repaired, for people.
    """

    times: np.ndarray
    pts: np.ndarray
    in_order: bool
    closed: float = 0.0
    note: str = ""


def time_line(pts: Sequence[int | None], time_base: Fraction, rate: Fraction | None) -> TimeLine:
    """Time stamps in units of `time_base` as a `TimeLine`; `rate` is the header's, for frames without stamps.

    A gap that no video has (a jump of the clock, forwards or back) is closed to the typical interval, so that no frame
    stands for hours. What then still runs backwards is sorted: the decoder's order is that of display, the set of
    stamps is right and only their assignment is not.
    """
    count = len(pts)
    uniform = np.arange(count) / plausible_rate(rate)
    stamps = [p for p in pts if p is not None]
    if len(stamps) < count:
        return TimeLine(uniform, np.arange(count), False, note="no time stamps; the header's frame rate is used")
    raw = np.array([min(max(p, -(1 << 63)), (1 << 63) - 1) for p in stamps], dtype=np.int64)
    # In whole numbers of any size: the difference of two damaged stamps need not fit in 64 bits.
    steps = [after - before for before, after in pairwise(stamps)]
    forward = [step for step in steps if step > 0]
    if len(forward) < 0.25 * len(steps):
        return TimeLine(uniform, raw, False, note="time stamps stand still; the header's frame rate is used")
    typical = float(median(forward)) if forward else 0.0
    if typical * time_base > _SLOWEST_INTERVAL_SECONDS:
        return TimeLine(uniform, raw, False, note="time stamps too far apart; the header's frame rate is used")
    repaired, jumps = _close_jumps(steps, typical, time_base)
    ordered = np.sort(repaired)
    if np.count_nonzero(np.diff(ordered) <= 0.0) > 0.1 * count:
        return TimeLine(uniform, raw, False, note="repeated time stamps; the header's frame rate is used")
    notes = [_jump_note(jumps)] if jumps else []
    if not np.array_equal(ordered, repaired):
        notes.append("time stamps out of order; frames keep the decoder's order")
    return TimeLine(
        ordered - ordered[0], raw, in_order=all(step > 0 for step in steps),
        closed=sum(jump for jump in jumps if jump > 0), note="; ".join(notes),
    )  # fmt: skip


def plausible_rate(rate: Fraction | None) -> float:
    """The header's frames per second where a video can have them, else 25."""
    value = float(rate) if rate else 0.0
    return value if 1.0 / _SLOWEST_INTERVAL_SECONDS <= value <= _FASTEST_RATE else _USUAL_RATE


def _close_jumps(steps: list[int], typical: float, time_base: Fraction) -> tuple[np.ndarray, list[float]]:
    """Seconds of each frame with every jump replaced by the typical interval, and the seconds of each jump."""
    unit = float(time_base)
    longest = max(_MAX_PAUSE_SECONDS / unit, _MAX_PAUSE_INTERVALS * typical)
    furthest_back = _MAX_REORDERED_FRAMES * typical
    believed = [step if -furthest_back <= step <= longest else typical for step in steps]
    jumps = [float(step * time_base) - typical * unit for step, kept in zip(steps, believed) if kept != step]
    return np.cumsum(np.array([0.0, *believed])) * unit, jumps


def _jump_note(jumps: list[float]) -> str:
    times = "once" if len(jumps) == 1 else f"{len(jumps)} times"
    return f"time stamps jump {times}, by up to {max(abs(jump) for jump in jumps):.1f} s; the gaps are closed"

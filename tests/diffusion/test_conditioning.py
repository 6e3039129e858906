"""Conditions: known frames, zeros elsewhere, their mask."""

from __future__ import annotations

import pytest
import torch

from vdiff_fast import layout
from vdiff_fast.diffusion import ConditionError, box_mask, condition, frame_mask, keep_known


def test_known_frames_and_their_mask() -> None:
    video = torch.randn(2, 3, 4, 6, 8)
    video[:, :, 1] = torch.nan
    cond = condition(video, frame_mask(4, (0, -1)))
    assert cond.shape == (2, 4, 4, 6, 8)
    assert layout.is_channels_last(cond)
    assert torch.equal(cond[:, :3, [0, 3]], video[:, :, [0, 3]])
    assert not cond[:, :, 1:3].any()
    assert torch.equal(cond[:, 3, [0, 3]], torch.ones(2, 2, 6, 8))


def test_box_is_what_is_not_known_and_the_rest_is_kept() -> None:
    mask = box_mask((6, 8), (1, 2, 3, 4))
    assert int((~mask).sum()) == 12
    assert not mask[..., 1:4, 2:6].any()
    video, known = torch.randn(1, 1, 2, 6, 8), torch.randn(1, 1, 2, 6, 8)
    kept = keep_known(video, known, mask)
    assert torch.equal(kept[..., 1:4, 2:6], video[..., 1:4, 2:6])
    assert torch.equal(kept[..., 0, :], known[..., 0, :])


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(ConditionError, match="known frame 4 is not within a clip of 4 frames"):
        frame_mask(4, (0, 4))
    for box in ((0, 0, 0, 4), (0, 5, 2, 4), (-1, 0, 2, 2)):
        with pytest.raises(ConditionError, match="is not within a frame of 6x8"):
            box_mask((6, 8), box)
    with pytest.raises(ConditionError, match="does not broadcast"):
        condition(torch.zeros(1, 1, 4, 6, 8), torch.ones(1, 1, 5, 1, 1, dtype=torch.bool))

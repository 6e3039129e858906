"""Memory of a training step: noise drawn from a seed is never stored, not even for the backward."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from benchmarks.training_memory import DRAWN, EAGER, STORED, Step, measure, noise_alone
from vdiff_fast import _library
from vdiff_fast.bench.measure import peak_bytes

SHAPE = (2, 4, 4, 32, 32)
SMALL = 16384  # bytes of what is no video: steps, coefficients, sums


def test_peak_bytes_of_the_cpu_are_those_held_at_once() -> None:
    def call() -> torch.Tensor:
        first = torch.empty(1 << 20, dtype=torch.uint8)
        del first
        second = torch.empty(3 << 20, dtype=torch.uint8)
        third = torch.empty(1 << 20, dtype=torch.uint8)
        del second
        return third

    assert 4 << 20 <= peak_bytes(call, torch.device("cpu")) < (4 << 20) + SMALL


@pytest.mark.skipif(_library.CPU.reason is not None, reason="the kernels are what keeps no noise")
def test_a_step_without_stored_noise_peaks_one_video_lower() -> None:
    found = {row["noise"]: row for row in measure(noise_alone(SHAPE))}
    video = found[DRAWN]["video_bytes"]
    drawn, stored, eager = (found[kind]["peak_bytes"] for kind in (DRAWN, STORED, EAGER))
    assert drawn <= video + SMALL
    assert abs(stored - drawn - video) <= SMALL
    assert eager > stored
    # The gradient, and prediction and x0 for a derivative of it, as eager keeps them; the noise is not among them.
    assert found[DRAWN]["saved_bytes"] <= 3 * video + SMALL
    assert found[STORED]["saved_bytes"] - found[DRAWN]["saved_bytes"] >= video - SMALL


@pytest.mark.skipif(_library.CPU.reason is not None, reason="the kernels are what keeps no noise")
def test_a_whole_step_peaks_one_video_lower_too() -> None:
    torch.manual_seed(0)
    model = vf.models.VideoUNet.preset("tiny")
    found = {row["noise"]: row for row in measure(Step(model, model.parameters(), (1, 3, 4, 32, 32)))}
    video = found[DRAWN]["video_bytes"]
    assert video > 2 * SMALL
    assert abs(found[STORED]["peak_bytes"] - found[DRAWN]["peak_bytes"] - video) <= SMALL
    assert found[DRAWN]["saved_bytes"] <= found[STORED]["saved_bytes"]

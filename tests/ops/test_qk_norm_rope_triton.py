"""What is special to the Triton kernels of qk_norm_rope: a program of the backward that takes several tiles."""

from __future__ import annotations

import importlib

import pytest
import torch

import vdiff_fast as vf
from tests.checks import assert_as_close_as_eager
from vdiff_fast.ops.qk_norm_rope.spec import SPEC

CPU = torch.device("cpu")
SAMPLES = [s.name for s in SPEC.samples(CPU, torch.float32) if s.args[0].numel()]


@pytest.mark.interpreter
@pytest.mark.parametrize("name", SAMPLES)
def test_programs_that_take_several_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program for all rows, as thousands of tiles have several each on a GPU."""
    monkeypatch.setattr(importlib.import_module("vdiff_fast.ops.qk_norm_rope.triton"), "MAX_PROGRAMS", 1)
    sample = next(s for s in SPEC.samples(CPU, torch.float32) if s.name == name)
    with vf.use_backend("triton", ops=[SPEC.name]):
        assert_as_close_as_eager(SPEC, sample, torch.float32)

"""What is special to the Triton kernels of the adaLN ops: a program of the backward that walks over several rows."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch

import vdiff_fast as vf
from tests.checks import assert_as_close_as_eager
from vdiff_fast._spec import Sample
from vdiff_fast.ops.layer_norm_modulate.spec import SPEC

CPU = torch.device("cpu")
SAMPLES = [s.name for s in SPEC.samples(CPU, torch.float32) if s.args[0].numel()]


def _sample(name: str) -> Sample:
    return next(s for s in SPEC.samples(CPU, torch.float32) if s.name == name)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", SAMPLES)
def test_walks_that_end_within_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks of two or three rows, which thousands of rows take on a GPU: the last one of a run is shorter."""
    kernels = importlib.import_module("vdiff_fast.ops._common.triton.layer_norm")
    chosen = kernels.row_config

    def walking(width: int, rows: int, length: int, element_bytes: int, *, backward: bool) -> Any:
        config = chosen(width, rows, length, element_bytes, backward=backward)
        return replace(config, rows=2 if length % 2 else 3) if backward else config

    monkeypatch.setattr(kernels, "row_config", walking)
    with vf.use_backend("triton", ops=[SPEC.name]):
        assert_as_close_as_eager(SPEC, _sample(name), torch.float32)

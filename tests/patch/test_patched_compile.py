"""A patched model is one graph, as it is without the patch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

import vdiff_fast as vf

pytest.importorskip("diffusers", reason="needs diffusers")

from tests.patch.test_patch_diffusers import MODELS

# Every model without gradients; what differs in other modes is alike in all of them.
CASES = [(name, torch.no_grad) for name in MODELS] + [("latte", torch.inference_mode), ("latte", torch.enable_grad)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_no_graph_break(name: str, mode: Callable[[], AbstractContextManager[None]]) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name][0]()
    assert vf.patch(model.eval()).count
    given = inputs()
    torch._dynamo.reset_code_caches()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with mode():
        torch.testing.assert_close(compiled(**given)[0], model(**given)[0])

"""A patched model is sharded, copied, pickled, saved and compiled as the plain one."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import vdiff_fast as vf
from tests.patch.models import MODELS, assert_same, block, built, patched

pytest.importorskip("diffusers", reason="needs diffusers")

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from vdiff_fast.patch.fused_class import is_fused

each_model = pytest.mark.parametrize("name", MODELS)


# Sharding


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # of in-place changes, which nobody makes
@pytest.mark.parametrize("units", ["blocks", "norms"])
@pytest.mark.parametrize("first", ["patch", "shard"])
@pytest.mark.parametrize("name", ["animatediff", "video_vae"])
def test_sharded_before_and_after(name: str, first: str, units: str, one_rank: DeviceMesh) -> None:
    model, given = built(name)
    with torch.no_grad():
        expected = model(**given)[0]
    if first == "patch":
        vf.patch(model)
    kinds = (nn.GroupNorm,) if units == "norms" else (ResnetBlock2D, Attention)
    for module in [module for module in model.modules() if isinstance(module, kinds)]:
        fully_shard(module, mesh=one_rank)
    fully_shard(model, mesh=one_rank)
    if first == "shard":
        vf.patch(model)
    assert_same(model, given, expected)
    assert_same(model, given, expected)
    if first == "patch" and units == "blocks":
        with pytest.raises(ValueError, match=r"has become a FSDP\w+ since it was patched"):
            vf.unpatch(model)


# Copies, names, wrappers


@each_model
def test_classes_keep_their_names_and_copies_their_patch(name: str) -> None:
    model, given, expected = patched(name)
    plain, _ = built(name)
    names = [(type(m).__module__, type(m).__qualname__) for m in plain.modules()]
    assert [(type(m).__module__, type(m).__qualname__) for m in model.modules()] == names
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        assert_same(other, given, expected)
        assert vf.unpatch(other) > 0
        assert [type(m) for m in other.modules()] == [type(m) for m in plain.modules()]


@each_model
def test_saved_and_loaded_by_diffusers(name: str, tmp_path: Any) -> None:
    model, given, expected = patched(name)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = type(built(name)[0]).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert not any(is_fused(module) for module in loaded.modules())
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**given)[0], expected)


@each_model
def test_a_patch_that_raises_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = built(name)
    classes = [type(module) for module in model.modules()]

    def refuse(*_: Any) -> type[nn.Module]:
        raise RuntimeError("no class")

    # The package's `patch` is the function, which hides the folder of its name.
    monkeypatch.setattr(importlib.import_module("vdiff_fast.patch.swap"), "fused_class", refuse)
    with pytest.raises(RuntimeError, match="no class"):
        vf.patch(model)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("name", ["latte", "animatediff"])
def test_compiles_without_a_new_break(name: str) -> None:
    model, given, _ = patched(name)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch._dynamo.explain(model)(**given).graph_break_count == 0  # as of the plain models


def test_compiled_on_a_cpu_a_block_is_inductors() -> None:
    module, x, expected = block()
    vf.patch(module)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(module, backend=backend, fullgraph=True)(x, None), expected)
    assert sum("group_norm" in target for target in seen) == 2
    assert not any("vdiff_fast" in target for target in seen)

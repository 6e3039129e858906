"""Buffers that no checkpoint holds have their values however a model came to its memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import vdiff_fast as vf
from tests.models.helpers import small_dit, small_unet, steps, video

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "unet": partial(small_unet, positions="rope", blocks=(1, 0), temporal_attention=(True, False)),
    "dit_divided": partial(small_dit, positions="rope", attention="divided", depth=1),
    "dit_joint": partial(small_dit, positions="rope", attention="joint", depth=1),
    "tables": partial(vf.nn.RotaryTables, 16, axes=2, max_size=32),
    "attention": partial(vf.nn.SpaceTimeAttention, 32, 2, positions="rope"),
}


def _by_to_empty(build: Callable[[], nn.Module], plain: nn.Module) -> nn.Module:
    model = _on_meta(build).to_empty(device="cpu")
    model.load_state_dict(plain.state_dict())
    return model


def _by_assignment(build: Callable[[], nn.Module], plain: nn.Module) -> nn.Module:
    model = _on_meta(build)
    model.load_state_dict(plain.state_dict(), assign=True)
    return model


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        model = build()
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    return model


WAYS: dict[str, Callable[[Callable[[], nn.Module], nn.Module], nn.Module]] = {
    "to_empty": _by_to_empty,
    "to_empty_twice": lambda build, plain: _by_to_empty(lambda: _on_meta(build), plain),
    "emptied_in_place": lambda build, plain: _loaded(copy.deepcopy(plain).to_empty(device="cpu"), plain),
    "assign": _by_assignment,
    "bfloat16_and_back": lambda build, plain: _loaded(build().bfloat16().float(), plain),
    "deepcopy": lambda build, plain: copy.deepcopy(plain),
    "pickle": lambda build, plain: pickle.loads(pickle.dumps(plain)),
}


def _loaded(model: nn.Module, plain: nn.Module) -> nn.Module:
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in BUILDERS if name.startswith(("unet", "dit"))])
def test_the_output_is_that_of_a_model_built_plainly(name: str, way: str) -> None:
    plain = BUILDERS[name]()
    model = WAYS[way](BUILDERS[name], plain)
    x, t = video((1, 3, 4, 8, 8)), steps(1)
    assert torch.equal(model(x, t), plain(x, t))


@pytest.mark.parametrize("name", BUILDERS)
def test_every_buffer_is_made_again_with_new_memory(name: str) -> None:
    plain = BUILDERS[name]()
    held = plain.state_dict()
    derived = {path for path, _ in plain.named_buffers() if path not in held}
    assert derived
    for change in (
        lambda m: m.to_empty(device="cpu"),
        lambda m: m.bfloat16(),
        lambda m: m.to("meta").to_empty(device="cpu"),
    ):
        model = change(copy.deepcopy(plain))
        buffers = dict(model.named_buffers())
        assert [path for path in derived if not torch.equal(buffers[path], plain.get_buffer(path))] == []


def test_an_assigned_model_compiles_whole() -> None:
    build = BUILDERS["dit_divided"]
    plain = build()
    model, x, t = _by_assignment(build, plain), video((1, 3, 4, 8, 8)), steps(1)
    torch._dynamo.reset_code_caches()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t), plain(x, t))
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_memory_that_stays_keeps_its_buffers() -> None:
    tables = vf.nn.RotaryTables(16)
    cos = tables.cos
    assert tables.float().to("cpu").share_memory().cos is cos
    assert cos.is_shared()


def test_no_other_module_makes_buffers() -> None:
    """State beside the parameters is derived, or belongs into a checkpoint: then it is a buffer that says so."""
    package = Path(vf.__file__).parent
    makers = [path.name for path in package.rglob("*.py") if "register_buffer(" in path.read_text()]
    assert makers == ["derived.py"]

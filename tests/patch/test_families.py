"""Every class of the small models: what patching changes in it, and what it leaves as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf
from vdiff_fast import _dispatch
from vdiff_fast.bench.small_models import MODELS, TRANSFORMERS, first_tensor, in_float64

pytest.importorskip("diffusers", reason="needs diffusers")

each_model = pytest.mark.parametrize("name", MODELS)
# One draw of roundings through a whole network: 0.9 to 2.7 times eager's over three seeds and two thread counts
# (test_after_patching), 2.2 for the gradients of HunyuanVideo's autoencoder here.
ROOM = 3.0
# Their convolutions keep frames of the call before, so that the plain model's recomputation fails, too.
KEEP_FRAMES = ("Magvit (EasyAnimate's VAE)",)
UNIT = float(torch.finfo(torch.float32).eps)


def _step(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The output and the gradients of all parameters, by name."""
    model.zero_grad()
    out = first_tensor(model(**inputs))
    out.square().mean().backward()
    return {"": out.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _far(results: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float]:
    """The relative distance of the output, and of all gradients as one vector."""
    pairs = [(results[name].double() - exact[name], exact[name]) for name in exact]
    (out, whole), gradients = pairs[0], pairs[1:]
    of_gradients = sum(float(d.square().sum()) for d, _ in gradients) ** 0.5
    return float(out.norm() / whole.norm()), of_gradients / sum(float(e.square().sum()) for _, e in gradients) ** 0.5


def _exact(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor] | None:
    """The step in float64; None for models that cast to float32 themselves and then mix the two."""
    try:
        return _step(copy.deepcopy(model).double(), in_float64(inputs))
    except RuntimeError:
        return None


@torch.no_grad()
def _call(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return first_tensor(model(**inputs))


@each_model
def test_output_gradients_copies_and_the_way_back(name: str) -> None:
    model, inputs = MODELS[name].build()
    keys = list(model.state_dict())
    before = _step(model, inputs)
    exact = _exact(model, inputs)
    report = vf.patch(model)
    ops = {choice.op for choice in _dispatch.observed(lambda: _call(model, inputs))}
    assert ops >= report.patched.keys(), "the report says what runs"
    after = _step(model, inputs)
    assert after.keys() == before.keys()
    if exact is None:
        assert max(_far(after, {key: value.double() for key, value in before.items()})) <= 8 * UNIT
    else:
        for fused, plain in zip(_far(after, exact), _far(before, exact)):
            assert fused <= ROOM * max(plain, UNIT)
    assert list(model.state_dict()) == keys
    assert vf.patch(model).count == 0
    assert type(model).__name__ == MODELS[name].cls
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(_call(twin, inputs), after[""])
    vf.unpatch(model)
    again = _step(model, inputs)
    assert all(torch.equal(again[key], before[key]) for key in before)


@each_model
def test_three_training_steps_with_checkpointing(name: str) -> None:
    model, inputs = MODELS[name].build()
    losses = []
    for patched in (False, True):
        network = copy.deepcopy(model).train()
        if getattr(network, "_supports_gradient_checkpointing", False) and name not in KEEP_FRAMES:
            network.enable_gradient_checkpointing()
        if patched:
            vf.patch(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        losses.append([])
        for step in range(3):
            optimizer.zero_grad()
            torch.manual_seed(step)
            loss = first_tensor(network(**inputs)).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("first", ["adapters", "patch"])
def test_adapters_before_and_after(name: str, first: str) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    plain, inputs = TRANSFORMERS[name].build()
    fused = copy.deepcopy(plain)
    linears = [
        n
        for n, m in plain.named_modules()
        if isinstance(m, nn.Linear) and n.endswith(("to_q", "to_v", "proj", "linear"))
    ]
    config = peft.LoraConfig(r=2, target_modules=linears, init_lora_weights=False)
    for model, patched in ((plain, False), (fused, True)):
        for change in ("adapters", "patch") if first == "adapters" else ("patch", "adapters"):
            if change == "patch" and patched:
                assert vf.patch(model).count
            if change == "adapters":
                torch.manual_seed(3)
                peft.inject_adapter_in_model(config, model)
    expected, got = _call(plain, inputs), _call(fused, inputs)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["Wan 2.1", "LTX-Video"])
def test_no_graph_break(name: str) -> None:
    model, inputs = MODELS[name].build()
    vf.patch(model)
    torch._dynamo.reset_code_caches()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(first_tensor(compiled(**inputs)), _call(model, inputs))


@each_model
def test_bf16_is_no_further_off(name: str) -> None:
    """Models in bfloat16 keep some vectors in float32, and lose nothing of them."""
    model, inputs = MODELS[name].build()
    exact = _call(model, inputs).double()
    model = model.bfloat16()
    for part in getattr(model, "_keep_in_fp32_modules", None) or ():
        for key, parameter in model.named_parameters():
            if part in key.split("."):
                parameter.data = parameter.data.float()
    narrow = _narrow(inputs)
    plain = float((_call(model, narrow).double() - exact).norm())
    vf.patch(model)
    assert float((_call(model, narrow).double() - exact).norm()) <= 1.25 * plain


def _narrow(inputs: dict[str, Any]) -> dict[str, Any]:
    """Activations in bfloat16; times and tables stay what they are."""
    kept = ("image_rotary_emb", "img_ids", "txt_ids", "added_cond_kwargs")
    return {
        key: value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() and key not in kept else value
        for key, value in inputs.items()
    }

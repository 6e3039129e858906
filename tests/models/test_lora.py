"""Low-rank adapters of peft on every Linear, and on every convolution: trained, sampled with, merged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf
from tests.models.helpers import small_dit, small_unet, steps, video

peft = pytest.importorskip("peft", reason="needs peft")

SHAPE = (1, 3, 4, 8, 8)
CONDITIONS: dict[str, Any] = {"num_classes": 3, "context_dim": 8, "cond_channels": 4}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "unet": partial(small_unet, grid=True, **CONDITIONS),
    "unet_rope_injected": partial(small_unet, positions="rope", condition_injection="blocks", **CONDITIONS),
    "dit": partial(small_dit, **CONDITIONS),
    "dit_divided": partial(small_dit, attention="divided", positions="rope", qk_norm=True, **CONDITIONS),
    "dit_joint_injected": partial(small_dit, attention="joint", condition_injection="blocks", **CONDITIONS),
    "dit_recomputed": partial(small_dit, gradient_checkpointing=True, **CONDITIONS),
    "unet_recomputed": partial(small_unet, gradient_checkpointing=True, blocks=(1, 0), **CONDITIONS),
    "dit_shared": partial(small_dit, adaln="shared", **CONDITIONS),
}


def adapted(model: nn.Module, *kinds: type[nn.Module]) -> tuple[nn.Module, list[str]]:
    """The model with an awake adapter of rank 4 on every module of these kinds, and the modules' names."""
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=names))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return wrapped, names


def inputs(batch: int = 1) -> dict[str, Any]:
    shape = (batch, *SHAPE[1:])
    return {
        "x": video(shape), "t": steps(batch), "context": video((batch, 5, 8), 1),
        "cond": video((batch, 4, *SHAPE[2:]), 2),
    }  # fmt: skip


def sampled(model: nn.Module) -> Tensor:
    options: dict[str, Any] = {name: inputs()[name] for name in ("context", "cond")}
    schedule = vf.diffusion.NoiseSchedule.linear()
    return vf.diffusion.sample(model, SHAPE, schedule, steps=3, seed=0, guidance=2.0, **options)


@pytest.mark.parametrize("kinds", [(nn.Linear,), (nn.Linear, nn.Conv2d, nn.Embedding)], ids=["linears", "all_layers"])
@pytest.mark.parametrize("name", MODELS)
def test_adapters_train_sample_and_merge(name: str, kinds: tuple[type[nn.Module], ...]) -> None:
    plain = MODELS[name]()(**inputs()).detach()
    model, names = adapted(MODELS[name](), *kinds)
    assert len(names) > 10
    trained = model(**inputs())
    assert (trained - plain).norm() > 1e-2 * plain.norm()
    trained.square().mean().backward()
    adapters = {path: p.grad for path, p in model.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * len(names)
    assert [path for path, gradient in adapters.items() if gradient is None or not gradient.abs().max()] == []
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs()), trained, rtol=1e-4, atol=1e-5)
    video_before = sampled(model)
    merged = model.merge_and_unload()
    assert not [p for p in dict(merged.named_parameters()) if "lora" in p]
    torch.testing.assert_close(merged(**inputs()), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sampled(merged), video_before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["unet", "dit_divided"])
def test_training_moves_only_the_adapters_and_lowers_the_loss(name: str) -> None:
    model, _ = adapted(MODELS[name](), nn.Linear)
    given, wanted = inputs(2), video((2, *SHAPE[1:]), 7)
    frozen = {path: p.detach().clone() for path, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (model(**given) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, frozen[path]) for path, p in model.named_parameters() if path in frozen)


def test_adapters_in_bf16_autocast() -> None:
    model, _ = adapted(MODELS["dit_divided"](), nn.Linear)
    exact = model(**inputs()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        trained = model(**inputs())
        with torch.no_grad():
            drawn = model(**inputs())
    assert (trained - exact).norm() < 5e-2 * exact.norm()
    assert (drawn - exact).norm() < 5e-2 * exact.norm()
    trained.sum().backward()
    assert not [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None]

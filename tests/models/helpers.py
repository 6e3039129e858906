"""Small models with every parameter awake, and their inputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import vdiff_fast as vf
from tests.checks import relative_error, unit_roundoff

SMALL: dict[str, Any] = {
    "channels": (16, 32),
    "blocks": (1, 1),
    "spatial_attention": (False, True),
    "temporal_attention": (True, True),
    "temporal_conv": (True, False),
    "head_dim": 16,
    "num_groups": 4,
    "max_frames": 8,
}


def small_unet(seed: int = 0, **changes: Any) -> vf.models.VideoUNet:
    """A two-level VideoUNet whose zero-initialised parameters are drawn too, so that every branch is seen."""
    torch.manual_seed(seed)
    model = vf.models.VideoUNet(**{**SMALL, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


SMALL_DIT: dict[str, Any] = {"width": 48, "depth": 2, "heads": 3}


def small_dit(seed: int = 0, **changes: Any) -> vf.models.VideoDiT:
    """A two-block VideoDiT whose zero-initialised parameters are drawn too, so that every branch is seen."""
    torch.manual_seed(seed)
    model = vf.models.VideoDiT(**{**SMALL_DIT, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def video(shape: tuple[int, ...] = (2, 3, 4, 12, 8), seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def steps(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(0, 1000, (batch,), generator=torch.Generator().manual_seed(seed))


def gradients(model: torch.nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of x and of every parameter for a fixed cotangent."""
    x = x.detach().requires_grad_()
    y = model(x, t, **conditions)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.dtype)
    return y.detach(), list(torch.autograd.grad(y, [x, *model.parameters()], cotangent))


def assert_as_close_as_the_reference(model: torch.nn.Module, draws: int = 4) -> None:
    """Output and every gradient of the fused backends, in units of the reference's error in float32.

    Root mean squares over `draws` videos: the error of one is a draw of its roundings.
    """
    t, exact_model = steps(), copy.deepcopy(model).double()
    names = ["output", "x", *(name for name, _ in model.named_parameters())]
    squares = torch.zeros(2, len(names), dtype=torch.float64)
    for seed in range(draws):
        x = video(seed=seed)
        fused = gradients(model, x, t)
        with vf.use_backend("reference"):
            eager, exact = gradients(model, x, t), gradients(exact_model, x.double(), t)
        for kind, result in enumerate((fused, eager)):
            for i, (name, value, wanted) in enumerate(zip(names, [result[0], *result[1]], [exact[0], *exact[1]])):
                error = relative_error(_without_keys(name, value), _without_keys(name, wanted))
                squares[kind, i] += error**2 / draws
    floor = 8 * unit_roundoff(torch.float32)
    for name, error, reference in zip(names, *squares.sqrt().tolist()):
        allowed = 2 * max(reference, floor)
        assert error <= allowed, f"{name}: relative error {error:.2e} > {allowed:.2e}"


def _without_keys(name: str, gradient: Tensor) -> Tensor:
    """A key's bias shifts all logits of a query alike: its gradient is exactly zero."""
    if not name.endswith("qkv.bias"):
        return gradient
    query, _, value = gradient.chunk(3)
    return torch.cat([query, value])

"""Small models with every parameter awake, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
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


def assert_as_close_as_the_reference(
    model: torch.nn.Module, part: Callable[[str, Tensor], Tensor] = lambda _, value: value
) -> None:
    """Output and every gradient (`part` of it) of the fused backends, in units of the reference's error in float32."""
    x, t = video(), steps()
    fused = gradients(model, x, t)
    with vf.use_backend("reference"):
        eager = gradients(model, x, t)
        exact = gradients(model.double(), x.double(), t)
    names = ["output", "x", *(name for name, _ in model.named_parameters())]
    floor = 8 * unit_roundoff(torch.float32)
    for name, *values in zip(names, *([result, *grads] for result, grads in (fused, eager, exact))):
        f, e, z = (part(name, value) for value in values)
        error, allowed = relative_error(f, z), 2 * max(relative_error(e, z), floor)
        assert error <= allowed, f"{name}: relative error {error:.2e} > {allowed:.2e}"

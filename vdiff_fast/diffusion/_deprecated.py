"""Keywords of `sample` and `sampler_table` that are fields of one object now. To be removed after 2027-06-30."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from torch import Tensor

from vdiff_fast.diffusion.guidance import Guidance, GuidanceScale, as_guidance
from vdiff_fast.diffusion.noise import Noise, as_noise

GUIDANCE_FIELDS = {
    "guidance_interval": "interval",
    "guidance_rescale": "rescale",
    "uncond": "uncond",
    "guidance_batch": "batch",
}
NOISE_FIELDS = ("sample_offset", "frame_correlation", "correlation_kind")


def _warn(function: str, old: str, new: str) -> None:
    """At the caller's line: `sample` is one frame further down, behind torch.no_grad."""
    message = f"{function}({old}=...) is deprecated and goes after 2027-06-30; write {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=5 if function == "sample" else 4)


def with_old_guidance(function: str, guidance: GuidanceScale | Guidance, old: dict[str, Any]) -> Guidance:
    """The guidance with what old keywords say of it, which are taken out of `old`."""
    made = as_guidance(guidance)
    for name in [name for name in GUIDANCE_FIELDS if name in old]:
        field = GUIDANCE_FIELDS[name]
        _warn(function, name, f"guidance=vf.diffusion.Guidance(scale, {field}=...)")
        made = replace(made, **{field: old.pop(name)})
    return made


def with_old_noise(function: str, seed: int | Tensor | Noise, old: dict[str, Any]) -> Noise:
    """The noise with what old keywords say of it, which are taken out of `old`."""
    made = as_noise(seed)
    for name in [name for name in NOISE_FIELDS if name in old]:
        _warn(function, name, f"seed=vf.diffusion.Noise(seed, {name}=...)")
        made = replace(made, **{name: old.pop(name)})
    return made


def refuse_unknown(function: str, old: dict[str, Any]) -> None:
    """What Python itself says of a keyword that a function does not have."""
    if old:
        raise TypeError(f"{function}() got an unexpected keyword argument {next(iter(old))!r}")

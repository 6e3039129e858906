"""The benchmark cases that the model is asked about: a large layer of each op, where its memory is the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from benchmarks.gpu_model import capture

DTYPE = torch.bfloat16
# op -> names of its benchmark cases.
TARGETS = {
    "group_norm_silu": (
        "animatediff_level0", "animatediff_level0-channels_last", "svd_level0-channels_last",
        "svd_temporal-channels_last", "hunyuan_vae", "hunyuan_vae-channels_last",
    ),
    "rms_norm_silu": ("wan_vae_96", "wan_vae_96-channels_last"),
    "layer_norm_modulate": ("latte_batch", "cogvideox_5b", "wan_per_frame"),
    "gated_residual": ("latte_batch",),
    "gated_residual_norm_modulate": ("latte_batch", "cogvideox_5b", "wan_per_frame"),
    "qk_norm_rope": ("animatediff_64x64", "cogvideox_30x45", "wan_30x52"),
    "temporal_attention": ("four_clips_16x16", "animatediff_64x64", "svd_72x128", "long_clip_32_frames", "wan_30x52"),
    "gelu_tanh": ("latte_batch",),
    "geglu": ("latte_batch",),
    "q_sample": ("wan_latent",),
    "diffusion_loss": ("wan_latent",),
    "sampler_step": ("wan_latent_ddim", "wan_latent_guided"),
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One case in one direction.

    Attributes:
        elements: of the call's largest input.
        least_bytes: that the op has to move; None where its spec does not say.
        call: runs it once.
    """

    op: str
    case: str
    direction: str
    elements: int
    least_bytes: int | None
    call: Callable[[], Any]


def targets(vf: ModuleType, backend: str, wanted: str = "") -> Iterator[Target]:
    """Forward and backward of every case whose "op/case" contains `wanted`, with zeros for data."""
    for spec in vf.ops.specs():
        for case in spec.bench():
            named = f"{spec.name}/{case.name}"
            if case.name not in TARGETS.get(spec.name, ()) or wanted not in named or backend not in spec.predicates:
                continue
            with capture.Zeros():
                sample = case.sample(torch.device("cpu"), DTYPE)
            yield from _directions(vf, backend, spec, case, sample)


def _directions(vf: ModuleType, backend: str, spec: Any, case: Any, sample: Any) -> Iterator[Target]:
    elements = max(t.numel() for t in sample.tensors())

    def forward() -> Any:
        return spec.function(*sample.args, **sample.kwargs)

    def without_gradients() -> None:
        with torch.no_grad():
            forward()

    def least(float32: int | None) -> int | None:
        return None if float32 is None else float32 * DTYPE.itemsize // 4

    yield Target(spec.name, case.name, "forward", elements, least(case.bytes_forward), without_gradients)
    inputs = sample.differentiable()
    if not inputs or case.bytes_backward is None:
        return
    with vf.use_backend(backend, ops=[spec.name]), capture.watched(backend, 90, 1):
        found = forward()
    outputs = [o for o in (found if isinstance(found, tuple) else (found,)) if o.requires_grad]
    cotangents = [torch.zeros_like(o) for o in outputs]

    def backward() -> None:
        torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, retain_graph=True)

    yield Target(spec.name, case.name, "backward", elements, least(case.bytes_backward), backward)

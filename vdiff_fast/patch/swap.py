"""patch(model) and unpatch(model).

A module is patched by giving it a subclass of its own class whose forward calls the op: parameters, buffers, names,
state_dict, device and mode stay what they were, and so does `isinstance`. Nothing is kept beside the model, so a copy
or a pickle of a patched model is patched, and can be unpatched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn

from vdiff_fast.patch import torch_modules
from vdiff_fast.patch.report import Finding, PatchReport


def _findings(model: nn.Module) -> Iterator[Finding]:
    yield from torch_modules.find(model)
    # A model of diffusers has imported it; any other does not need it.
    if "diffusers" in sys.modules:
        from vdiff_fast.patch import diffusers_modules

        yield from diffusers_modules.find(model)


def patch(model: nn.Module) -> PatchReport:
    """Let a model that exists run on this library's kernels, in place; `unpatch` takes it back.

    >>> print(vf.patch(pipe.unet))      # diffusers' AnimateDiff; names shortened
    geglu                  37  down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0, ...
    group_norm_silu        23  conv_norm_out, down_blocks.0.resnets.0, ...
    temporal_attention     20  down_blocks.0.motion_modules.0.transformer_blocks.0.attn1, ...
    left as it was         22  heads of 160: not a multiple of 8 up to 128: down_blocks.2.motion_modules.0. ...

    Known places: GroupNorm before SiLU in any `nn.Sequential` (called as a whole); in diffusers' models ResnetBlock2D
    and TemporalResnetBlock (with the time embedding added inside the norm), the last norm of a U-Net or VAE, GEGLU
    and tanh-GELU, and self-attention over frames (AnimateDiff, ModelScope, Stable Video Diffusion, Latte).

    The mathematics is that of the model, the state_dict keeps its keys, and gradients flow; outputs differ by rounding.
    Every op chooses its backend at each call as ever (`vf.use_backend`), under `torch.compile` too: patch before
    compiling. What an op cannot take (a mask over frames, a head of 20) runs as it did.

    Args:
        model: any module; a pipeline's parts one by one. Modules with forward hooks, or whose `forward` was replaced
            on the instance, are left, and so are subclasses that override `forward`.

    Returns:
        The modules by op, and those left with the reason. A second call finds nothing new.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
    """
    _check(model, "patch")
    findings = list(_findings(model))
    for finding in findings:
        if finding.reason is None:
            finding.apply()
    return PatchReport.of(findings)


def unpatch(model: nn.Module) -> int:
    """Take back every change of `patch`, in place; returns how many modules it was."""
    _check(model, "unpatch")
    count = 0
    for module in model.modules():
        if original := getattr(type(module), "unfused", None):
            module.__class__ = original
            count += 1
        if original := getattr(getattr(module, "processor", None), "unfused", None):
            module.processor = original
            count += 1
    return count


def _check(model: nn.Module, function: str) -> None:
    if not isinstance(model, nn.Module):
        hint = "; patch its parts, as in vf.patch(pipe.unet)" if hasattr(model, "components") else ""
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}{hint}")

"""patch(model) and unpatch(model).

A module is patched by giving it a subclass of its own class, of the same name, whose forward calls the op: parameters,
buffers, names, state_dict, device and mode stay what they were, and so does `isinstance`. A copy or a pickle of a
patched model is patched, and can be unpatched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from torch import nn

from vdiff_fast.patch import torch_modules
from vdiff_fast.patch.choice import EXCLUDED, NOT_INCLUDED, chosen, patterns
from vdiff_fast.patch.families import blocks
from vdiff_fast.patch.fused_class import Fused, fused_class, is_fused, unfused_class
from vdiff_fast.patch.modulated import GATE_OP
from vdiff_fast.patch.places import places, why_left
from vdiff_fast.patch.report import Finding, Names, PatchReport, grouped

# On the model that was given to `patch`: the op of every module that was patched, by name.
_RECORD = "_vdiff_fast_patched"


def _findings(model: nn.Module) -> Iterator[Finding]:
    names = {id(module): name for name, module in model.named_modules()}
    finders = [blocks.find, torch_modules.find]
    # A model of diffusers has imported it; any other does not need it.
    if "diffusers" in sys.modules:
        from vdiff_fast.patch import diffusers_modules

        finders.insert(0, diffusers_modules.find)
    for module in model.modules():
        found = (list(find(module, names)) for find in finders)
        yield from next((findings for findings in found if findings), [])


def patch(
    model: nn.Module,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    strict: bool = False,
) -> PatchReport:
    """Let a model that exists run on this library's kernels, in place; `unpatch` takes it back.

    >>> print(vf.patch(pipe.unet))      # diffusers' AnimateDiff; names shortened
    geglu                  37  down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0, ...
    group_norm_silu        23  conv_norm_out, down_blocks.0.resnets.0, ...
    temporal_attention     20  down_blocks.0.motion_modules.0.transformer_blocks.0.attn1, ...
    left as it was         22  heads of 160: not a multiple of 8 up to 128: down_blocks.2.motion_modules.0. ...
    left as it was        111  a LayerNorm alone: torch's own kernel is one pass: down_blocks.0.attentions.0. ...
    served                103  of 262 norms, activations and attentions

    Known places: GroupNorm before SiLU in any `nn.Sequential`, and wherever a module's own source calls one on the
    result of the other (`self.act(self.norm(x))`, `F.silu(self.norm(x))`), and with them the norms over channels of
    diffusers' video autoencoders; in any module, LayerNorm with its modulation, and `residual + gate * branch` in a
    class that is called a block; diffusers' RMSNorm; in diffusers' models ResnetBlock2D and TemporalResnetBlock (with
    the time embedding added inside the norm), GEGLU and tanh-GELU, and self-attention over frames (AnimateDiff,
    ModelScope, Stable Video Diffusion, Latte, I2VGen-XL). A subclass is what its parent is if it inherits forward, or
    computes the parent's between casts. A norm of diffusers whose forward has another source than the one that was
    read is left.

    The mathematics is that of the model, the state_dict keeps its keys, and gradients flow; outputs differ by rounding.
    Every op chooses its backend at each call as ever (`vf.use_backend`), under `torch.compile` too: patch before
    compiling. What an op cannot take (a mask over frames, a head of 20) runs as it did, and so does what was changed
    after patching: a norm with hooks, offloaded or in another class, an attention with another processor.

    Args:
        model: any module; a pipeline's parts one by one. Modules with forward hooks, or whose `forward` was replaced
            on the instance, are left.
        include: patterns of module names (`fnmatch`), as in ["transformer_blocks.*"]: these modules and what they hold
            are patched, and nothing else. None: all.
        exclude: patterns of what is left. A forward changes as a whole, so a block that calls an excluded norm is left.
        strict: raise instead of leaving a known place as it is.

    Returns:
        The modules by op, all others with the reason, and what an earlier call had patched and a library has replaced
        since. A second call finds nothing new.

    Raises:
        TypeError: `model` is not a torch.nn.Module, or patterns are one string.
        ValueError: `strict`, and a known place is left for another reason than the caller's. Nothing has changed then.
    """
    _check(model, "patch")
    wanted = patterns("patch", "include", include), patterns("patch", "exclude", exclude)
    findings = list(chosen(list(_findings(model)), *wanted))
    if strict:
        _check_all_taken(findings)
    new = [finding for finding in findings if finding.reason is None and not finding.runs]
    # Every class is made before the first module changes: a patch that raises has changed nothing.
    owners = {id(finding.owner): finding for finding in new}
    classes = [(finding.owner, fused_class(type(finding.owner), finding.maker)) for finding in owners.values()]
    for owner, cls in classes:
        owner.__class__ = cls
    running = {finding.module: finding.op for finding in findings if finding.reason is None}
    lost = _lost(model, findings, running)
    model.__dict__[_RECORD] = running
    served = {place for finding in findings if finding.reason is None for place in finding.covers}
    refused = {place: finding.reason for finding in findings if finding.reason for place in finding.covers}
    # A gate is no module.
    found = places(model) | {finding.module: "gate" for finding in findings if finding.op == GATE_OP}
    reasons = ((why_left(name, kind, model, refused), name) for name, kind in found.items() if name not in served)
    # A norm that is done with the SiLU behind it, and alone elsewhere, is one.
    patched = grouped(dict.fromkeys((finding.op, finding.module) for finding in new))
    return PatchReport(patched, grouped(reasons), lost, len(served & found.keys()), len(found))


def _check_all_taken(findings: list[Finding]) -> None:
    refused = grouped((f.reason or "", f.module) for f in findings if f.reason not in (None, EXCLUDED, NOT_INCLUDED))
    if refused:
        places = "; ".join(f"{reason}: {', '.join(names[:3])}" for reason, names in refused.items())
        raise ValueError(f"patch: strict=True, and known places are left: {places}")


def _lost(model: nn.Module, findings: list[Finding], running: dict[str, str]) -> Names:
    """What runs no op any more, though an earlier `patch` said that it does."""
    reasons = {finding.module: finding.reason for finding in findings if finding.reason is not None}
    present = dict(model.named_modules())
    gone = [name for name in getattr(model, _RECORD, {}) if name not in running]
    return grouped(
        (reasons.get(name) or (f"it is a {_class_name(present[name])} now" if name in present else "it is gone"), name)
        for name in gone
    )


def _class_name(module: nn.Module) -> str:
    return unfused_class(module).__name__


def unpatch(model: nn.Module) -> int:
    """Take back every change of `patch`, in place; returns how many modules it was.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
        ValueError: a module was wrapped after it was patched, by a class of FSDP2 or of a parametrisation, which going
            back would drop; nothing is changed then.
    """
    _check(model, "unpatch")
    fused = [(name, module) for name, module in model.named_modules() if is_fused(module)]
    for name, module in fused:
        if Fused not in type(module).__bases__:
            raise ValueError(
                f"unpatch: {name} has become a {type(module).__name__} since it was patched; undo that first"
            )
    for _, module in fused:
        module.__class__ = unfused_class(module)
    model.__dict__.pop(_RECORD, None)
    return len(fused)


def _check(model: nn.Module, function: str) -> None:
    if not isinstance(model, nn.Module):
        hint = "; patch its parts, as in vf.patch(pipe.unet)" if hasattr(model, "components") else ""
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}{hint}")

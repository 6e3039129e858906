"""Whether a fused path may read a module's parameters instead of calling the module.

What PyTorch's tools do to a model happens in the call of a module: adapters (LoRA), quantised weights, pruning,
parametrisations, offloading, sharding and hooks of any kind. A fused path that reads `linear.weight` goes past all of
it. So it asks here first, at every call, and calls the module where the answer is no.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes in or out of `module`, or replaced `forward` on the instance.

    Global hooks (`torch.nn.modules.module.register_module_forward_hook`) look at every module.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or global_hooks._has_any_global_hook()
    )


def watched(model: nn.Module) -> bool:
    """Whether `model`, or a module in it that calls others, is `hooked`: then no call may go past a forward of it.

    A module without children is called by everybody who needs what it makes, so that its hooks fire anyway.
    """
    return hooked(model) or any(hooked(module) for module in model.modules() if module._modules)


def has_plain_parameters(module: nn.Module) -> bool:
    """Whether all own parameters are dense tensors, and not a subclass: quantised, or a shard of a `DTensor`."""
    return all(p is None or type(p) is nn.Parameter or type(p) is Tensor for p in module._parameters.values())


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether `module(x)` is `cls.forward` of its own dense parameters and nothing else.

    No subclass counts: a parametrisation, FSDP2 and most quantisers swap the class for one.
    """
    return type(module) is cls and not hooked(module) and has_plain_parameters(module)


def why_not_plain(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """The reason why `is_plain` is false; None where it is true."""
    if type(module) is not cls:
        return f"it is a {type(module).__name__}, not a {cls.__name__}"
    if hooked(module):
        return "it has hooks or a forward of its own"
    return None if has_plain_parameters(module) else "its parameters are a subclass of Tensor"


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that `module` computes in: of its first floating-point parameter; float32 where it has none.

    The weight of a quantised layer is an integer tensor, the one of an adapter belongs to the layer inside it.
    """
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

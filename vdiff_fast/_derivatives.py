"""Derivatives that kernels do not have, from the reference's formula, on every backend.

Kernels give a value and its first derivatives in reverse mode. Three things ask for more:

- forward mode (`torch.autograd.forward_ad`) and the transforms of `torch.func` (jvp, vmap, jacfwd, hessian, ...): the
  whole call runs the reference, which is plain torch and knows them all (`vdiff_fast._dispatch.choose`);
- a derivative of a derivative (`create_graph=True`), and a backward under `vmap` or inside a dual level: the backward
  makes the first derivatives again, from the reference and with a graph of their own (`gradients`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

_FAKE = torch._C._TorchDispatchModeKey.FAKE


def transformed() -> bool:
    """Whether a transform of torch.func or a dual level of forward mode is active: kernels would drop what it follows.

    It traces: dynamo enters the levels of torch.func and guards on the dual level.
    """
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def values_readable(x: Tensor) -> bool:
    """Whether a check may read values of x: on a CPU, not fake, and not in traced code nor under torch.func."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or _are_functorch_transforms_active():
        return False
    return not isinstance(x, FakeTensor) and torch._C._get_dispatch_mode(_FAKE) is None


def continued() -> bool:
    """Inside a backward: whether its result is differentiated or transformed further, which kernels do not allow."""
    # The first answer is no in almost every backward: two calls of C decide it, before any of Python.
    if not torch.is_grad_enabled() and not _are_functorch_transforms_active() and forward_ad._current_level < 0:
        return False
    return not torch.compiler.is_compiling()


def _fresh(x: Tensor | None) -> Tensor | None:
    """A tensor of its own for every differentiated input: two of them may be one tensor, or one made of another."""
    return x.view_as(x) if x is not None and x.requires_grad else x


class _Rerouted(torch.autograd.Function):
    """The output of another's graph; its gradient goes there, or where it is continued through the formula instead."""

    @staticmethod
    def forward(output: Tensor, formula: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.formula, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if continued():
            return None, None, *gradients(ctx.formula, ctx.saved_tensors, upstream)
        return upstream, None, *[None] * len(ctx.saved_tensors)


def rerouted(output: Tensor, formula: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """output = formula(*inputs), made by a library whose own backward is not differentiable.

    First derivatives are the library's; those of higher orders go through the formula. Costs a view and keeps nothing
    that the library does not keep.
    """
    if not output.requires_grad or torch.compiler.is_compiling():
        return output
    return _Rerouted.apply(output, formula, *inputs)


def gradients(
    formula: Callable[..., Any], inputs: Sequence[Tensor | None], upstream: Tensor | Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """dL/d(input) of sum <upstream, formula(*inputs)> for every input that requires a gradient, else None.

    Plain torch throughout, so that the result is itself differentiable, any number of times, in `inputs` and
    `upstream`.

    Args:
        formula: of a room's reference, inputs to outputs.
        inputs: the saved tensors themselves (a view made where no graph is recorded requires no gradient), or None.
        upstream: gradients of the outputs in their order; None where an output was not used.
    """
    # Where tangents pass through, too: torch then takes formulas of its backwards that forward mode knows.
    create_graph = torch.is_grad_enabled() or transformed()
    device = next(x.device.type for x in inputs if x is not None)
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        fresh = [_fresh(x) for x in inputs]
        outputs = formula(*fresh)
        pairs = [(outputs, upstream)] if isinstance(upstream, Tensor) else zip(outputs, upstream)
        used = [(output, gradient) for output, gradient in pairs if gradient is not None and output.requires_grad]
        wanted = [x for x in fresh if x is not None and x.requires_grad]
        if not used:
            return (None,) * len(fresh)
        found = torch.autograd.grad(
            [output for output, _ in used],
            wanted,
            [gradient for _, gradient in used],
            create_graph=create_graph,
            allow_unused=True,
        )
    given = iter(found)
    return tuple(next(given) if x is not None and x.requires_grad else None for x in fresh)

"""A loss that is NaN or Inf: say where it came from, keep the evidence, and stop or leave the step out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is NaN or Inf.

    "loss is nan at step 812 (t=[3, 991], files=[clip_17.mp4]); first non-finite module: down.2.temporal_attn. Try
    precision bf16. State saved to runs/a/nan_dump.pt"
    """

    def __init__(
        self, what: str, value: float, *, step: int, timesteps: Iterable[float], files: Iterable[str], module: str,
        advice: str, dump: Path | None,
    ) -> None:  # fmt: skip
        self.value, self.step, self.module, self.dump = value, step, module, dump
        self.timesteps, self.files = list(timesteps), list(files)
        names = ", ".join(Path(file).name for file in self.files)
        saved = f" State saved to {dump}" if dump is not None else ""
        super().__init__(
            f"{what} is {value} at step {step} (t={self.timesteps}, files=[{names}]); "
            f"first non-finite module: {module}. {advice}{saved}"
        )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _is_finite(value: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in _tensors(value) if t.is_floating_point())


@torch.no_grad()
def first_nonfinite_module(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Run `forward` once more and name the first module that turns finite input into a NaN or Inf.

    Modules are judged when they end, so the innermost is named; its weights are named where they are the cause.
    """
    found: list[str] = []

    def judge(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not found and not _is_finite(output):
                broken = [p for p, value in module.named_parameters() if not _is_finite(value)]
                origin = "" if _is_finite((args, kwargs)) else " (its input is non-finite already)"
                found.append(f"{name or 'the model'}" + (f" (weights: {broken[0]})" if broken else origin))

        return hook

    handles = [module.register_forward_hook(judge(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "none (the forward is finite: the loss or the backward overflowed)"


def advice(precision: str) -> str:
    """What most often helps in this precision."""
    if precision == "fp16":
        return "Try precision bf16."
    if precision == "bf16":
        return "Try precision fp32, or a lower learning rate."
    return "Try a lower learning rate, a longer warm-up or a smaller clip_norm."


class NonFiniteGuard:
    """Counts steps in a row that had to be left out. Policy "raise" stops at the first, "skip" after `limit`."""

    def __init__(self, policy: str, limit: int) -> None:
        self.policy, self.limit = policy, limit
        self.skipped, self.in_a_row = 0, 0

    def passed(self) -> None:
        """A step was finite."""
        self.in_a_row = 0

    def must_raise(self) -> bool:
        """Count a non-finite step; True if it stops the run."""
        self.skipped += 1
        self.in_a_row += 1
        return self.policy == "raise" or self.in_a_row >= self.limit


def is_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)

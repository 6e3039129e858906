"""AdamW with decay on matrices alone, and the learning rate of a step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from vdiff_fast.training.config import OptimizerConfig

# Share of the steps in which a rate that was constant falls.
_COOLDOWN = 0.2


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW, fused into one pass; weight decay on tensors of rank 2 and more, none on norms and biases.

    Raises:
        ValueError: every parameter is frozen.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"no parameter of {type(model).__name__} has requires_grad: there is nothing to train")
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then as `decay` says.

    constant; cosine or linear to `final_lr` * lr; inverse_sqrt, lr * sqrt(warmup / (step + 1)), which knows no end; or
    cooldown, constant and in the last fifth linear to `final_lr` * lr.

    Source: Vaswani et al. 2017, section 5.3 (inverse_sqrt); Haegele et al. 2024, section 3 (cooldown).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    if config.decay == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, config.warmup_steps) / (step + 1))
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    if config.decay == "cooldown":
        progress = max(0.0, progress - 1 + _COOLDOWN) / _COOLDOWN
    fall = (1 + math.cos(math.pi * progress)) / 2 if config.decay == "cosine" else 1 - progress
    return config.lr * (config.final_lr + (1 - config.final_lr) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate

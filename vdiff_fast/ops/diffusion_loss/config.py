"""Codes of the options, and where the gradient is written in the forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

# In the order of csrc/ops/diffusion_loss/math.h.
INPUTS = ("prediction", "x0", "noise")


def gradient_first(backend: str, prediction: Tensor, x0: Tensor | None, noise: Tensor | None) -> bool:
    """True: one pass writes loss and gradient. False: the backward is a second pass that draws the noise again.

    On a CPU the draw is the larger cost. In half precision the gradient would be rounded twice, and on a GPU scaling it
    moves as many bytes as drawing again.
    """
    others = any(o is not None and o.requires_grad for o in (x0, noise))
    wanted = torch.is_grad_enabled() and prediction.requires_grad and not others
    return wanted and backend == "cpu" and prediction.dtype in (torch.float32, torch.float64)

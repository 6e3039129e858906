"""y = GELU(x + bias), GELU(z) = z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))): Hendrycks and Gimpel 2016, sec. 2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def gelu_tanh(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias.to(x.dtype), approximate="tanh")

"""What is special to GELU: its tails, and a bias that is the Linear's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vdiff_fast as vf
from tests.checks import relative_error
from vdiff_fast import _library

pytestmark = pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")


def test_geglu_is_accurate_in_the_negative_tail() -> None:
    """1 + erf(x) has lost every digit at -6; Phi there is 1e-9."""
    gate = torch.linspace(-12, -2, 501)
    x = torch.stack([torch.ones_like(gate), gate], dim=1)
    exact = (gate.double() * 0.5 * torch.special.erfc(-gate.double() / 2**0.5))[:, None]
    with vf.use_backend("cpu"):
        y = vf.ops.geglu(x)
    torch.testing.assert_close(y.double(), exact, rtol=2e-5, atol=0)


def test_gelu_tanh_far_out_is_the_identity_or_zero() -> None:
    x = torch.tensor([[-3e38, -1e20, -100.0, -20.0, 20.0, 100.0, 1e20, 3e38]]).requires_grad_()
    with vf.use_backend("cpu"):
        y = vf.ops.gelu_tanh(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x.clamp_min(0), rtol=0, atol=1e-30 * 3e38)
    torch.testing.assert_close(slope[:, 1:], (x[:, 1:] > 0).float(), rtol=0, atol=1e-12)
    nan = torch.tensor([[float("nan")]]).requires_grad_()
    with vf.use_backend("cpu"):
        y = vf.ops.gelu_tanh(nan)
    assert y.isnan().all()
    assert torch.autograd.grad(y.sum(), nan)[0].isnan().all()


@pytest.mark.parametrize("gated", [False, True])
def test_the_bias_is_that_of_the_linear_before(gated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(24, 64)
    x = torch.randn(3, 70, 24, generator=generator)
    op = vf.ops.geglu if gated else vf.ops.gelu_tanh
    with vf.use_backend("cpu"):
        y = op(F.linear(x, linear.weight), linear.bias)
    (dbias,) = torch.autograd.grad(y.square().sum(), linear.bias)
    hidden = F.linear(x.double(), linear.weight.double(), bias := linear.bias.detach().double().requires_grad_())
    value, gate = hidden.chunk(2, dim=-1)
    exact = value * F.gelu(gate) if gated else F.gelu(hidden, approximate="tanh")
    (wanted,) = torch.autograd.grad(exact.square().sum(), bias)
    assert relative_error(y, exact) < 1e-6
    assert relative_error(dbias, wanted) < 1e-6

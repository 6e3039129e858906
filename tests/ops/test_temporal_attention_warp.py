"""The CUDA kernel's warp without a GPU: its own source, played on the host after the PTX ISA, against the reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checks import relative_error, unit_roundoff
from vdiff_fast.ops.qk_norm_rope import rope_tables
from vdiff_fast.ops.temporal_attention import reference

ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")


@pytest.fixture(scope="module")
def warp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = tmp_path_factory.mktemp("warp") / "warp.so"
    source = ROOT / "tests" / "native" / "warp_attention.cpp"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library)).warp_attention


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _run(warp: Any, tokens: list[Tensor], dout: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Output, gradients of q, k, v, bias and norm weights: NaN where the kernel writes nothing."""
    shape = tokens[0].shape
    outputs = [torch.full(shape, torch.nan, dtype=BF16) for _ in range(4)]
    everything = [*tokens, outputs[0], dout, *outputs[1:]]
    pointers = (ctypes.c_void_p * 8)(*(x.data_ptr() for x in everything))
    sizes = (ctypes.c_int64 * 5)(*shape)
    bias, mask = options.get("bias"), options.get("mask")
    norm, rope = options.get("qk_norm") or (None, None), options.get("rope") or (None, None)
    dbias = torch.zeros(shape[3], shape[1], shape[1])
    dweights = [torch.zeros(shape[4]) for _ in range(2)]
    tables = [_pointer(x) for x in (bias, mask, *norm, *rope)]
    scale = options.get("scale") or shape[4] ** -0.5
    for backward in (0, 1):
        warp(
            pointers, *tables, ctypes.c_float(scale), ctypes.c_float(1e-6), int(options.get("causal", False)), sizes,
            backward, _pointer(dbias), *(_pointer(w) for w in dweights),
        )  # fmt: skip
    return [*outputs, *([dbias] if bias is not None else []), *(dweights if norm[0] is not None else [])]


def _expected(tokens: list[Tensor], dout: Tensor, options: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    inputs = [x.to(dtype).requires_grad_() for x in tokens]
    kwargs = dict(options)
    leaves = list(inputs)
    if "bias" in kwargs:
        kwargs["bias"] = kwargs["bias"].to(dtype).requires_grad_()
        leaves.append(kwargs["bias"])
    if "qk_norm" in kwargs:
        kwargs["qk_norm"] = tuple(w.to(dtype).requires_grad_() for w in kwargs["qk_norm"])
        leaves += kwargs["qk_norm"]
    out = reference.temporal_attention(*inputs, **kwargs)
    return [out, *torch.autograd.grad(out, leaves, dout.to(dtype))]


def _options(frames: int, d: int, batch: int, names: str) -> dict[str, Any]:
    mask = torch.ones(batch, frames, dtype=torch.bool)
    mask[0, frames // 2 :: 3] = False
    every = {
        "bias": torch.randn(2, frames, frames).to(BF16).float(),
        "causal": True,
        "mask": mask,
        "qk_norm": tuple((1 + 0.3 * torch.randn(d)).to(BF16).float() for _ in range(2)),
        "rope": rope_tables(frames, d),
        "scale": 0.7 * d**-0.5,
    }
    return {k: v for k, v in every.items() if k in names.split()}


EVERYTHING = "bias causal mask qk_norm rope scale"


@needs_compiler
@pytest.mark.parametrize(
    ("frames", "d", "names"),
    [
        (1, 8, ""), (2, 64, ""), (5, 40, ""), (8, 64, ""), (14, 72, ""), (16, 40, ""), (17, 128, ""), (25, 40, ""),
        (32, 72, ""), (8, 40, "bias"), (16, 64, "causal"), (16, 32, "mask"), (16, 72, "qk_norm"), (16, 40, "rope"),
        (5, 24, EVERYTHING), (16, 40, EVERYTHING), (25, 72, EVERYTHING), (32, 128, EVERYTHING),
        (33, 8, ""), (40, 40, ""), (49, 64, ""), (64, 128, ""), (40, 24, "bias"), (49, 40, "causal"), (64, 16, "mask"),
        (49, 72, "qk_norm"), (64, 40, "rope"), (33, 16, "scale"), (33, 72, EVERYTHING), (40, 128, EVERYTHING),
        (49, 24, EVERYTHING), (64, 64, EVERYTHING),
    ],
)  # fmt: skip
def test_the_warp_agrees_with_the_reference(warp: Any, frames: int, d: int, names: str) -> None:
    """Three positions: an odd number, so that a warp of two is half empty."""
    torch.manual_seed(frames * d)
    shape = (2, frames, 3, 2, d)
    tokens, dout = [torch.randn(shape).to(BF16) for _ in range(3)], torch.randn(shape).to(BF16)
    options = _options(frames, d, 2, names)
    actual = _run(warp, tokens, dout, options)
    exact = _expected(tokens, dout, options, torch.float64)
    eager = _expected(tokens, dout, options, BF16)
    assert len(actual) == len(exact)
    for a, e, g in zip(actual, exact, eager):
        assert relative_error(a, e) <= 1.5 * max(relative_error(g, e), unit_roundoff(BF16))


@needs_compiler
def test_a_query_without_keys_gives_zero_and_no_gradient(warp: Any) -> None:
    tokens, dout = [torch.randn(1, 6, 2, 1, 8).to(BF16) for _ in range(3)], torch.ones(1, 6, 2, 1, 8, dtype=BF16)
    mask = torch.tensor([[False, True, True, True, True, True]])
    out, dq, dk, dv = _run(warp, tokens, dout, {"mask": mask, "causal": True})
    for x in (out, dq, dk, dv):
        assert not x[:, 0].any()
    assert out[:, 1:].isfinite().all()
    assert dv[:, 1:].any()

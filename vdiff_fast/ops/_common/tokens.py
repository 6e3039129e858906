"""Types and typed errors that the attention rooms share. Tokens are (B, T, S, heads, d)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# The weights of the normalisation of queries and keys, and the cosines and sines of a rotary embedding.
Norm = tuple[Tensor, Tensor]
Tables = tuple[Tensor, Tensor]
MAX_HEAD_DIM = 128


def check_tokens(op: str, name: str, x: Tensor) -> None:
    """One tensor of tokens: floating point, rank 5, a head dimension the kernels know."""
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
    if x.dim() != 5:
        raise ValueError(f"{op}: {name} must be (B, T, S, heads, d), got shape {tuple(x.shape)}")
    d = x.shape[-1]
    if d % 8 or not 8 <= d <= MAX_HEAD_DIM:
        raise ValueError(f"{op}: head dim {d} of {name} must be a multiple of 8 from 8 to {MAX_HEAD_DIM}; pad it")


def check_same_kind(op: str, q: Tensor, **others: Tensor) -> None:
    for name, x in others.items():
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(f"{op}: {name} is {x.dtype} on {x.device}, q is {q.dtype} on {q.device}; convert one")


def check_packed(op: str, qkv: Tensor) -> None:
    if not qkv.is_floating_point():
        raise TypeError(f"{op}: qkv must be floating point, got {qkv.dtype}")
    if qkv.dim() != 6 or qkv.shape[3] != 3:
        raise ValueError(f"{op}: qkv must be (B, T, S, 3, heads, d), got shape {tuple(qkv.shape)}")
    check_tokens(op, "qkv[:, :, :, 0]", qkv.select(3, 0))


def check_device(op: str, name: str, value: Tensor, q: Tensor) -> None:
    """Kernels take addresses: one on another device ends the process's use of the GPU."""
    if value.device != q.device:
        raise ValueError(f"{op}: {name} is on {value.device}, the tokens are on {q.device}; move {name}")


def check_norm(op: str, qk_norm: Norm | None, q: Tensor) -> None:
    if qk_norm is None:
        return
    if not isinstance(qk_norm, (tuple, list)) or len(qk_norm) != 2:
        raise TypeError(f"{op}: qk_norm must be a pair of weights (q, k), got {type(qk_norm).__name__}")
    for name, weight in zip(("q", "k"), qk_norm):
        if weight.shape != q.shape[-1:]:
            raise ValueError(f"{op}: qk_norm weight of {name} must be ({q.shape[-1]},), got {tuple(weight.shape)}")
        check_device(op, f"qk_norm weight of {name}", weight, q)


def check_tables(op: str, rope: Tables | None, positions: int, q: Tensor) -> None:
    if rope is None:
        return
    d = q.shape[-1]
    if not isinstance(rope, (tuple, list)) or len(rope) != 2:
        raise TypeError(f"{op}: rope must be a base (float) or a pair of tables (cos, sin), got {type(rope).__name__}")
    for name, table in zip(("cos", "sin"), rope):
        if table.shape != (positions, d // 2):
            raise ValueError(
                f"{op}: rope {name} must be (positions, d/2) = ({positions}, {d // 2}), got {tuple(table.shape)}"
            )
        check_device(op, f"rope {name}", table, q)


def rope_constants(rope: Tables | None) -> Mapping[str, Tensor | None]:
    """The rotary tables as `vdiff_fast._dispatch.choose` takes inputs that kernels have no gradient of."""
    return {} if rope is None else {"the rotary cosines": rope[0], "the rotary sines": rope[1]}

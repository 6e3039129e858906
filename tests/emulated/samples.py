"""What the contract runs: the samples of every op, the same values in awkward memory, and larger ones that take every
path through the norms."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


def strided(t: Tensor) -> Tensor:
    """Every other element of a tensor twice as wide, as a chunk of an embedding is; NaN lies between."""
    if not t.is_floating_point() or not t.dim():
        return t
    wide = torch.stack([t.detach(), torch.full_like(t, float("nan"))], -1)
    return wide[..., 0].requires_grad_(t.requires_grad)


def offset(t: Tensor) -> Tensor:
    """The same strides, one element behind the start of a storage that ends with it: no vector access fits."""
    if not t.is_floating_point() or not t.numel():
        return t
    span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
    moved = torch.empty(span + 1, dtype=t.dtype).as_strided(t.shape, t.stride(), 1)
    return moved.copy_(t.detach()).requires_grad_(t.requires_grad)


VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {"strided": strided, "offset": offset}


Samples = Iterator[Any]


def _spec_module(op: str) -> ModuleType:
    return importlib.import_module(f"vdiff_fast.ops.{op}.spec")


def _group_norms(dtype: torch.dtype) -> Samples:
    """One block, clusters, grids and splits, by size and device; odd counts; the skip pair and every vector."""
    everything = {"scale": True, "shift": True, "add": True}
    shapes: tuple[tuple[str, tuple[int, ...], int, dict[str, Any]], ...] = (
        ("16k", (1, 8, 2, 16, 32), 2, {}),
        ("16k_odd", (1, 6, 3, 13, 17), 2, {}),
        ("64k", (1, 8, 4, 32, 36), 2, everything),
        ("64k_per_frame", (1, 8, 4, 32, 36), 2, {"per_frame": True, "frames": 4, **everything}),
        ("64k_odd", (1, 7, 3, 29, 31), 1, {}),
        ("256k", (1, 16, 4, 32, 64), 2, {}),
        ("256k_two_units", (2, 12, 5, 24, 40), 2, {"activation": "none"}),
        ("many_items", (3, 32, 2, 12, 20), 8, {"channels2": 16}),
        ("wide_groups", (1, 1200, 2, 3, 5), 2, {}),
        ("wide_groups_odd", (1, 1170, 2, 3, 5), 2, everything),
        ("long_rows", (1, 2, 1, 90, 100), 2, {}),
    )
    yield from _both_layouts(shapes, dtype)


def _large_group_norms(dtype: torch.dtype) -> Samples:
    """Sizes at which an H200 launches a grid that meets at a counter, and at which it splits the work."""
    yield from _both_layouts(
        (
            ("grid", (1, 8, 8, 120, 160), 1, {}),
            ("grid_turns", (3, 16, 6, 96, 128), 2, {}),
            ("split", (1, 8, 20, 200, 256), 1, {}),
        ),
        dtype,
    )


def _both_layouts(shapes: Sequence[tuple[str, tuple[int, ...], int, dict[str, Any]]], dtype: torch.dtype) -> Samples:
    for last in (False, True):
        for name, shape, groups, options in shapes:
            full = name + ("-channels_last" if last else "")
            yield _spec_module("group_norm_silu")._sample(full, shape, groups, CPU, dtype, last=last, **options)


def _rms_norms(dtype: torch.dtype) -> Samples:
    from vdiff_fast._spec import Sample, randn

    for name, shape in (("wide", (1, 384, 2, 6, 10)), ("wider", (1, 1027, 1, 3, 5)), ("rows", (2, 33, 3, 20, 21))):
        for last in (False, True):
            x = randn(shape, CPU, dtype, grad=False)
            x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
            vectors = {
                key: randn((shape[0], shape[1]), CPU, dtype, seed=seed) for seed, key in ((2, "scale"), (3, "shift"))
            }
            full = name + ("-channels_last" if last else "")
            yield Sample(full, (x.requires_grad_(), randn((shape[1],), CPU, dtype, seed=1)), vectors)


WIDTHS = (256, 1024, 1100, 1153, 2056, 4096, 5120, 8192)  # a row of one warp to four chunks a thread, and odd ones


def _layer_norms(dtype: torch.dtype) -> Samples:
    from vdiff_fast._spec import Sample, randn

    for width in WIDTHS:
        for vectors in (1, 6):
            x = randn((2, 6, width), CPU, dtype)
            shift, scale = (randn((2, vectors, width), CPU, dtype, seed=seed) for seed in (1, 2))
            yield Sample(f"width_{width}_{vectors}", (x, shift, scale), {})


def _gated_layer_norms(dtype: torch.dtype) -> Samples:
    from vdiff_fast._spec import Sample, randn

    for width in WIDTHS:
        for vectors in (1, 6):
            x, branch = (randn((2, 6, width), CPU, dtype, seed=seed) for seed in (0, 3))
            gate, shift, scale = (randn((2, vectors, width), CPU, dtype, seed=seed) for seed in (4, 1, 2))
            yield Sample(f"width_{width}_{vectors}", (x, branch, gate, shift, scale), {})


def _attention(dtype: torch.dtype) -> Samples:
    """Frames at the ends of every tile, wide heads, and more positions than a backward has blocks."""
    from vdiff_fast._spec import Sample

    module = _spec_module("temporal_attention")
    for frames in (7, 9, 15, 24, 31, 33, 47, 48, 63):
        for d in (24, 128):
            everything = module.options(frames, 3, d, 2, CPU, dtype)
            yield Sample(f"T{frames}_d{d}", module._tokens((2, frames, 3, 3, d), CPU, dtype), everything)
    for frames, positions in ((9, 200), (4, 400)):
        everything = module.options(frames, 16, 8, 3, CPU, dtype)
        shape = (3, frames, positions, 16, 8)
        yield Sample(f"many_positions_T{frames}", module._tokens(shape, CPU, dtype), everything)


def _qk_norms(dtype: torch.dtype) -> Samples:
    """Narrow heads, of which a block of the backward sums the most rows; rows for one turn of the blocks and more."""
    from vdiff_fast._spec import Sample, randn

    module = _spec_module("qk_norm_rope")
    for d, rows in ((8, 64), (8, 256), (16, 256), (24, 500), (8, 5000), (64, 500)):
        q, k = (randn((1, 1, rows, 1, d), CPU, dtype, seed=seed) for seed in (0, 1))
        yield Sample(f"rows_{rows}_d{d}", (q, k), {"qk_norm": module._norm(d, CPU, dtype)})


def _narrow(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(dtype).requires_grad_(value.requires_grad)


def _autocast_steps(dtype: torch.dtype) -> Samples:
    """A float32 x, and predictions in a narrower dtype, as autocast leaves them."""
    for sample in _spec_module("sampler_step").samples(CPU, torch.float32) if dtype != torch.float32 else ():
        x, prediction, *rest = sample.args
        kwargs = {key: _narrow(value, dtype) if key == "uncond" else value for key, value in sample.kwargs.items()}
        yield replace(sample, args=(x, _narrow(prediction, dtype), *rest), kwargs=kwargs)


def _losses_of_float_data(dtype: torch.dtype) -> Samples:
    """A prediction in a narrow dtype against a float32 x0."""
    for sample in _spec_module("diffusion_loss").samples(CPU, dtype) if dtype != torch.float32 else ():
        prediction, *rest = sample.args
        wide = [_narrow(t, torch.float32) if isinstance(t, Tensor) and t.shape == prediction.shape else t for t in rest]
        yield replace(sample, args=(prediction, *wide))


EXTRA: dict[str, Callable[[torch.dtype], Samples]] = {
    "group_norm_silu": _group_norms,
    "rms_norm_silu": _rms_norms,
    "layer_norm_modulate": _layer_norms,
    "gated_residual_norm_modulate": _gated_layer_norms,
    "temporal_attention": _attention,
    "qk_norm_rope": _qk_norms,
    "sampler_step": _autocast_steps,
    "diffusion_loss": _losses_of_float_data,
}
LARGE: dict[str, Callable[[torch.dtype], Samples]] = {"group_norm_silu": _large_group_norms}
GROUPS = ("contract", *VARIANTS, "extra", "large", "bench")
MOST_BENCH_ELEMENTS = 15_000_000  # of all tensors of a forward


def bench_cases(spec: Any) -> Iterator[Any]:
    """Layers of real models, as far as they are small enough for an emulator."""
    for case in spec.bench():
        if case.bytes_forward is not None and case.bytes_forward / 4 <= MOST_BENCH_ELEMENTS:
            yield case


def samples(spec: Any, dtype: torch.dtype, group: str) -> Samples:
    """Samples of one of GROUPS."""
    if group == "contract":
        yield from spec.samples(CPU, dtype)
    elif group in VARIANTS:
        for sample in spec.samples(CPU, dtype):
            yield sample.map_tensors(VARIANTS[group])
    elif group == "bench":
        for case in bench_cases(spec):
            yield replace(case.sample(CPU, dtype), name=case.name)
    else:
        source = (EXTRA if group == "extra" else LARGE).get(spec.name)
        yield from source(dtype) if source else ()

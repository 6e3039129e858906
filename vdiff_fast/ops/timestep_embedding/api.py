"""Public function: errors and backend choice."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _dispatch, _library
from vdiff_fast.ops._common.times import check_times, kernel_times
from vdiff_fast.ops.timestep_embedding import reference

_KERNELS = _dispatch.kernel_modules(__package__)
_CPU_REASON = _library.CPU.reason
_CUDA_REASON = _library.CUDA.reason
_TRITON_REASON = _library.why_no_triton()


def why_not_cpu(t: Tensor) -> str | None:
    """CPU C++ kernels, which read integer times too."""
    if t.is_floating_point() or _CPU_REASON is not None:
        return _dispatch.why_not_cpu(t)
    return None if t.device.type == "cpu" else f"the tensor is on {t.device.type}"


def _why_not_triton(t: Tensor) -> str | None:
    """Triton kernels, which read integer times too."""
    if t.is_floating_point() or _TRITON_REASON is not None:
        return _dispatch.why_not_triton(t)
    usable = t.device.type == "cuda" or _library.INTERPRETING
    return None if usable else f"the tensor is on {t.device.type}"


def _why_not_cuda(t: Tensor) -> str | None:
    """CUDA C++ kernels, which read integer times too."""
    if t.is_floating_point() or _CUDA_REASON is not None:
        return _dispatch.GENERIC_PREDICATES["cuda"](t)
    return None if t.device.type == "cuda" else f"the tensor is on {t.device.type}"


PREDICATES = _dispatch.predicates(__package__, cpu=why_not_cpu, triton=_why_not_triton, cuda=_why_not_cuda)


def timestep_embedding(
    t: Tensor,
    dim: int,
    *,
    max_period: float = 10000.0,
    shift: float = 1.0,
    flip_sin_to_cos: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """e = [sin(w t) | cos(w t)], w_i = scale * max_period^(-i / (dim//2 - shift)), i = 0 .. dim//2 - 1.

    The defaults are DDPM's and diffusers' `get_timestep_embedding`; ADM, guided-diffusion and DiT are `shift=0,
    flip_sin_to_cos=True`. An odd dim ends in a zero.

    Args:
        t: (B,), integers or floats, any strides. Differentiable by the reference alone.
        dim: width of the embedding.
        max_period: longest wavelength over 2 pi.
        shift: frequencies run over dim//2 - shift (diffusers' `downscale_freq_shift`).
        flip_sin_to_cos: cosines first.
        scale: multiplies t; 1000 for flow times in [0, 1].

    Returns:
        (B, dim) contiguous: float32 for integer t, else the dtype of t.

    Raises:
        TypeError: t is no tensor, bool or complex.
        ValueError: t is not (B,); dim // 2 is not above shift; max_period is not positive.

    Source: Vaswani et al. 2017, section 3.5; Ho et al. 2020.
    """
    check_times("timestep_embedding", t, dim, max_period, shift)
    backend = _dispatch.choose("timestep_embedding", PREDICATES, t, constants={"t": t})
    if backend == "reference":
        options = {"max_period": max_period, "shift": shift, "flip_sin_to_cos": flip_sin_to_cos, "scale": scale}
        return _dispatch.call_reference(reference.timestep_embedding, t, dim, **options)
    dtype = t.dtype if t.is_floating_point() else torch.float32
    return _KERNELS[backend].timestep_embedding(
        kernel_times(t), dim, float(max_period), float(shift), flip_sin_to_cos, float(scale), dtype
    )

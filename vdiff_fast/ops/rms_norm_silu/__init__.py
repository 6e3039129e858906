from vdiff_fast.ops.rms_norm_silu.api import rms_norm_silu

__all__ = ["rms_norm_silu"]

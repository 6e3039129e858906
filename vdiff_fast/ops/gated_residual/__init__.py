from vdiff_fast.ops.gated_residual.api import gated_residual

__all__ = ["gated_residual"]

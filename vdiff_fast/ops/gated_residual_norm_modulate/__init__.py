from vdiff_fast.ops.gated_residual_norm_modulate.api import gated_residual_norm_modulate

__all__ = ["gated_residual_norm_modulate"]

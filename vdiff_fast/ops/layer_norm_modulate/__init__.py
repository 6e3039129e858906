from vdiff_fast.ops.layer_norm_modulate.api import layer_norm_modulate

__all__ = ["layer_norm_modulate"]

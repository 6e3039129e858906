from vdiff_fast.ops.gelu_tanh.api import gelu_tanh

__all__ = ["gelu_tanh"]

from vdiff_fast.ops.noise.api import noise

__all__ = ["noise"]

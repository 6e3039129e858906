from vdiff_fast.ops.geglu.api import geglu

__all__ = ["geglu"]

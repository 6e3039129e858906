from vdiff_fast.ops.q_sample.api import q_sample

__all__ = ["q_sample"]

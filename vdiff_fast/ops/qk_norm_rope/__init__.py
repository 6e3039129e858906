from vdiff_fast.ops.qk_norm_rope.api import qk_norm_rope
from vdiff_fast.ops.qk_norm_rope.tables import rope_tables

__all__ = ["qk_norm_rope", "rope_tables"]

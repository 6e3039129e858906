"""Fused kernels in a model that exists: one line in, one line out."""

from vdiff_fast.patch.report import PatchReport
from vdiff_fast.patch.swap import patch, unpatch

__all__ = ["PatchReport", "patch", "unpatch"]

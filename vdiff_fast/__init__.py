"""vdiff_fast: fused kernels and drop-in PyTorch modules for video diffusion."""

from vdiff_fast import layout, ops
from vdiff_fast._dispatch import BackendUnavailableError, use_backend

__version__ = "0.1.0"
__all__ = ["BackendUnavailableError", "__version__", "layout", "ops", "use_backend"]

"""vdiff_fast: fused kernels and drop-in PyTorch modules for video diffusion."""

from vdiff_fast import _library, diffusion, layout, models, nn, ops
from vdiff_fast._dispatch import BackendUnavailableError
from vdiff_fast._doctor import doctor
from vdiff_fast._requested import use_backend
from vdiff_fast._version import __version__
from vdiff_fast.patch import PatchReport, patch, unpatch

__all__ = [
    "BackendUnavailableError",
    "PatchReport",
    "__version__",
    "diffusion",
    "doctor",
    "layout",
    "models",
    "nn",
    "ops",
    "patch",
    "unpatch",
    "use_backend",
]

_library.warn_of_an_old_library()

"""`vdiff-fast doctor`."""

from __future__ import annotations

from vdiff_fast._doctor import doctor as examine


def doctor() -> None:
    """Versions, devices, libraries, the backend of each op and why, combinations known to be bad."""
    print(examine())

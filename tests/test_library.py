"""A native library that an update of the sources has left behind."""

from __future__ import annotations

import pytest

from vdiff_fast import _library


@pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))
def test_one_warning_names_every_op_that_the_library_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_LACKING", [])
    for name in ("no_such_op", "nor_this_one"):
        _library.register_fake(name, lambda: None)
    with pytest.warns(UserWarning, match=r"run `vdiff-fast build` \(it lacks no_such_op, nor_this_one\)") as caught:
        _library.warn_of_an_old_library()
    assert len(caught) == 1

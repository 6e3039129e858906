"""A pytest plugin, `-p benchmarks.gpu_faults`: a kernel's fault fails its test, not all that its worker runs later.

After a fault no CUDA call of the process succeeds, and a kernel that waits for ever never returns. An xdist worker ends
itself in both cases: xdist names the test and starts another worker.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator

import pytest
import torch

from vdiff_fast.bench.measure import device_is_lost

HANG_SECONDS = 100
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
_failed: set[str] = set()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if IN_WORKER:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    result = yield
    faulthandler.cancel_dump_traceback_later()
    # Here its reports have been sent.
    if item.nodeid in _failed and IN_WORKER and torch.cuda.is_available() and device_is_lost(torch.device("cuda")):
        os._exit(1)
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.add(report.nodeid)

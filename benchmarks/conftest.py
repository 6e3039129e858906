"""Benchmarks run on two threads or on the GPU, and print one line per op at the end."""

from __future__ import annotations

import pytest
import torch

from vdiff_fast.bench.report import summary_lines

ROWS: list[dict] = []


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in summary_lines(ROWS):
        terminalreporter.write_line(line)

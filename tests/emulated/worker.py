"""The processes that run the cases: each loads the package with emulated kernels once."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import ModuleType
from typing import Any

import torch

from tests.emulated.cases import Case
from tests.emulated.run import BACKENDS, Result, cover_case, run_case

_vf: ModuleType
_backend: Any


def load(backend: str) -> None:
    """Before anything in this process imports the package."""
    global _vf, _backend
    torch.set_num_threads(1)
    _backend = BACKENDS[backend]()
    _vf = _backend.load()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is allocated with NaN


def package() -> ModuleType:
    return _vf


def kernels() -> set[str]:
    """Names of all kernels of the loaded backend."""
    return set(_backend.kernels(_vf))


def run(case: Case, thorough: bool, coverage: bool) -> Result:
    """Check a case, or only see what it executes."""
    return cover_case(_vf, _backend, case) if coverage else run_case(_vf, _backend, case, thorough=thorough)


def results(cases: Sequence[Case], options: argparse.Namespace) -> Iterator[Result]:
    """Of every case, in order; `options.jobs` processes."""
    thorough, coverage = not options.quick, options.select
    if options.jobs == 1:
        yield from (run(case, thorough, coverage) for case in cases)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawn, load, (options.backend,)) as pool:
        # Neighbours share their references, so they go to one process.
        chunk = max(1, len(cases) // (20 * options.jobs))
        yield from pool.map(run, cases, [thorough] * len(cases), [coverage] * len(cases), chunksize=chunk)

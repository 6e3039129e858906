"""One leg of proof on some cases, in a process of its own: the last line printed says how it failed, or "no"."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.emulated.cases import DTYPES, Case, sample_of, spec_of


def emulator(cases: Sequence[Case]) -> str:
    """Compiled kernels: the first kind of failure of the first case that fails."""
    from tests.emulated import library
    from tests.emulated.run import BACKENDS, run_case

    backend = BACKENDS[cases[0].backend]()
    own = os.environ.get("VDIFF_FAST_EMULATED")
    vf = library.load_cuda(Path(own)) if own and cases[0].backend == "cuda" else backend.load()
    torch.use_deterministic_algorithms(True, warn_only=True)
    for case in cases:
        result = run_case(vf, backend, case)
        if not result.passed:
            print(case, result.problems[:1], result.wrong, result.changing, result.raised[-600:])
            kinds = sorted(result.kinds) or ["values"] * bool(result.wrong) or ["order"] * bool(result.changing)
            return ", ".join(kinds) or "raised"
    return "no"


def interpreter(cases: Sequence[Case]) -> str:
    """Triton's interpreter: values alone."""
    import vdiff_fast as vf
    from tests import checks

    torch.use_deterministic_algorithms(True, warn_only=True)
    for case in cases:
        spec = spec_of(vf, case.op)
        with vf.use_backend("triton", ops=[spec.name]):
            try:
                checks.assert_as_close_as_eager(spec, sample_of(vf, case), DTYPES[case.dtype])
            except AssertionError as error:
                print(error)
                return "values"
    return "no"


def compiler(cases: Sequence[Case]) -> str:
    """Triton and ptxas, on the first of the op's cases for each kernel: refused, or it spills."""
    import vdiff_fast as vf
    from benchmarks.resources import case_usage

    spec = spec_of(vf, cases[0].op)
    first = {case.kernel: case for case in reversed(list(spec.aot()))}
    for case in first.values():
        if case_usage(spec, case, cases[0].architecture).local > case.max_spills:
            return "spills"
    return "no"


LEGS: dict[str, Callable[[Sequence[Case]], str]] = {
    "emulator": emulator, "interpreter": interpreter, "compiler": compiler,
}  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(LEGS[sys.argv[1]]([Case.parse(line) for line in sys.argv[2:]]))

"""`python -m tests.launches`: every launch of the contract's samples, lowered to Triton's IR as a GPU would have it.

The package takes this process for the interpreter's, which lets CPU tensors reach the launches, and Triton does not:
kernels are compiled and none runs. Unlike those of ahead-of-time cases the arguments are specialised as at a real
launch: integers that are 1 become constants, so do absent tensors.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

TARGET = GPUTarget("cuda", 90, 32)
DTYPES = (torch.float32, torch.bfloat16)


def lower(source: Any, options: dict[str, Any]) -> None:
    """To Triton's IR, verified; raises what the compiler raises."""
    from triton._C.libtriton import ir
    from triton.compiler import make_backend

    backend = make_backend(TARGET)
    parsed = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(
        TARGET, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context
    )
    assert module.verify()


class Launches:
    """Triton's hook before a compilation: lowers each specialisation once, and keeps the kernel from being launched."""

    def __init__(self) -> None:
        self.known: set[tuple[str, str]] = set()
        self.failures: list[str] = []

    def __call__(self, *, key: Any, repr: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        name = (fn.name, str(key))
        if name not in self.known:
            self.known.add(name)
            source = triton.compiler.ASTSource(
                fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0]
            )
            try:
                lower(source, {k: compile[k] for k in ("num_warps", "num_stages", "enable_fp_fusion")})
            except Exception as error:  # of any type, and a failure of the test: told with all the others, not alone
                cause = error.__cause__ or error
                constants = {source.fn.arg_names[i]: value for (i,), value in compile["constants"].items()}
                self.failures.append(f"{fn.name} {compile['signature']} {constants}\n    {cause}")
        return True


def _without_a_device(launches: Launches) -> None:
    triton.knobs.runtime.jit_cache_hook = launches
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: TARGET, get_current_device=lambda: 0, get_current_stream=lambda device: 0
        )
    )


def main() -> int:
    launches = Launches()
    _without_a_device(launches)
    triton.knobs.runtime.interpret = False
    os.environ["TRITON_INTERPRET"] = "1"
    import vdiff_fast as vf
    from tests.checks import fresh, run

    for spec in vf.ops.specs():
        for dtype in DTYPES if "triton" in spec.predicates else ():
            for sample in spec.samples(torch.device("cpu"), dtype):
                before = len(launches.failures)
                with vf.use_backend("triton", ops=[spec.name]):
                    run(spec.function, fresh(sample), dtype)
                for failure in launches.failures[before:]:
                    print(f"{spec.name} {sample.name} {dtype}: {failure}", file=sys.stderr)
    print(f"{len(launches.known)} launches lowered, {len(launches.failures)} failed")
    return 1 if launches.failures or not launches.known else 0


if __name__ == "__main__":
    sys.exit(main())

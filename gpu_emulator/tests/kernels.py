"""Helpers: kernels from a few lines of PTX, numpy arrays as their buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_emulator import ptx as emulator

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


def kernel(body: str, pointers: int, *, shared: int = 0, before: str = "", directives: str = "") -> str:
    """A kernel `k` whose parameters are pointers, held in %rd1 and so on; %r0 is %tid.x, %rd0 four times as much."""
    parameters = ", ".join(f".param .u64 p{i}" for i in range(pointers))
    loads = "\n".join(f"ld.param.u64 %rd{i + 1}, [p{i}];" for i in range(pointers))
    declared = f".shared .align 16 .b8 sm[{shared}];" if shared else ""
    return f"""{HEADER}{before}
.visible .entry k({parameters}) {directives} {{
  .reg .pred %p<20>; .reg .b16 %rs<40>; .reg .b32 %r<80>; .reg .f32 %f<80>; .reg .b64 %rd<40>; .reg .f64 %fd<20>;
  {declared}
  {loads}
  mov.u32 %r0, %tid.x;
  mul.wide.u32 %rd0, %r0, 4;
  {body}
  ret;
}}"""


def launch(
    ptx: str, arrays: Sequence[np.ndarray], *, grid: Sequence[int] = (1,), block: Sequence[int] = (32,),
    cluster: Sequence[int] | None = None, dynamic: int = 0, check: bool = True, **options: Any,
) -> emulator.Report:  # fmt: skip
    """Runs `k` on these arrays, which are all that it may touch."""
    module = emulator.Module(ptx)
    for i, array in enumerate(arrays):
        emulator.allow(array.ctypes.data, array.nbytes, f"p{i}")
    try:
        parameters = b"".join(array.ctypes.data.to_bytes(8, "little") for array in arrays)
        return module.launch(
            "k", grid, block, parameters, cluster=cluster, dynamic_shared_bytes=dynamic,
            options=emulator.Options(**options), check=check,
        )  # fmt: skip
    finally:
        for array in arrays:
            emulator.forbid(array.ctypes.data)


def per_lane(instruction: str, inputs: Sequence[tuple[str, np.ndarray]], output: tuple[str, Any]) -> np.ndarray:
    """One instruction with one lane per element: `d` and `a`, `b`, `c` in it stand for its registers.

    Each input is a PTX type and its values, the output a PTX type and numpy's.
    """
    count = len(inputs[0][1])
    sizes = {"b16": 2, "b32": 4, "b64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8}
    width = lambda t: sizes.get(t, {"8": 1, "16": 2, "32": 4, "64": 8}.get(t.lstrip("busf"), 4))  # noqa: E731
    register = lambda t: f".b{8 * max(width(t), 2)}"  # noqa: E731
    lines = []
    for i, (kind, _) in enumerate(inputs):
        name, bits = "abc"[i], 8 * width(kind)
        lines.append(f".reg {register(kind)} {name}; mad.wide.u32 %rd2{i}, %r0, {width(kind)}, %rd{i + 1};")
        lines.append(f"ld.global.b{bits} {name}, [%rd2{i}];")
    kind, dtype = output
    lines.append(f".reg {register(kind)} d; {instruction};")
    lines.append(
        f"mad.wide.u32 %rd30, %r0, {width(kind)}, %rd{len(inputs) + 1}; st.global.b{8 * width(kind)} [%rd30], d;"
    )
    result = np.zeros(count, dtype)
    launch(
        kernel("\n".join(lines), len(inputs) + 1),
        [*(np.ascontiguousarray(v) for _, v in inputs), result],
        block=(count,),
    )
    return result

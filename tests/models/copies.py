"""Count the layout copies of a run: clone, stack, cat, and copy_ that changes no dtype, from the profiler's record."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch.profiler import ProfilerActivity, profile

MAKES_A_TENSOR = ("aten::clone", "aten::stack", "aten::cat")
# CPU Linear spreads its bias by a copy_; torch's convolution for what oneDNN lacks, such as bfloat16 on a CPU without
# AVX-512, copies its input into columns.
COPIES_BY_ITSELF = ("aten::addmm", "aten::_slow_conv2d_forward")


def layout_copies(run: Callable[[], object], at_least: int) -> list[str]:
    """The layout copies that write `at_least` elements or more, as "op [shapes]".

    A copy_ that changes the dtype is a cast; what torch's own kernels copy inside is theirs (COPIES_BY_ITSELF).
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    inside = [(e.start_ns(), e.end_ns()) for e in events if e.name() in COPIES_BY_ITSELF]
    found = []
    for event in events:
        if event.name() == "aten::copy_":
            casts = event.dtypes()[0] != event.dtypes()[1]
            if casts or any(start <= event.start_ns() <= end for start, end in inside):
                continue
        elif event.name() not in MAKES_A_TENSOR:
            continue
        shapes = event.structured_input_shapes()[0]
        shapes = shapes if shapes and isinstance(shapes[0], list) else [shapes]
        if sum(map(prod, shapes)) >= at_least:
            found.append(f"{event.name()} {shapes}")
    return found

"""Count the layout copies of a run: clone, stack, cat, and copy_ that changes no dtype, from the profiler's record."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch.profiler import ProfilerActivity, profile

MAKES_A_TENSOR = ("aten::clone", "aten::stack", "aten::cat")


def layout_copies(run: Callable[[], object], at_least: int) -> list[str]:
    """The layout copies that write `at_least` elements or more, as "op [shapes]".

    A copy_ inside addmm is CPU Linear spreading its bias; a copy_ that changes the dtype is a cast.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    biases = [(e.start_ns(), e.end_ns()) for e in events if e.name() == "aten::addmm"]
    found = []
    for event in events:
        if event.name() == "aten::copy_":
            casts = event.dtypes()[0] != event.dtypes()[1]
            if casts or any(start <= event.start_ns() <= end for start, end in biases):
                continue
        elif event.name() not in MAKES_A_TENSOR:
            continue
        shapes = event.structured_input_shapes()[0]
        shapes = shapes if shapes and isinstance(shapes[0], list) else [shapes]
        if sum(map(prod, shapes)) >= at_least:
            found.append(f"{event.name()} {shapes}")
    return found

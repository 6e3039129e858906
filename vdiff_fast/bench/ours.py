"""Time our implementation of an op's benchmark cases, nothing beside it, and print JSON: one side of a comparison.

Run as a file by `bench/against.py` with another commit's tree first on the path, so it uses only what an OpSpec has had
from the beginning: `ops.specs()`, `spec.bench()`, `spec.function`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def main(op: str, device: str, seconds: float) -> None:
    from vdiff_fast import ops

    times: dict[str, float] = {}
    for spec in ops.specs():
        if op not in ("", spec.name):
            continue
        for case in spec.bench():
            if device == "cpu" and "gpu" in case.tags:
                continue
            sample = case.sample(torch.device(device), torch.float32 if device == "cpu" else torch.bfloat16)
            inputs = sample.differentiable()
            result = spec.function(*sample.args, **sample.kwargs)
            first = result[0] if isinstance(result, tuple) else result
            cotangent = torch.ones_like(first.detach())

            def call(sample: Any = sample, inputs: Any = inputs, cotangent: Any = cotangent, spec: Any = spec) -> None:
                result = spec.function(*sample.args, **sample.kwargs)
                first = result[0] if isinstance(result, tuple) else result
                if inputs and first.requires_grad:
                    torch.autograd.grad(first, inputs, cotangent, allow_unused=True)
                if device == "cuda":
                    torch.cuda.synchronize()

            times[f"{spec.name}/{case.name}"] = _median_ms(call, seconds)
    print(json.dumps(times))


def _median_ms(call: Callable[[], None], seconds: float) -> float:
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 7 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e3)
    return statistics.median(samples)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))

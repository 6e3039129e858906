"""One call of an op under a tool that watches kernels (compute-sanitizer, ncu): `python -m benchmarks.one_call`.

By default the smallest contract sample of every op, forward and backward; with --largest the largest benchmark case.
"""

from __future__ import annotations

import argparse
import sys

import torch

import vdiff_fast as vf
from vdiff_fast import ops
from vdiff_fast._spec import OpSpec, Sample


def sample_of(spec: OpSpec, device: torch.device, largest: bool) -> Sample | None:
    """The call to make: in a dtype of the CUDA kernels for the sanitizer, in bfloat16 where bytes are counted."""
    if not largest:
        return next(iter(spec.samples(device, spec.dtypes.get("cuda", (torch.float32,))[0])), None)
    cases = sorted(spec.bench(), key=lambda case: case.bytes_forward or 0)
    return cases[-1].sample(device, torch.bfloat16) if cases else None


def call(spec: OpSpec, sample: Sample) -> None:
    result = spec.function(*sample.args, **sample.kwargs)
    first = result[0] if isinstance(result, tuple) else result
    if first.requires_grad:
        first.sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op")
    parser.add_argument("--backend", help="only ops that have this backend, and with it")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    done, failed = [], []
    for spec in ops.specs():
        if arguments.op not in (None, spec.name) or arguments.backend not in (None, *spec.predicates):
            continue
        with vf.use_backend(arguments.backend, ops=[spec.name]):
            try:
                if (sample := sample_of(spec, device, arguments.largest)) is not None:
                    call(spec, sample)
                    done.append(spec.name)
                if device.type == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                failed.append(spec.name)
                print(f"{spec.name}: {error!r}")
    print("called", ", ".join(done))
    if failed:
        sys.exit(f"failed {', '.join(failed)}")


if __name__ == "__main__":
    main()

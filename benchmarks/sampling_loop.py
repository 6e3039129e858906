"""A whole sampling loop of VideoUNet: fused, against a plain eager loop of the same model on the reference backend.

`python -m benchmarks.sampling_loop` writes sampling_loop.json beside the results. The plain loop is what teaching code
does: the model's own call at every step, then guidance and the update as separate tensor operations, noise by
`torch.randn`. Both make the same number of model calls.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast.bench.measure import interleaved
from vdiff_fast.bench.report import environment, machine_name
from vdiff_fast.diffusion import Guidance, NoiseSchedule, sample, sampler_table
from vdiff_fast.ops.sampler_step import columns


def plain_loop(
    model: torch.nn.Module, shape: tuple[int, ...], schedule: NoiseSchedule, steps: int, y: Tensor, guidance: float
) -> Tensor:
    """DDIM with eta = 1, guidance on the doubled batch and clipping, one operation at a time."""
    table = sampler_table(schedule, "ddim", steps, target="v", eta=1.0, guidance=guidance)
    x = torch.randn(shape)
    null = torch.full_like(y, model.config.num_classes)
    with torch.no_grad(), vf.use_backend("reference"):
        for row, t in zip(table.coefficients.tolist(), table.timesteps):
            both = model(torch.cat([x, x]), t.expand(2 * len(x)), y=torch.cat([y, null]))
            prediction, uncond = both.chunk(2)
            guided = uncond + row[columns.GUIDANCE] * (prediction - uncond)
            x0 = (row[columns.X0_X] * x + row[columns.X0_Y] * guided).clamp(-1, 1)
            x = row[columns.X] * x + row[columns.X0] * x0 + row[columns.Y] * guided
            x = x + row[columns.NOISE] * torch.randn_like(x)
    return x


def fused_loop(
    model: torch.nn.Module, shape: tuple[int, ...], schedule: NoiseSchedule, steps: int, y: Tensor, guidance: float
) -> Tensor:
    return sample(
        model, shape, schedule, "ddim", steps=steps, target="v", eta=1.0, y=y, clip=1.0,
        guidance=Guidance(guidance, uncond={"y": model.config.num_classes}),
    )  # fmt: skip


def measure(shape: tuple[int, ...], steps: int, guidance: float, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = vf.models.VideoUNet.preset("tiny", num_classes=10).eval()
    with torch.no_grad():  # zero-initialised branches would leave half of the model trivial
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    schedule, y = NoiseSchedule.linear(), torch.arange(shape[0])
    loops: dict[str, Callable[[], Tensor]] = {
        name: lambda loop=loop: loop(model, shape, schedule, steps, y, guidance)  # type: ignore[misc]
        for name, loop in (("fused", fused_loop), ("eager", plain_loop))
    }
    timings = interleaved(loops, device=torch.device("cpu"), seconds=0.0, min_runs=repeats)
    return {
        "shape": shape,
        "steps": steps,
        "guidance": guidance,
        "ms": {name: vars(timing) for name, timing in timings.items()},
        "ratio": timings["eager"].median / timings["fused"].median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=5, default=[2, 3, 16, 32, 32])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results")
    given = parser.parse_args()
    result = measure(tuple(given.shape), given.steps, given.guidance, given.repeats)
    device = torch.device("cpu")
    path = Path(given.out) / machine_name(device) / "sampling_loop.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(device)} | result, indent=1) + "\n")
    fused, eager = (f"{result['ms'][name]['median']:.0f} ms" for name in ("fused", "eager"))
    print(f"{given.steps} guided steps of {given.shape}: fused {fused}, eager {eager}, {result['ratio']:.2f}x")


if __name__ == "__main__":
    main()

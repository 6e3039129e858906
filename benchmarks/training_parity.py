"""Train the same model twice from one seed, fused and on the reference, and compare the losses step by step.

`python -m benchmarks.training_parity --steps 200` on the bundled clip; writes training_parity.json beside the results.
Rounding differs between the two, and training amplifies it: what must agree closely is the beginning.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import vdiff_fast as vf
from vdiff_fast.bench.report import environment, machine_name
from vdiff_fast.data import demo_clip, open_dataset, to_unit_range


def losses(backend: str | None, steps: int, *, frames: int, size: int, batch: int, seed: int = 0) -> list[float]:
    """The loss of every step of a short training run with AdamW, target v, on windows of the bundled clip."""
    torch.manual_seed(seed)
    model = vf.models.VideoUNet.preset("tiny")
    schedule = vf.diffusion.NoiseSchedule.linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    dataset = open_dataset(str(demo_clip()), frames=frames, size=size)
    draws = torch.Generator().manual_seed(seed)
    history = []
    with vf.use_backend(backend):
        for step in range(steps):
            picks = torch.randint(len(dataset), (batch,), generator=draws).tolist()
            x0 = to_unit_range(torch.stack([dataset[i]["video"] for i in picks]))
            t = torch.randint(schedule.timesteps, (batch,), generator=draws)
            x_t = vf.ops.q_sample(x0, t, schedule, seed=step)
            loss = vf.ops.diffusion_loss(model(x_t, t), x0, t, schedule, target="v", seed=step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            history.append(float(loss.detach()))
    return history


def largest_relative_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--out", default="benchmarks/results")
    arguments = parser.parse_args()
    sizes = {"frames": arguments.frames, "size": arguments.size, "batch": arguments.batch}
    fused, reference = (losses(backend, arguments.steps, **sizes) for backend in (None, "reference"))
    first = largest_relative_difference(fused[:50], reference[:50])
    whole = largest_relative_difference(fused, reference)
    device = torch.device("cpu")
    path = Path(arguments.out) / machine_name(device) / "training_parity.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment(device),
        "first_50": first,
        "all": whole,
        "fused": fused,
        "reference": reference,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{arguments.steps} steps, loss {fused[0]:.4f} -> {fused[-1]:.4f}; largest relative difference fused against "
          f"reference: {first:.2e} over the first 50 steps, {whole:.2e} over all")  # fmt: skip


if __name__ == "__main__":
    main()

"""Memory of a training step with its noise drawn from a seed, and stored: `python -m benchmarks.training_memory`.

Peak is what the step adds at most to what is held before it, its stored noise included; kept is what autograd holds for
the backward. Both of a whole step, and of noising and loss alone, where a prediction stands for the network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast.bench.measure import peak_bytes, saved_bytes
from vdiff_fast.bench.report import environment, machine_name
from vdiff_fast.ops._common.cases.drawn_noise import BENCH_SHAPES

DRAWN, STORED, EAGER = "drawn from the seed", "stored", "stored, reference backend"


class Step:
    """Noising, prediction and loss (target v) of one video batch in channels-last memory, and the backward."""

    def __init__(
        self, model: Callable[[Tensor, Tensor], Tensor], parameters: Iterable[Tensor], shape: tuple[int, ...]
    ) -> None:
        self.model, self.parameters = model, list(parameters)
        self.schedule = vf.diffusion.NoiseSchedule.linear()
        generator = torch.Generator().manual_seed(0)
        self.x0 = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last_3d)
        self.t = torch.arange(shape[0]) * 137 % 1000
        self.seed = torch.zeros((), dtype=torch.int64)

    def source(self, kind: str) -> dict[str, Tensor]:
        return {"seed": self.seed} if kind == DRAWN else {"noise": torch.randn_like(self.x0)}

    def loss(self, source: dict[str, Tensor]) -> Tensor:
        x_t = vf.ops.q_sample(self.x0, self.t, self.schedule, **source)
        prediction = self.model(x_t, self.t)
        del x_t
        return vf.ops.diffusion_loss(prediction, self.x0, self.t, self.schedule, target="v", **source)

    def train(self, kind: str) -> None:
        source = self.source(kind)  # a training loop's variable: it lives until the step ends
        self.loss(source).backward()

    def forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def noise_alone(shape: tuple[int, ...]) -> Step:
    """A step whose network costs nothing: its prediction is given."""
    prediction = torch.zeros(shape).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    return Step(lambda x_t, t: prediction.view_as(prediction), [prediction], shape)


def measure(step: Step) -> Iterator[dict[str, Any]]:
    """One row per way to keep the noise: bytes at the peak, and bytes kept for the backward."""
    for kind in (DRAWN, STORED, EAGER):
        with vf.use_backend("reference" if kind == EAGER else None):
            step.train(kind)  # the first call makes tables that stay
            step.forget_gradients()
            kept = saved_bytes(partial(step.loss, step.source(kind)))
            peak = peak_bytes(partial(step.train, kind), step.x0.device)
            step.forget_gradients()
        yield {"noise": kind, "video_bytes": step.x0.nbytes, "peak_bytes": peak, "saved_bytes": kept}


def rows() -> Iterator[dict[str, Any]]:
    """Noising and loss of latents and pixels alone, and a whole step of the smallest U-Net."""
    for name, shape in BENCH_SHAPES.items():
        yield from ({"case": f"q_sample and loss, {name}", "shape": shape} | row for row in measure(noise_alone(shape)))
    torch.manual_seed(0)
    shape = (2, 3, 16, 32, 32)
    model = vf.models.VideoUNet.preset("tiny")
    step = Step(model, model.parameters(), shape)
    yield from ({"case": "VideoUNet tiny, training step", "shape": shape} | row for row in measure(step))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="benchmarks/results")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    path = Path(arguments.out) / machine_name(device) / "training_memory.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = list(rows())
    path.write_text(json.dumps({"environment": environment(device), "noise_memory": found}, indent=1) + "\n")
    for row in found:
        print(f"{row['case']:35} {row['noise']:26} peak {row['peak_bytes'] / 2**20:8.2f} MiB, "
              f"kept {row['saved_bytes'] / 2**20:8.2f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()

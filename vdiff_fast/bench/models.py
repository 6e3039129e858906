"""Whole steps: a training step and a sampling step of each model, fused against the reference backend and compile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast.bench.measure import interleaved, peak_bytes, saved_bytes
from vdiff_fast.bench.report import environment


@dataclass(frozen=True)
class ModelCase:
    """A model, the video it is trained on, and its precision."""

    name: str
    make: Callable[[], torch.nn.Module]
    shape: tuple[int, int, int, int, int]
    autocast: torch.dtype | None


def cases(device: torch.device) -> list[ModelCase]:
    """What fits two cores, or what a GPU is bought for."""
    preset, dit = vf.models.VideoUNet.preset, vf.models.VideoDiT.preset
    latents = {"in_channels": 4, "out_channels": 4}
    if device.type == "cpu":
        return [
            ModelCase("VideoUNet tiny", lambda: preset("tiny"), (2, 3, 16, 32, 32), None),
            ModelCase("VideoUNet small", lambda: preset("small"), (1, 3, 8, 32, 32), None),
            ModelCase("VideoDiT tiny", lambda: dit("tiny"), (2, 3, 8, 32, 32), None),
            ModelCase("VideoDiT tiny, patch 4", lambda: dit("tiny", patch=(1, 4, 4)), (8, 3, 8, 32, 32), None),
        ]
    return [
        ModelCase("VideoUNet small", lambda: preset("small"), (4, 3, 16, 64, 64), torch.bfloat16),
        ModelCase("VideoUNet base", lambda: preset("base"), (2, 3, 16, 64, 64), torch.bfloat16),
        ModelCase("VideoDiT b", lambda: dit("b", **latents), (8, 4, 16, 32, 32), torch.bfloat16),
        ModelCase("VideoDiT xl", lambda: dit("xl", **latents), (4, 4, 16, 32, 32), torch.bfloat16),
    ]


class Steps:
    """A training step (forward, loss, backward) and a sampling step (one model call and update) of one model."""

    def __init__(self, case: ModelCase, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.model = case.make().to(device)
        with torch.no_grad():  # a zero-initialised output would leave half of the backward trivial
            for p in self.model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        self.schedule = vf.diffusion.NoiseSchedule.linear().to(device)
        self.x0 = torch.rand(case.shape, device=device).mul_(2).sub_(1).contiguous(memory_format=torch.channels_last_3d)
        self.t = torch.arange(case.shape[0], device=device) * 137 % 1000
        self.seed = torch.zeros((), dtype=torch.int64, device=device)

    def loss(self, model: Callable[..., Tensor]) -> Tensor:
        x_t = vf.ops.q_sample(self.x0, self.t, self.schedule, seed=self.seed)
        kind = self.case.autocast
        with torch.autocast(self.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None):
            prediction = model(x_t, self.t)
        return vf.ops.diffusion_loss(prediction, self.x0, self.t, self.schedule, target="v", seed=self.seed)

    def train(self, model: Callable[..., Tensor]) -> Any:
        self.model.zero_grad(set_to_none=True)
        loss = self.loss(model)
        loss.backward()
        return loss

    @torch.no_grad()
    def sample(self, model: Callable[..., Tensor]) -> Tensor:
        kind = self.case.autocast
        with torch.autocast(self.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None):
            return vf.diffusion.sample(
                model, self.case.shape, self.schedule, sampler="ddim", steps=1, seed=0, device=self.device
            )


def on_backend(backend: str | None, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with a backend asked for by name, or with auto for None."""

    def run() -> Any:
        with vf.use_backend(backend):
            return call()

    return run


def measure_case(case: ModelCase, device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows of one model: milliseconds per step, peak memory and bytes saved for the backward."""
    steps = Steps(case, device)
    torch._dynamo.reset()
    plain = torch.compile(steps.model, dynamic=False)
    for what in ("train", "sample"):
        step = getattr(steps, what)
        calls = {
            "vdiff_fast": on_backend(None, partial(step, steps.model)),
            "reference": on_backend("reference", partial(step, steps.model)),
            "reference compiled": on_backend("reference", partial(step, plain)),
        }
        timings = interleaved(calls, device=device, seconds=seconds * 6, min_runs=5)
        for name, timing in timings.items():
            row: dict[str, Any] = {"model": case.name, "shape": list(case.shape), "step": what, "implementation": name}
            row |= {"median_ms": timing.median, "low_ms": timing.low, "high_ms": timing.high}
            row["peak_bytes"] = peak_bytes(calls[name], device)
            if what == "train" and name != "reference compiled":
                row["saved_bytes"] = saved_bytes(
                    on_backend("reference" if name == "reference" else None, lambda: steps.loss(steps.model))
                )
            yield row


def measure_models(
    device: torch.device, path: Path | None, seconds: float, *, model: str | None = None
) -> Iterator[str]:
    """Measure every case, or one by name, write the JSON after each, and yield a line per model and step.

    Raises:
        ValueError: no case has this name.
    """
    rows: list[dict[str, Any]] = []
    chosen = [case for case in cases(device) if model in (None, case.name)]
    if not chosen:
        names = ", ".join(f"{case.name!r}" for case in cases(device))
        raise ValueError(f"no model is called {model!r} on {device.type}; there are {names}")
    for case in chosen:
        rows += measure_case(case, device, seconds)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"environment": environment(device), "models": rows}, indent=1) + "\n")
        yield from lines(rows, case.name)


def lines(rows: list[dict[str, Any]], model: str) -> Iterator[str]:
    """One line a step: ours, and the ratios."""
    for what in ("train", "sample"):
        found = {r["implementation"]: r for r in rows if r["model"] == model and r["step"] == what}
        ours = found["vdiff_fast"]
        ratios = ", ".join(
            f"{found[name]['median_ms'] / ours['median_ms']:.2f} x {name}" for name in found if name != "vdiff_fast"
        )
        saved = ""
        if "saved_bytes" in ours:
            share = ours["saved_bytes"] / found["reference"]["saved_bytes"]
            saved = f", saved for backward {ours['saved_bytes'] / 2**20:.0f} MiB ({share:.2f} x reference)"
        yield f"{model:<22} {what:<7} {ours['median_ms']:9.1f} ms   {ratios}{saved}"

"""Whole steps: a training step and a sampling step of each model, fused against the reference backend and compile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast.bench.cases import cannot_run
from vdiff_fast.bench.measure import Timing, device_is_lost, interleaved, peak_bytes, saved_bytes
from vdiff_fast.bench.report import environment

OURS, REFERENCE, COMPILED, CAPTURED = "vdiff_fast", "reference", "reference compiled", "vdiff_fast captured"
STEPS = ("train", "sample")
# The first steps of a captured run warm up and capture.
CAPTURED_STEPS, WARM_STEPS = 20, 4


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

    def sample(self, model: Callable[..., Tensor]) -> Tensor:
        """One eager step: a graph would be captured anew in every call."""
        return self._sample(model, steps=1, graph=False)

    def captured(self, model: Callable[..., Tensor]) -> Timing:
        """Device time of the replayed steps of one run that is captured; raises what the capture raises."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(CAPTURED_STEPS)]
        self._sample(model, steps=CAPTURED_STEPS, graph=True, callback=lambda i, x, x0: events[i].record())
        torch.cuda.synchronize()
        warm = events[WARM_STEPS:]
        return Timing.of([before.elapsed_time(after) for before, after in pairwise(warm)])

    @torch.no_grad()
    def _sample(self, model: Callable[..., Tensor], **options: Any) -> Tensor:
        kind = self.case.autocast
        with torch.autocast(self.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None):
            return vf.diffusion.sample(
                model, self.case.shape, self.schedule, sampler="ddim", seed=0, device=self.device, **options
            )


def on_backend(backend: str | None, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with a backend asked for by name, or with auto for None."""

    def run() -> Any:
        with vf.use_backend(backend):
            return call()

    return run


def measure_case(
    case: ModelCase, device: torch.device, seconds: float, *, compiled: bool, notes: list[str], deadline: float
) -> Iterator[dict[str, Any]]:
    """Rows of one model: milliseconds per step, peak memory and bytes saved for the backward.

    Args:
        compiled: the rows of the reference under torch.compile, else those of the others; ours is timed beside it in
            both.
        notes: gets a line for whatever raises or is left out.
        deadline: of time.monotonic(); no step is begun after it.
    """
    steps = Steps(case, device)
    torch._dynamo.reset()
    other = torch.compile(steps.model, dynamic=False) if compiled else steps.model
    for what in STEPS:
        step = getattr(steps, what)
        other_name = COMPILED if compiled else REFERENCE
        calls = {
            OURS: on_backend(None, partial(step, steps.model)),
            other_name: on_backend("reference", partial(step, other)),
        }
        for name in list(calls):
            try:
                if time.monotonic() > deadline:
                    raise TimeoutError("no time left")
                calls[name]()
            except Exception as error:
                notes.append(f"{case.name}, {what}, {name}: {cannot_run(error)}")
                del calls[name]
        timings = interleaved(calls, device=device, seconds=seconds * 6, min_runs=5)
        for name, timing in timings.items():
            if compiled and name == OURS:
                continue
            row = _row(case, what, name, timing) | {"peak_bytes": peak_bytes(calls[name], device)}
            if what == "train" and not compiled:
                row["saved_bytes"] = saved_bytes(
                    on_backend("reference" if name == REFERENCE else None, lambda: steps.loss(steps.model))
                )
            yield row
        if what == "sample" and not compiled and device.type == "cuda":
            try:
                yield _row(case, what, CAPTURED, steps.captured(steps.model))
            except Exception as error:
                notes.append(f"{case.name}, {what}, {CAPTURED}: {cannot_run(error)}")


def _row(case: ModelCase, what: str, name: str, timing: Timing) -> dict[str, Any]:
    row: dict[str, Any] = {"model": case.name, "shape": list(case.shape), "step": what, "implementation": name}
    return row | {"median_ms": timing.median, "low_ms": timing.low, "high_ms": timing.high}


def measure_models(
    device: torch.device, path: Path | None, seconds: float, *, model: str | None = None, limit: float | None = None
) -> Iterator[str]:
    """Measure every case, or one by name; yield a line per model and step, and a line per note.

    Ours and the reference come first, for all models, then torch.compile, which takes longest. The JSON is written
    after each row. No step is begun after `limit` seconds.

    Raises:
        ValueError: no case has this name.
        RuntimeError: a kernel's fault ended the CUDA context.
    """
    deadline = float("inf") if limit is None else time.monotonic() + limit
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    chosen = [case for case in cases(device) if model in (None, case.name)]
    if not chosen:
        names = ", ".join(f"{case.name!r}" for case in cases(device))
        raise ValueError(f"no model is called {model!r} on {device.type}; there are {names}")
    for compiled in (False, True):
        for case in chosen:
            noted = len(notes)
            if time.monotonic() > deadline:
                notes.append(f"{case.name}{', compiled' if compiled else ''}: no time left")
            else:
                for row in measure_case(case, device, seconds, compiled=compiled, notes=notes, deadline=deadline):
                    rows.append(row)
                    if path is not None:
                        _write(path, device, rows, notes)
                yield from lines(rows, case.name)
            yield from notes[noted:]
            if path is not None:
                _write(path, device, rows, notes)
            if device_is_lost(device):
                raise RuntimeError(f"the CUDA context is lost after {case.name}")


def _write(path: Path, device: torch.device, rows: list[dict[str, Any]], notes: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"environment": environment(device), "models": rows} | ({"notes": notes} if notes else {})
    path.write_text(json.dumps(document, indent=1) + "\n")


def lines(rows: list[dict[str, Any]], model: str) -> Iterator[str]:
    """One line a step that ours has a time of: that time, and the ratios."""
    for what in STEPS:
        found = {r["implementation"]: r for r in rows if r["model"] == model and r["step"] == what}
        if OURS not in found:
            continue
        ours = found[OURS]
        ratios = ", ".join(
            f"{found[name]['median_ms'] / ours['median_ms']:.2f} x {name}" for name in found if name != OURS
        )
        saved = ""
        if "saved_bytes" in ours and REFERENCE in found:
            share = ours["saved_bytes"] / found[REFERENCE]["saved_bytes"]
            saved = f", saved for backward {ours['saved_bytes'] / 2**20:.0f} MiB ({share:.2f} x reference)"
        yield f"{model:<22} {what:<7} {ours['median_ms']:9.1f} ms   {ratios}{saved}"

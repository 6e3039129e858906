"""Fused against reference on a model: time per step, bytes kept for the backward, largest differences."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdiff_fast import ops, use_backend
from vdiff_fast.diffusion import NoiseSchedule


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between fused and reference, beside the largest values they are differences of."""

    output: float
    output_scale: float
    gradient: float
    gradient_scale: float
    gradient_name: str
    loss: float

    @property
    def relative(self) -> float:
        """The larger of the two relative differences."""
        return max(self.output / max(self.output_scale, 1e-30), self.gradient / max(self.gradient_scale, 1e-30))


@dataclass(frozen=True)
class Costs:
    """Seconds per training and sampling step (medians, alternating), bytes kept for the backward."""

    fused_train: float
    reference_train: float
    fused_sample: float
    reference_sample: float
    fused_saved_bytes: int
    reference_saved_bytes: int


class StepUnderTest:
    """One training step (forward, loss, backward) and one sampling step of a model on fixed inputs."""

    def __init__(
        self, model: nn.Module, x0: Tensor, schedule: NoiseSchedule, *, target: str = "v", y: Tensor | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.model, self.x0, self.schedule, self.target, self.autocast = model, x0, schedule, target, autocast
        self.t = torch.arange(len(x0), device=x0.device) * schedule.timesteps // max(1, len(x0)) + 1
        self.t.clamp_(max=schedule.timesteps - 1)
        self.arguments = {} if y is None else {"y": y}

    def _predict(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            return self.model(x, self.t, **self.arguments)

    def forward(self) -> tuple[Tensor, Tensor]:
        """(prediction, loss)."""
        x_t = ops.q_sample(self.x0, self.t, self.schedule, seed=7)
        prediction = self._predict(x_t)
        return prediction, ops.diffusion_loss(prediction, self.x0, self.t, self.schedule, target=self.target, seed=7)

    def train(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.forward()[1].backward()

    @torch.no_grad()
    def sample(self) -> None:
        self._predict(self.x0)

    def _results(self) -> tuple[Tensor, float, dict[str, Tensor]]:
        self.model.zero_grad(set_to_none=True)
        prediction, loss = self.forward()
        loss.backward()
        gradients = {n: p.grad.float().clone() for n, p in self.model.named_parameters() if p.grad is not None}
        return prediction.detach().float(), float(loss.detach()), gradients

    def parity(self) -> Parity:
        """Run both backends on the same weights, input and noise."""
        fused_output, fused_loss, fused = self._results()
        with use_backend("reference"):
            output, loss, reference = self._results()
        differences = {name: float((fused[name] - reference[name]).abs().max()) for name in reference}
        worst = max(differences, key=lambda name: differences[name])
        return Parity(
            output=float((fused_output - output).abs().max()),
            output_scale=float(output.abs().max()),
            gradient=differences[worst],
            gradient_scale=max(float(g.abs().max()) for g in reference.values()),
            gradient_name=worst,
            loss=abs(fused_loss - loss),
        )

    def saved_bytes(self) -> int:
        """Bytes of distinct storages that autograd keeps for the backward, parameters and input apart."""
        mine = {p.untyped_storage().data_ptr() for p in self.model.parameters()} | {
            self.x0.untyped_storage().data_ptr()
        }
        kept: dict[int, int] = {}
        alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in mine:
                kept[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)  # a freed storage's address could come again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.forward()
        return sum(kept.values())

    def costs(self, rounds: int = 5) -> Costs:
        """Time both backends in turn, so that both meet the same load of the machine."""
        times: dict[tuple[str, str], list[float]] = {}
        for turn in range(rounds + 1):
            for backend in ("auto", "reference"):
                for name, call in (("train", self.train), ("sample", self.sample)):
                    with use_backend(backend):
                        seconds = _timed(call, self.x0.device)
                    if turn:  # the first round warms up
                        times.setdefault((backend, name), []).append(seconds)
        fused_bytes = self.saved_bytes()
        with use_backend("reference"):
            reference_bytes = self.saved_bytes()
        self.model.zero_grad(set_to_none=True)
        median = {key: statistics.median(values) for key, values in times.items()}
        return Costs(
            median["auto", "train"], median["reference", "train"], median["auto", "sample"],
            median["reference", "sample"], fused_bytes, reference_bytes,
        )  # fmt: skip


def _timed(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def format_costs(costs: Costs, parity: Parity) -> str:
    """The table that `demo` and `parity` print."""
    mib = 2**20
    rows = [
        ("", "fused", "reference", "ratio"),
        _ratio("training step, ms", 1e3 * costs.fused_train, 1e3 * costs.reference_train),
        _ratio("sampling step, ms", 1e3 * costs.fused_sample, 1e3 * costs.reference_sample),
        _ratio("kept for backward, MiB", costs.fused_saved_bytes / mib, costs.reference_saved_bytes / mib),
    ]
    lines = [f"{name:<24}{a:>11}{b:>11}{r:>8}" for name, a, b, r in rows]
    lines.append(
        f"largest difference: output {parity.output:.2e} (of {parity.output_scale:.2e}), "
        f"gradient {parity.gradient:.2e} (of {parity.gradient_scale:.2e}, in {parity.gradient_name})"
    )
    return "\n".join(lines)


def _ratio(name: str, fused: float, reference: float) -> tuple[str, str, str, str]:
    return name, f"{fused:.1f}", f"{reference:.1f}", f"{reference / max(fused, 1e-12):.2f}x"

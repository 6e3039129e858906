"""A whole sampling step as one CUDA graph: the model, guidance, the update and its noise, with one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[["StepState", bool], None]
WARM_UPS = 2


class StepState:
    """What a step reads and writes; where it is `static`, always at the addresses that a graph replays on.

    Attributes:
        x: the video, (B, ...).
        previous, previous2: x0 of the step before and of two steps before; None where the sampler reads neither.
        index: 0-d int64, the step; it counts up in the step itself.
    """

    def __init__(self, x: Tensor, history: int) -> None:
        self.x, self.x0 = x, torch.zeros_like(x)
        self.index = torch.zeros((), dtype=torch.int64, device=x.device)
        self.previous = torch.zeros_like(x) if history > 0 else None
        self.previous2 = torch.zeros_like(x) if history > 1 else None
        self.static = False

    def advance(self, x: Tensor, x0: Tensor) -> None:
        """Take a step's results over: into the buffers where they are static, else instead of them."""
        if self.static:
            if self.previous2 is not None and self.previous is not None:
                self.previous2.copy_(self.previous)
            if self.previous is not None:
                self.previous.copy_(x0)
            self.x.copy_(x)
            self.x0.copy_(x0)
        else:
            if self.previous2 is not None:
                self.previous2 = self.previous
            if self.previous is not None:
                self.previous = x0
            self.x, self.x0 = x, x0
        self.index += 1

    def snapshot(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._tensors()]

    def restore(self, saved: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors(), saved):
            tensor.copy_(value)

    def _tensors(self) -> list[Tensor]:
        return [t for t in (self.x, self.x0, self.index, self.previous, self.previous2) if t is not None]


class StepGraph:
    """Runs a step eagerly, or replays its graph: one for guided steps and one for the others.

    Args:
        step: step(state, guided) advances the state without a wait for the device.
        state: its buffers.
        enabled: "auto" captures on a CUDA device and falls back to eager steps where a capture fails; True raises
            what the capture raised; False never captures.
    """

    def __init__(self, step: Step, state: StepState, enabled: str | bool) -> None:
        if enabled not in ("auto", True, False):
            raise ValueError(f"graph must be 'auto', True or False, got {enabled!r}")
        on_gpu = state.x.is_cuda
        if enabled is True and not on_gpu:
            raise ValueError(f"graph=True captures a CUDA graph, but the video is on {state.x.device}; use 'auto'")
        self._step, self._state = step, state
        self._strict = enabled is True
        state.static = bool(enabled) and on_gpu
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}

    def __call__(self, guided: bool) -> None:
        if not self._state.static:
            self._step(self._state, guided)
            return
        if guided not in self._graphs:
            try:
                self._graphs[guided] = self._capture(guided)
            except RuntimeError as error:
                if self._strict:
                    raise
                warnings.warn(f"the step could not be captured, it runs eagerly: {error}", stacklevel=3)
                self._state.static = False
                self._step(self._state, guided)
                return
        self._graphs[guided].replay()

    def _capture(self, guided: bool) -> torch.cuda.CUDAGraph:
        """Warm up on a side stream (libraries allocate, kernels compile), put the state back, then record."""
        saved = self._state.snapshot()
        side = torch.cuda.Stream(self._state.x.device)
        side.wait_stream(torch.cuda.current_stream(self._state.x.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._step(self._state, guided)
                self._state.restore(saved)
        torch.cuda.current_stream(self._state.x.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Not torch's own stream for captures, which is that of the GPU it was first asked for on.
            with torch.cuda.graph(graph, stream=side):
                self._step(self._state, guided)
        finally:
            # Recording runs nothing, but a capture that failed may have advanced what lives on the host.
            self._state.restore(saved)
        return graph

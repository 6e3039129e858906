"""Buffers that follow from a module's configuration, and that no checkpoint holds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class DerivedBuffers(nn.Module):
    """A module that makes its non-persistent buffers again whenever their memory is not what it made.

    A model built on the meta device gets its memory by `to_empty`, or parameter by parameter from
    `load_state_dict(..., assign=True)`: both leave such buffers without their values. `to(bfloat16)` would round them.
    So every change of device, dtype or memory makes them anew, and so does a forward (`_ensure_on`) on another device
    than theirs. Subclasses say in `_derive` what the buffers are.
    """

    @abstractmethod
    def _derive(self, device: torch.device | None) -> dict[str, Tensor]:
        """The buffers by name, on the device."""

    def reset_parameters(self, device: torch.device | None = None) -> None:
        """Make the buffers; named as PyTorch's wrappers call it after `to_empty`."""
        if device is None:
            device = next((buffer.device for buffer in self._buffers.values() if buffer is not None), None)
        for name, value in self._derive(device).items():
            self.register_buffer(name, value, persistent=False)

    def _ensure_on(self, device: torch.device | None) -> None:
        """Buffers that lie elsewhere are made anew on the device; None takes any."""
        if device is not None and any(b is not None and b.device != device for b in self._buffers.values()):
            self.reset_parameters(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        if any(buffer is not before[name] for name, buffer in self._buffers.items()):
            self.reset_parameters()
        return self

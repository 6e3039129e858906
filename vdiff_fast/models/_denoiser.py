"""What the video networks have in common: presets, inputs, and what a sampling loop makes before its first step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vdiff_fast._derivatives import transformed
from vdiff_fast.models._inputs import check_conditions, check_context_mask
from vdiff_fast.nn.context import Context

if TYPE_CHECKING:
    from typing_extensions import Self

KeysValues = Sequence[Tensor]


class Denoiser(nn.Module, ABC):
    """prediction = f(x_t, t | r, y, context, cond). Subclasses have a `config` and say how x becomes the prediction.

    Two inputs can be made before a sampling loop, for all its steps: `modulations(t, y, r)`, passed as `modulation=`,
    and `keys_values(context)`, passed as `keys_values=`.
    """

    presets: ClassVar[Mapping[str, Any]]
    config: Any
    null_context: nn.Parameter | None

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A model of a known size, with changed fields of its config; see `presets`.

        Raises:
            ValueError: no preset has this name.
        """
        if name not in cls.presets:
            raise ValueError(f"unknown preset {name!r}; choose from {', '.join(cls.presets)}")
        return cls(cls.presets[name], **changes)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        r: Tensor | None = None,
        y: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        cond: Tensor | None = None,
        modulation: Tensor | None = None,
        keys_values: KeysValues | None = None,
    ) -> Tensor:
        self._check_video(x)
        check_conditions(self.config, x, t, y, context, cond, r)
        check_context_mask(context_mask, context, keys_values)
        rows = self.modulations(t, y, r) if modulation is None else modulation
        tokens = self._context_tokens(context, x.shape[0]) if keys_values is None else None
        seen = None if tokens is None and context_mask is None else Context(tokens, context_mask)
        return self._denoise(x, rows, seen, self._of_blocks(keys_values), cond).to(x.dtype)

    @abstractmethod
    def _denoise(
        self, x: Tensor, rows: Tensor, context: Context | None, kept: list[Tensor | None], cond: Tensor | None
    ) -> Tensor:
        """The prediction; `rows` are `modulations`, `kept` the keys and values of each block where they were given."""

    @abstractmethod
    def modulations(self, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """Everything that the blocks make of time, class and interval, (B, W).

        A sampling loop makes those of all its steps at once and passes each step's rows as `modulation=`.
        """

    @torch.no_grad()
    def keys_values(self, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Keys and values of every cross-attention, (B, L, 2 * width) each; of the null token (B = 1) without context.

        They are the same in every step of a sampling loop, which makes them once; without gradients.
        """
        tokens = self._context_tokens(context, 1)
        if tokens is None:
            return ()
        return tuple(block.cross_attn.kv(tokens) for block in self.blocks_in_order() if block.cross_attn is not None)

    def _of_blocks(self, keys_values: KeysValues | None) -> list[Tensor | None]:
        """Each block's entry of `keys_values`; None for a block that has no cross-attention, or to make its own."""
        crossing = [block.cross_attn is not None for block in self.blocks_in_order()]
        if keys_values is None:
            return [None] * len(crossing)
        if len(keys_values) != sum(crossing):
            raise ValueError(
                f"keys_values holds {len(keys_values)} tensors, the model has {sum(crossing)} cross-attentions; "
                "use model.keys_values(context)"
            )
        given = iter(keys_values)
        return [next(given) if crosses else None for crosses in crossing]

    @abstractmethod
    def blocks_in_order(self) -> Sequence[Any]:
        """The blocks in the order that they run."""

    @abstractmethod
    def _check_video(self, x: Tensor) -> None:
        """Raise TypeError or ValueError for an x that the network does not take."""

    def _context_tokens(self, context: Tensor | None, batch: int) -> Tensor | None:
        """What the cross-attentions read: the context, or the learned null token; None in a network without them."""
        if context is None and self.null_context is not None:
            return self.null_context.expand(batch, 1, -1)
        return context

    def _run(self, block: nn.Module, *args: Any) -> Any:
        # torch's checkpoint runs again without the tangents of a forward mode that is over by then.
        if self.config.gradient_checkpointing and torch.is_grad_enabled() and not transformed():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

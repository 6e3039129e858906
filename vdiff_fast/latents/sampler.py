"""Batches of one bucket each, as a pure function of the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vdiff_fast.data.draw import permutation
from vdiff_fast.data.errors import SamplerStateError
from vdiff_fast.data.sampler import ClipKey, ClipSampler

# Streams of the orders, after that of `ClipSampler`: of the batches of an epoch, and of each bucket's items.
_BATCHES, _ITEMS = 15, 16


class BucketSampler(ClipSampler):
    """Endless global batches, each of one bucket, over shuffled epochs.

    An epoch has ceil(n_b / G) batches of each bucket b with its n_b items, in an order drawn anew; the last batch of a
    bucket is filled up with that epoch's first items of it. So every item comes in every epoch, and rank r takes the
    r-th `batch_size` of a batch.

    Args:
        members: items of every bucket.
        others: those of `ClipSampler`.
    """

    def __init__(self, members: Sequence[Sequence[int]], batch_size: int, **others: Any) -> None:
        super().__init__(sum(len(part) for part in members), batch_size, **others)
        self.members = [np.asarray(part) for part in members if len(part)]
        counts = [-(-len(part) // self.global_batch) for part in self.members]
        self._plan = [(bucket, i) for bucket, count in enumerate(counts) for i in range(count)]
        self._made: tuple[int, np.ndarray, list[np.ndarray]] | None = None

    @property
    def epoch(self) -> int:
        return self.batch // len(self._plan)

    @property
    def position(self) -> int:
        """Batches of that epoch already used."""
        return self.batch % len(self._plan)

    def keys(self, batch: int) -> list[ClipKey]:
        epoch, number = divmod(batch, len(self._plan))
        order, items = self._orders_of(epoch)
        bucket, part = self._plan[order[number]]
        first = part * self.global_batch + self.rank * self.batch_size
        places = np.arange(first, first + self.batch_size) % len(items[bucket])
        return [ClipKey(epoch, int(item)) for item in items[bucket][places]]

    def _orders_of(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        if self._made is None or self._made[0] != epoch:
            order, items = np.arange(len(self._plan)), list(self.members)
            if self.shuffle:
                order = permutation(len(self._plan), self.seed, epoch, stream=_BATCHES)
                items = [
                    part[permutation(len(part), self.seed, epoch, stream=_ITEMS + bucket)]
                    for bucket, part in enumerate(self.members)
                ]
            self._made = epoch, order, items
        return self._made[1], self._made[2]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"buckets": [len(part) for part in self.members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = [len(part) for part in self.members]
        if state.get("buckets") != mine:
            raise SamplerStateError(
                f"the data position cannot be resumed: buckets of {state.get('buckets')} clips saved, {mine} now. "
                "Restore the cache, or start a new position"
            )
        super().load_state_dict(state)

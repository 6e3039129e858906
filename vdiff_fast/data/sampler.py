"""Which clips make up batch g on rank r, as a pure function of the seed: a run resumes exactly where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vdiff_fast.data.draw import permutation
from vdiff_fast.data.errors import SamplerStateError
from vdiff_fast.data.items import known_items


def fingerprint(items: Iterable[Any]) -> str:
    """Hex digest of what the items of a data set are, in their order; `items` are plain values for JSON."""
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:32]


class ClipKey(NamedTuple):
    """What a data set is asked for: the item and the epoch, on which its random choices depend."""

    epoch: int
    item: int


# How messages call what a saved position depends on.
_STATE_NAMES = {"fingerprint": "names and order of the items (fingerprint)"}


class ClipSampler(Sampler[list[ClipKey]]):
    """Endless batches of `ClipKey`s over shuffled epochs, without gaps between them.

    Position p of the stream is item `permutation(n, seed, p // n)[p % n]` of epoch p // n. Global batch g holds the
    positions g*G .. (g+1)*G - 1 with G = batch_size * world_size, and rank r takes the r-th `batch_size` of them. Hence
    within an epoch every item comes exactly once over all ranks, nothing is dropped, all ranks have equally many
    batches, and the whole state is one number. A run may go on with another number of ranks if G stays the same.

    `num_batches` ends the stream there (in batches from the start, not from where it resumed). The attribute
    `fingerprint` says what the items are, where the data set knows: a position is of use among the same items alone.
    """

    def __init__(
        self, num_items: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1,
        shuffle: bool = True, num_batches: int | None = None,
    ) -> None:  # fmt: skip
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"need at least one item and a batch of one, got {num_items} items, batch {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self.num_items, self.batch_size, self.seed, self.shuffle = num_items, batch_size, seed, shuffle
        self.rank, self.world_size, self.num_batches = rank, world_size, num_batches
        self.fingerprint: str | None = None
        self.batch = 0
        self._orders: dict[int, np.ndarray] = {}

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    @property
    def epoch(self) -> int:
        """Epoch of the next batch's first item."""
        return self.batch * self.global_batch // self.num_items

    @property
    def position(self) -> int:
        """Items of that epoch already used, over all ranks."""
        return self.batch * self.global_batch % self.num_items

    def keys(self, batch: int) -> list[ClipKey]:
        """This rank's part of a global batch."""
        first = batch * self.global_batch + self.rank * self.batch_size
        return [self._key(p) for p in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[list[ClipKey]]:
        """From the current batch on. Iterating alone moves nothing: whoever has used a batch calls `advance`."""
        batch = self.batch
        while self.num_batches is None or batch < self.num_batches:
            yield self.keys(batch)
            batch += 1

    def advance(self) -> None:
        """Count one batch as used."""
        self.batch += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that the order depends on, and how many batches have been used."""
        return {
            "batch": self.batch, "epoch": self.epoch, "position": self.position, "seed": self.seed,
            "num_items": self.num_items, "global_batch": self.global_batch, "shuffle": self.shuffle,
            "fingerprint": self.fingerprint,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that `state` has used.

        Errors: `SamplerStateError` naming what differs (items, seed, global batch), since then the order would differ.
        """
        mine = self.state_dict()
        fixed = ["num_items", "seed", "global_batch", "shuffle"]
        if state.get("fingerprint") is not None and self.fingerprint is not None:  # earlier versions saved none
            fixed.append("fingerprint")
        changed = [f"{_STATE_NAMES.get(key, key)}: {state.get(key)} saved, {mine[key]} now"
                   for key in fixed if state.get(key) != mine[key]]  # fmt: skip
        if changed:
            raise SamplerStateError(
                f"the data position cannot be resumed: {'; '.join(changed)}. Restore these, or start a new position"
            )
        self.batch = int(state["batch"])

    def _key(self, position: int) -> ClipKey:
        epoch, offset = divmod(position, self.num_items)
        if not self.shuffle:
            return ClipKey(epoch, offset)
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = permutation(self.num_items, self.seed, epoch)
        return ClipKey(epoch, int(self._orders[epoch][offset]))


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items: `video` uint8 (B, C, T, H, W) in (B, T, H, W, C) memory, `file` a list, the numbers int64."""
    stacked = torch.stack([item["video"].permute(1, 2, 3, 0) for item in items])
    batch: dict[str, Any] = {
        "video": stacked.permute(0, 4, 1, 2, 3),
        "file": [item["file"] for item in items],
        "index": torch.tensor([item["index"] for item in items], device="cpu"),
    }
    for name in ("label", "stride"):
        if all(name in item for item in items):
            batch[name] = torch.tensor([item[name] for item in items], device="cpu")
    return batch


def _seed_worker(worker: int) -> None:
    """Items draw from counters; this is for what a user's own data set may draw from numpy."""
    np.random.seed(torch.initial_seed() % 2**32)


class ClipLoader:
    """Batches in the sampler's order, loaded ahead by workers; the state counts batches handed out, not prefetched."""

    def __init__(self, batches: DataLoader, sampler: ClipSampler) -> None:
        self.batches, self.sampler = batches, sampler
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Go on after the last batch handed out. A batch counts as used when it is handed out."""
        batches = iter(self.batches)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - start
            if batch is None:
                return
            self.sampler.advance()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ClipSampler.load_state_dict`; takes effect at the next `iter()`."""
        self.sampler.load_state_dict(state)


def loader(
    dataset: Dataset, batch_size: int, *, seed: int = 0, rank: int | None = None, world_size: int | None = None,
    workers: int = 0, shuffle: bool = True, num_batches: int | None = None, pin_memory: bool | None = None,
    prefetch: int = 2,
) -> ClipLoader:  # fmt: skip
    """A resumable, rank-aware `DataLoader` over a map-style data set.

    A data set of your own is asked by plain numbers, and an item is a video (C, T, H, W), uint8 or floating point, a
    pair (video, label), or a dictionary with "video" and, if it likes, "label", "file" and "stride". One that sets
    `clip_keys = True` is asked by `ClipKey`s and gives this package's dictionaries, as the classes here do.

    `batch_size` is per rank; `rank` and `world_size` come from torch.distributed where it is initialised. Memory is
    pinned where there is CUDA. Batches depend on `seed` and the data set alone, not on the number of workers. A data
    set may bring methods `sampler(batch_size, **options)`, a `ClipSampler` of its own, and `collate(items)`, and a
    string `fingerprint` of what its items are; without it a resumed run knows their number alone.

    Raises:
        DatasetItemError: a data set without numbered items; while loading, an item that is none of these.
    """
    dataset = known_items(dataset)
    if rank is None or world_size is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        world_size = torch.distributed.get_world_size() if distributed else 1
    options: dict[str, Any] = {
        "seed": seed, "rank": rank, "world_size": world_size, "shuffle": shuffle, "num_batches": num_batches
    }  # fmt: skip
    make = getattr(dataset, "sampler", None)
    sampler = ClipSampler(len(dataset), batch_size, **options) if make is None else make(batch_size, **options)  # type: ignore[arg-type]
    sampler.fingerprint = getattr(dataset, "fingerprint", None)
    batches: DataLoader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, worker_init_fn=_seed_worker,
        collate_fn=getattr(dataset, "collate", collate),
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        prefetch_factor=prefetch if workers else None,
        # Its own generator: otherwise every iter() would draw from, and so disturb, the global one.
        generator=torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF),
    )  # fmt: skip
    return ClipLoader(batches, sampler)

"""Order, disjoint ranks, exact resumption: also with workers that load ahead."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from vdiff_fast.data import ClipKey, ClipSampler, ClipSpec, Draw, MovingDigits, SamplerStateError, collate, loader


class Drawn(Dataset):
    """Items that show their key and a draw from it."""

    clip_keys = True

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: ClipKey) -> dict:
        epoch, index = key
        value = Draw(0, epoch, index).integer(256)
        video = torch.full((3, 2, 4, 4), value, dtype=torch.uint8)
        return {"video": video, "file": f"{epoch}/{index}", "index": index}


def take(sampler: ClipSampler, batches: int) -> list[list[ClipKey]]:
    return list(itertools.islice(sampler, batches))


@given(
    st.integers(1, 40), st.integers(1, 7), st.sampled_from([1, 2, 3, 4]), st.booleans(), st.integers(-5, 5)
)  # fmt: skip
def test_ranks_share_every_epoch(items: int, batch: int, world: int, shuffle: bool, seed: int) -> None:
    """Over all ranks, the stream is one permutation after another: nothing twice, nothing dropped."""
    samplers = [
        ClipSampler(items, batch, seed=seed, rank=r, world_size=world, shuffle=shuffle) for r in range(world)
    ]  # fmt: skip
    count = 3 * items // (batch * world) + 1
    per_rank = [take(sampler, count) for sampler in samplers]
    stream = [key for g in range(count) for r in range(world) for key in per_rank[r][g]]
    for start in range(0, len(stream) - items + 1, items):
        epoch = stream[start : start + items]
        assert {key.epoch for key in epoch} == {start // items}
        assert sorted(key.item for key in epoch) == list(range(items))
    if not shuffle:
        assert [key.item for key in stream] == [p % items for p in range(len(stream))]


def test_epochs_and_seeds_differ() -> None:
    order = [key.item for batch in take(ClipSampler(50, 10, seed=1), 10) for key in batch]
    assert order[:50] != order[50:]
    other = [key.item for batch in take(ClipSampler(50, 10, seed=2), 10) for key in batch]
    assert order != other
    assert order != list(range(50)) * 2


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 40))
def test_resume_anywhere(items: int, batch: int, done: int) -> None:
    whole = take(ClipSampler(items, batch, seed=7), done + 5)
    first = ClipSampler(items, batch, seed=7)
    for _ in take(first, done):
        first.advance()
    state = json.loads(json.dumps(first.state_dict()))
    assert state["epoch"] * items + state["position"] == done * batch
    resumed = ClipSampler(items, batch, seed=7)
    resumed.load_state_dict(state)
    assert take(resumed, 5) == whole[done:]


def test_resume_on_other_ranks() -> None:
    """Two ranks of 3 go on as three ranks of 2: the global batches stay."""
    two = [ClipSampler(20, 3, seed=1, rank=r, world_size=2) for r in range(2)]
    for sampler in two:
        sampler.batch = 4
    three = [ClipSampler(20, 2, seed=1, rank=r, world_size=3) for r in range(3)]
    for sampler in three:
        sampler.load_state_dict(two[0].state_dict())
    by_two, by_three = ([key for s in samplers for key in take(s, 1)[0]] for samplers in (two, three))
    assert by_two == by_three


def test_resuming_with_other_data_is_refused() -> None:
    state = ClipSampler(20, 4, seed=1).state_dict()
    with pytest.raises(SamplerStateError, match="num_items: 20 saved, 21 now; seed: 1 saved, 2 now"):
        ClipSampler(21, 4, seed=2).load_state_dict(state)
    with pytest.raises(SamplerStateError, match="global_batch: 4 saved, 8 now"):
        ClipSampler(20, 4, seed=1, rank=1, world_size=2).load_state_dict(state)


def test_iterating_alone_moves_nothing() -> None:
    sampler = ClipSampler(10, 2)
    assert take(sampler, 3) == take(sampler, 3)
    assert sampler.state_dict()["batch"] == 0


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0)])
def test_nothing_to_sample(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one item and a batch of one"):
        ClipSampler(*arguments)


def test_rank_outside_the_world() -> None:
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        ClipSampler(4, 1, rank=2, world_size=2)


def fingerprint(batch: dict) -> tuple:
    return tuple(batch["file"]), batch["video"].clone()


def same(a: list[tuple], b: list[tuple]) -> bool:
    return len(a) == len(b) and all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_resumes_bit_for_bit_in_the_middle_of_an_epoch(workers: int) -> None:
    """Workers run ahead of what was handed out; the state counts what was handed out."""
    data = Drawn(11)
    whole = [fingerprint(b) for b in itertools.islice(loader(data, 3, seed=4), 12)]
    first = loader(data, 3, seed=4, workers=workers)
    taken = []
    for batch in first:
        taken.append(fingerprint(batch))
        if len(taken) == 5:
            state = first.state_dict()
            break
    assert same(taken, whole[:5])
    assert (state["epoch"], state["position"]) == (1, 4)
    resumed = loader(data, 3, seed=4, workers=workers, num_batches=12)
    resumed.load_state_dict(state)
    assert same([fingerprint(b) for b in resumed], whole[5:])
    assert resumed.wait_seconds > 0


def test_workers_change_nothing_and_global_random_state_is_left_alone() -> None:
    data = MovingDigits(ClipSpec(frames=3, size=(16, 16)), length=9)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = [fingerprint(b) for b in loader(data, 2, num_batches=6)]
    apart = [fingerprint(b) for b in loader(data, 2, num_batches=6, workers=2)]
    assert same(alone, apart)
    assert torch.equal(torch.get_rng_state(), before)


def test_collate_is_channels_last_without_a_copy() -> None:
    items = [
        {"video": torch.full((2, 3, 4, 5), i, dtype=torch.uint8), "file": str(i), "index": i, "label": 10 + i}
        for i in range(3)
    ]
    batch = collate(items)
    assert batch["video"].shape == (3, 2, 3, 4, 5)
    assert batch["video"].is_contiguous(memory_format=torch.channels_last_3d)
    assert batch["video"][:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch["label"].tolist() == [10, 11, 12]
    assert batch["file"] == ["0", "1", "2"]
    del items[1]["label"]
    assert "label" not in collate(items)

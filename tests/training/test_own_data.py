"""A data set of one's own trains in each form that an item may have, or says at once what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from vdiff_fast import data
from vdiff_fast.training import Trainer, load_run
from vdiff_fast.training import config as configuration
from vdiff_fast.training.generate import draw_samples

PIXELS = torch.arange(3 * 2 * 8 * 8, dtype=torch.int32).remainder(256).to(torch.uint8).reshape(3, 2, 8, 8)
LATENTS = 3 * torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Own(Dataset):
    """Six times one item; asked by numbers only, as a list would be."""

    def __init__(self, item: Any, num_classes: int | None = None) -> None:
        self.items, self.num_classes = [item] * 6, num_classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield PIXELS


def train(dataset: Any, run: Path, **changes: Any) -> Trainer:
    values = {
        "data.source": "own", "data.frames": 2, "data.size": 8, "model.name": "dit-tiny", "batch_size": 2, "steps": 1,
        "model.changes": {"depth": 2, "width": 32, "heads": 2}, "sample.every": 0, "log.plot_every": 0,
        "runtime.precision": "fp32",
    }  # fmt: skip
    trainer = Trainer(configuration.load_config(None, values | changes), run, dataset=dataset, show_progress=False)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "item",
    [PIXELS, PIXELS.numpy(), data.to_unit_range(PIXELS), (PIXELS, 1), [PIXELS, torch.tensor(1)], {"video": PIXELS}],
    ids=["tensor", "array", "float", "pair", "list", "dictionary"],
)
def test_an_item_may_be(item: Any, workers: int, tmp_path: Path) -> None:
    assert train(Own(item), tmp_path, **{"data.workers": workers}).step == 1


def test_labels_of_a_pair_reach_the_model(tmp_path: Path) -> None:
    trainer = train(Own((PIXELS, np.int64(2)), num_classes=3), tmp_path, **{"data.labels": True})
    assert trainer.num_classes == 3
    assert load_run(tmp_path, device="cpu").num_classes == 3


@pytest.mark.parametrize(
    ("dataset", "changes", "message"),
    [
        (Own("clip.mp4"), {}, "item 0 of the data set is a str; an item is a video"),
        (Own({"frames": PIXELS}), {}, "has the keys 'frames'; an item is"),
        (Own(PIXELS[0]), {}, r"of shape \(2, 8, 8\); it must be a tensor \(C, T, H, W\)"),
        (Own(PIXELS.int()), {}, "dtype is torch.int32; it must be uint8"),
        (Own((PIXELS, 0.5)), {}, "the label is a float; it must be a whole number"),
        (Own(PIXELS[:, :1]), {}, "has 1 frames of 8x8; the configuration says data.frames 2 and data.size 8x8"),
        (Own(LATENTS), {}, "has 4 channels and the model takes 3"),
        (Own(PIXELS, num_classes=3), {"data.labels": True}, "item 0 of the data set has no label"),
        (Own((PIXELS, 3), num_classes=3), {"data.labels": True}, "label 3 is not among the 3 classes"),
        (Endless(), {}, "Endless gives its items in an order of its own"),
    ],
)
def test_an_item_that_cannot_be_says_so(dataset: Any, changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(data.DatasetItemError, match=message):
        train(dataset, tmp_path, **changes)


def test_labels_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this data has no classes"):
        train(Own((PIXELS, 1)), tmp_path, **{"data.labels": True})


def latent_changes(**more: Any) -> dict[str, Any]:
    network = {"depth": 2, "width": 32, "heads": 2, "in_channels": 4, "out_channels": 4}
    return {"model.changes": network, **more}


def test_latents_train_and_are_drawn_without_a_cut(tmp_path: Path) -> None:
    with pytest.raises(data.ValueRangeError, match=r"set data\.values to any"):
        train(Own(LATENTS), tmp_path / "pixels", **latent_changes())
    train(Own(LATENTS), tmp_path / "any", **latent_changes(**{"data.values": "any"}))
    run = load_run(tmp_path / "any", device="cpu")
    for parameter in run.model.parameters():  # a step of training leaves it near zero
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    drawn = draw_samples(run.model, run.schedule, run.config, 1, steps=2)
    assert drawn.shape == (1, 4, 2, 8, 8)
    assert float(drawn.abs().max()) > 1


def test_latents_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(data.ValueRangeError, match="must be finite"):
        train(Own(LATENTS / 0), tmp_path, **latent_changes(**{"data.values": "any"}))

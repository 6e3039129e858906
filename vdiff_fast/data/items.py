"""A user's own data set, as the loader wants it: what its items may be, and one clear error for what they may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from vdiff_fast.data.errors import DatasetItemError

_FORMS = (
    'an item is a video (C, T, H, W), a pair (video, label), or a dictionary with "video" and, if it likes, "label", '
    '"file" and "stride"'
)


def as_item(given: Any, index: int) -> dict[str, Any]:
    """An item as this package's dictionary: `video` (C, T, H, W), `file`, `index`, and `label` where there is one.

    Args:
        given: what the data set gave: a tensor or array, a pair (video, label), or a dictionary with "video".
        index: its number, which names an item that has no "file".

    Raises:
        DatasetItemError: it is nothing of these.
    """
    where = f"item {index} of the data set"
    if isinstance(given, (torch.Tensor, np.ndarray)):
        item: dict[str, Any] = {"video": given}
    elif isinstance(given, Mapping):
        item = dict(given)
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        item = {"video": given[0], "label": given[1]}
    else:
        raise DatasetItemError(f"{where} is {_described(given)}; {_FORMS}")
    if "video" not in item:
        raise DatasetItemError(f"{where} has the keys {', '.join(map(repr, item)) or 'none'}; {_FORMS}")
    item["video"] = _video(item["video"], where)
    item.setdefault("file", f"item {index}")
    item["index"] = index
    if "label" in item:
        item["label"] = _number(item["label"], where)
    return item


def _video(video: Any, where: str) -> torch.Tensor:
    if isinstance(video, np.ndarray):
        video = torch.from_numpy(video)
    if not isinstance(video, torch.Tensor) or video.dim() != 4:
        raise DatasetItemError(f"{where}: the video is {_described(video)}; it must be a tensor (C, T, H, W)")
    if not (video.dtype == torch.uint8 or video.is_floating_point()):
        raise DatasetItemError(
            f"{where}: the video's dtype is {video.dtype}; it must be uint8, or floating point in [-1, 1]"
        )
    return video


def _number(label: Any, where: str) -> int:
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if isinstance(label, torch.Tensor) and label.numel() == 1 and not label.is_floating_point():
        return int(label)
    if not whole:
        raise DatasetItemError(f"{where}: the label is {_described(label)}; it must be a whole number from 0 on")
    return int(label)


def _described(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"of shape {tuple(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


class OwnItems(Dataset):
    """A data set of another's making: it is asked by plain numbers, and its items are made this package's.

    Raises:
        DatasetItemError: it cannot be asked for items by number, so that a run on it could not be resumed.
    """

    clip_keys = True

    def __init__(self, dataset: Any) -> None:
        lacking = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
        if isinstance(dataset, IterableDataset) or lacking:
            kind = type(dataset).__name__
            raise DatasetItemError(
                f"{kind} gives its items in an order of its own; training shuffles by number and resumes by number, so "
                "it needs a data set with __len__ and __getitem__ (of a stream: write its clips into a folder)"
            )
        self.dataset = dataset
        # Labels of one's own are counted by the data set itself.
        self.num_classes = getattr(dataset, "num_classes", None)
        self.classes = getattr(dataset, "classes", None)
        self.fingerprint = getattr(dataset, "fingerprint", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else range(len(self))[key]
        return as_item(self.dataset[index], index)


def known_items(dataset: Any) -> Any:
    """The data set itself where it takes `ClipKey`s and gives this package's dictionaries, else wrapped."""
    return dataset if getattr(dataset, "clip_keys", False) else OwnItems(dataset)

"""Class labels: what each number is called, and whether a data set fits the run that it is given to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vdiff_fast.data import DatasetItemError

if TYPE_CHECKING:
    from vdiff_fast.training.config import TrainConfig


def classes_of(dataset: Any) -> tuple[int, list[str] | None]:
    """Number of classes and, where the data set tells, their names in the order of their numbers.

    Raises:
        ValueError: the data set has no labels.
    """
    count = getattr(dataset, "num_classes", None)
    if count is None:
        raise ValueError(
            "data.labels: this data has no classes; a folder has one for each folder of videos below it, and a data "
            "set of your own says how many in its attribute num_classes"
        )
    names = getattr(dataset, "classes", None)
    return int(count), None if names is None else [str(name) for name in names]


def changed_classes(saved: Sequence[str] | None, now: Sequence[str] | None) -> str:
    """What differs between the classes of a run and those of its data now; empty where nothing does."""
    if saved is None or now is None or list(saved) == list(now):
        return ""
    if len(saved) != len(now):
        gone, new = [n for n in saved if n not in now], [n for n in now if n not in saved]
        parts = [f"{what} {', '.join(map(repr, names))}" for what, names in (("gone:", gone), ("new:", new)) if names]
        return f"{len(saved)} then, {len(now)} now ({'; '.join(parts)})"
    moved = [f"{i} was {a!r} and is {b!r}" for i, (a, b) in enumerate(zip(saved, now)) if a != b]
    more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
    return ", ".join(moved[:3]) + more


def label_number(text: str, num_classes: int | None, classes: Sequence[str] | None) -> int:
    """The number of a class that is given by its name or number; a name counts before a number.

    Raises:
        ValueError: the run has no labels, or none that is called so.
    """
    if num_classes is None:
        raise ValueError("--label: this run was trained without labels")
    if classes is not None and text in classes:
        return list(classes).index(text)
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    known = f"labels 0 to {num_classes - 1}"
    if classes is not None:
        named = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:20]))
        known = f"{named}{', ...' if len(classes) > 20 else ''}"
    raise ValueError(f"--label {text}: this run knows {known}")


def check_first_item(dataset: Any, config: TrainConfig) -> None:
    """Ask for one item before anything is built, so that data that do not fit say so at once.

    Raises:
        DatasetItemError: the video has another shape than the configuration says, or lacks a label that is wanted.
    """
    item = dataset[0]
    size = config.data.size
    height, width = (size, size) if isinstance(size, int) else size
    wanted, found = (config.data.frames, height, width), tuple(item["video"].shape[1:])
    if found != wanted:
        raise DatasetItemError(
            f"item 0 of the data set has {found[0]} frames of {found[1]}x{found[2]}; the configuration says "
            f"data.frames {wanted[0]} and data.size {wanted[1]}x{wanted[2]}"
        )
    channels = config.model.changes.get("in_channels", config.data.channels)
    if len(item["video"]) != channels:
        raise DatasetItemError(
            f"item 0 of the data set has {len(item['video'])} channels and the model takes {channels}; set "
            "data.channels (1 or 3), or model.changes.in_channels and out_channels for others"
        )
    if config.data.labels and "label" not in item:
        raise DatasetItemError("data.labels: item 0 of the data set has no label; give pairs (video, label)")

"""A cache of latents as a data set: moments, embeddings and captions of clips."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from vdiff_fast.data.sampler import fingerprint
from vdiff_fast.latents.buckets import Bucket
from vdiff_fast.latents.info import CacheError, LatentInfo, read_header
from vdiff_fast.latents.sampler import BucketSampler

# The one entry of a shard's metadata: safetensors writes several in no fixed order, and shards are equal to the bit.
METADATA = "vdiff_fast"
NULL = "null.safetensors"


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:06d}.safetensors"


def read_shard(path: Path) -> dict[str, Any]:
    """{"items": [...], "skipped": [...]} of a shard.

    Raises:
        CacheError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[METADATA])
    except Exception as error:
        raise CacheError(f"{path}: cannot be read ({error}); remove it and run vdiff-fast cache again") from error


class LatentDataset(Dataset):
    """Items of `vdiff-fast cache`: `mean` and `logvar` (c, t, h, w), `context` (n, D), `caption`, `file`, `index`.

    Args:
        folder: the cache.

    Raises:
        CacheError: no cache, an unfinished one, or one without a clip.
    """

    clip_keys = True
    num_classes = None

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        header = read_header(self.folder)
        self.info = LatentInfo.from_dict(header["info"])
        paths = [shard_path(self.folder, number) for number in range(header["shards"])]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise CacheError(
                f"{folder}: {len(missing)} of {len(paths)} shards are not written yet ({missing[0]}, ...); run the "
                "same vdiff-fast cache again, it goes on where it stopped"
            )
        self.items: list[dict[str, Any]] = []
        for path in paths:
            self.items += [{**item, "shard": path.name, "at": at} for at, item in enumerate(read_shard(path)["items"])]
        if not self.items:
            raise CacheError(f"{folder}: every clip was skipped, the cache is empty")
        # What an index stands for: clips that are skipped, or cached anew from other files, give another.
        self.fingerprint = fingerprint([item["file"], item["hash"], item["caption"]] for item in self.items)
        self._files: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        # Workers open files of their own.
        return {**self.__dict__, "_files": {}}

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(self.folder / name, "pt")
        return self._files[name]

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else range(len(self))[key]
        item = self.items[index]
        file, at = self._file(item["shard"]), item["at"]
        tensors = {name: file.get_tensor(f"{at}.{name}") for name in ("mean", "logvar", "context")}
        return {**tensors, "caption": item["caption"], "file": item["file"], "index": index}

    def null_context(self) -> tuple[Tensor, Tensor]:
        """Embeddings (1, L, D) and mask (1, L) of the empty prompt."""
        with safe_open(self.folder / NULL, "pt") as file:
            return padded([file.get_tensor("context")], self.info.text_length)

    def sampler(self, batch_size: int, **others: Any) -> BucketSampler:
        """Batches of one bucket each."""
        of_bucket: dict[Bucket, list[int]] = {bucket: [] for bucket in self.info.buckets}
        for index, item in enumerate(self.items):
            of_bucket[Bucket(*item["bucket"])].append(index)
        return BucketSampler(list(of_bucket.values()), batch_size, **others)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stacked moments, embeddings padded to the encoder's length with their mask, lists of the rest."""
        context, mask = padded([item["context"] for item in items], self.info.text_length)
        return {
            "mean": torch.stack([item["mean"] for item in items]),
            "logvar": torch.stack([item["logvar"] for item in items]),
            "context": context,
            "context_mask": mask,
            "caption": [item["caption"] for item in items],
            "file": [item["file"] for item in items],
            "index": torch.tensor([item["index"] for item in items], device="cpu"),
        }


def padded(contexts: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """(B, length, D) with zeros after each sample's tokens, and the mask (B, length)."""
    together = contexts[0].new_zeros(len(contexts), length, contexts[0].shape[-1])
    mask = torch.zeros(len(contexts), length, dtype=torch.bool)
    for row, (context, seen) in enumerate(zip(contexts, mask)):
        together[row, : len(context)] = context
        seen[: len(context)] = True
    return together, mask

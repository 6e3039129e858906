"""Checkpoints in parts: each rank writes its shards, and any number of ranks reads what it needs of them.

RUN/checkpoints/step_00001000/
    shards/*.safetensors   weights, averages and the optimizer's moments, by torch.distributed.checkpoint
    state.json, config.yaml, checksums.json

Tensors are named model.NAME, ema.NAME and optimizer.KEY.NAME by the model's own names, so the files know nothing of the
strategy that wrote them. safetensors instead of torch's own format, whose index is a pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from vdiff_fast.models.weights import own_names, tied_names
from vdiff_fast.training.ema import Ema

SHARDS = "shards"


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is one in parts."""
    return (path / SHARDS).is_dir()


def tensors_of(model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that is trained, under the names of the files: the tensors themselves, this rank's part of each.

    Numbers are stored as vectors of one. An optimizer that has not stepped yet gets its state.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    plain, tied = own_names(model), tied_names(model)
    found = {f"model.{plain[name]}": value for name, value in model.state_dict().items() if name not in tied}
    found |= {f"ema.{name}": value for name, value in ema.averages().items()}
    moments: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer)["state"])  # type: ignore[arg-type]
    for name, values in moments.items():
        found |= {f"optimizer.{key}.{name}": value for key, value in values.items()}
    return {name: value.view(1) if value.dim() == 0 else value for name, value in found.items()}


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Each rank writes its part; every rank must call it.

    Raises:
        OSError: on every rank, if the disk refuses any of them.
    """
    # safetensors stores contiguous tensors; sharded ones are.
    whole = {n: v if hasattr(v, "full_tensor") else v.detach().contiguous() for n, v in tensors.items()}
    try:
        with _quiet():
            dcp.save(whole, storage_writer=dcp.HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True))
    except dcp.api.CheckpointException as error:
        raise _cause(error) from error


def read(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, or this rank's parts of them, with what the files hold; every rank must call it.

    Raises:
        ValueError, RuntimeError: a tensor is missing or has another shape; of several ranks, what the first one met.
    """
    try:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=dcp.HuggingFaceStorageReader(str(folder / SHARDS)))
    except dcp.api.CheckpointException as error:
        raise _cause(error) from error


def _cause(error: dcp.api.CheckpointException) -> BaseException:
    """The error of the first rank that failed: torch's own is no `Exception` and would pass every handler."""
    return next(cause for _, (cause, _) in sorted(error.failures.items()))


def read_whole(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it, whole and on the CPU; for one process alone."""
    reader = dcp.HuggingFaceStorageReader(str(folder / SHARDS))
    metadata: dict[str, Any] = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if name.startswith(prefix)
    }
    with _quiet():
        dcp.load(dict(found), storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in found.items()}


def averaged(folder: Path) -> dict[str, Tensor]:
    """Averaged weights and the model's buffers, whole: they load into the model as they are."""
    return read_whole(folder, "model.") | read_whole(folder, "ema.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that there is one process only, which is no mistake here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load).*")
        yield

"""Checkpoints that are whole or absent: written beside, flushed to the disk, renamed.

RUN/checkpoints/step_00001000/
    model.safetensors   weights and buffers
    ema.safetensors     averaged weights; load into the model as they are
    optimizer.pt        optimizer and gradient scaler
    state.json          step, seed, data position, versions
    config.yaml         the configuration
RUN/checkpoints/latest  the name of the newest
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vdiff_fast._files import WRITING, save_pickle, save_safetensors, whole_folder, write_text
from vdiff_fast.models.weights import own_names, tied_names, weights_like
from vdiff_fast.training.distributed import full, shard_like

_PREFIX, _LATEST = "step_", "latest"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds. `optimizer` has the keys "optimizer" and "scaler"; `state` is plain JSON."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    config_yaml: str

    @property
    def step(self) -> int:
        return int(self.state["step"])


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A tensor of several names is stored once; `metadata` has the others, as in `safetensors.torch.save_model`."""
    first: dict[Any, str] = {}
    separate, others = {}, {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and first.setdefault(place, name) != name:
            others[name] = first[place]
            continue
        tensor = tensor.detach().cpu().contiguous()
        # Another view of the same memory becomes a tensor of its own, as safetensors wants it.
        separate[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_safetensors(path, separate, others)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """The inverse of `_save_tensors`: the names of one tensor share it."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        others = file.metadata() or {}
    return tensors | {name: tensors[first] for name, first in others.items() if first in tensors}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `folder`/step_..., point `latest` at it, and remove all but the newest `keep`.

    A process killed at any moment leaves the checkpoints from before whole, and `latest` at one of them.

    Raises:
        OSError: the disk is full; it names the file, and what was written of this checkpoint is removed.
    """
    final = folder / f"{_PREFIX}{checkpoint.step:08d}"
    # A run that went on from an older checkpoint reaches this step again and replaces the folder.
    with whole_folder(final) as writing:
        _save_tensors(writing / "model.safetensors", checkpoint.model)
        _save_tensors(writing / "ema.safetensors", checkpoint.ema)
        save_pickle(writing / "optimizer.pt", checkpoint.optimizer)
        write_text(writing / "state.json", json.dumps(checkpoint.state, indent=1) + "\n")
        write_text(writing / "config.yaml", checkpoint.config_yaml)
    write_text(folder / _LATEST, final.name + "\n")
    _prune(folder, keep)
    return final


def _prune(folder: Path, keep: int) -> None:
    current = latest_checkpoint(folder)
    for path in checkpoints(folder)[:-keep]:
        if path != current:
            shutil.rmtree(path)
    for leftover in folder.glob(f"{WRITING}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint `latest` names, else the newest whole one, else None."""
    try:
        named = folder / (folder / _LATEST).read_text().strip()
        if named.name.startswith(_PREFIX) and named.is_dir():
            return named
    except OSError:
        pass
    whole = checkpoints(folder)
    return whole[-1] if whole else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: a file of it is missing or cannot be read.
    """
    try:
        return Checkpoint(
            model=_load_tensors(path / "model.safetensors"),
            ema=_load_tensors(path / "ema.safetensors"),
            optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            state=json.loads((path / "state.json").read_text()),
            config_yaml=(path / "config.yaml").read_text(),
        )
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove it to use the one before") from error


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """A model's whole tensors under its own names, whichever of its parts are compiled or wrapped; for every rank."""
    plain = own_names(model)
    return full({plain[name]: value for name, value in model.state_dict().items()})


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights by name, whichever parts of the model are or were compiled or wrapped.

    Tied parameters take the tensor of their first name: files of earlier versions hold others, not averaged, under the
    second.

    Raises:
        CheckpointError: names or shapes differ; the first few are named.
    """
    state, plain = model.state_dict(), own_names(model)
    current = {plain[name]: value for name, value in state.items()}
    weights = weights_like(weights, current)
    for name, first in tied_names(model).items():
        if plain.get(first) in weights:
            weights[plain[name]] = weights[plain[first]]
    mine = {name: tuple(value.shape) for name, value in current.items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing:
        shown = "; ".join(f"{n}: {theirs.get(n, 'absent')} saved, {mine.get(n, 'absent')} now" for n in differing[:3])
        raise CheckpointError(f"{path}: {len(differing)} of {len(mine)} tensors do not fit this model: {shown}")
    model.load_state_dict({name: shard_like(weights[plain[name]], value) for name, value in state.items()})

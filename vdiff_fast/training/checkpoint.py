"""Checkpoints that are whole or absent: written beside, flushed to the disk, renamed.

RUN/checkpoints/step_00001000/
    model.safetensors   weights and buffers
    ema.safetensors     averaged weights; load into the model as they are
    optimizer.pt        optimizer and gradient scaler
    state.json          step, seed, data position, versions
    config.yaml         the configuration
    checksums.json      SHA-256 of each of these
RUN/checkpoints/latest  the name of the newest

Of a sharded model `shards/` is in the place of the first three files, see `vdiff_fast.training.sharded`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vdiff_fast._files import WRITING, save_pickle, save_safetensors, whole_folder, write_text
from vdiff_fast.models.weights import own_names, tied_names, weights_like
from vdiff_fast.training import sharded
from vdiff_fast.training.distributed import barrier, full, gather, load_optimizer_state, rank, shard_like, world_size
from vdiff_fast.training.ema import Ema

_PREFIX, _LATEST, _CHECKSUMS = "step_", "latest", "checksums.json"
_SMALL = ("state.json", "config.yaml")


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
    final = folder_of(folder, checkpoint.step)
    with whole_folder(final) as writing:
        _save_tensors(writing / "model.safetensors", checkpoint.model)
        _save_tensors(writing / "ema.safetensors", checkpoint.ema)
        save_pickle(writing / "optimizer.pt", checkpoint.optimizer)
        _finish(writing, checkpoint.state, checkpoint.config_yaml, checksums_of(writing))
    _point_to(final, keep)
    return final


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies; a run that reaches a step again replaces it."""
    return folder / f"{_PREFIX}{step:08d}"


def save_sharded(
    folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], config_yaml: str, *, keep: int
) -> None:  # fmt: skip
    """As `save_checkpoint`, each rank its part of the tensors; every rank must call it.

    Args:
        folder: on a disk that all ranks share.
        tensors: see `sharded.tensors_of`.
    """
    final = folder_of(folder, int(state["step"]))
    with ExitStack() as stack:
        if rank() == 0:
            stack.enter_context(whole_folder(final))
        barrier()
        writing = final.with_name(f"{WRITING}{final.name}")
        sharded.write(writing, tensors)
        parts = gather(checksums_of(writing, every=world_size(), first=rank()))
        if rank() == 0:
            _finish(writing, state, config_yaml, {name: value for part in parts for name, value in part.items()})
    if rank() == 0:
        _point_to(final, keep)
    barrier()


def _finish(writing: Path, state: dict[str, Any], config_yaml: str, checksums: dict[str, str]) -> None:
    """The small files, and last the checksums of all."""
    write_text(writing / "state.json", json.dumps(state, indent=1) + "\n")
    write_text(writing / "config.yaml", config_yaml)
    for name in _SMALL:
        checksums[name] = _checksum(writing / name)
    write_text(writing / _CHECKSUMS, json.dumps(checksums, indent=1) + "\n")


def _point_to(final: Path, keep: int) -> None:
    write_text(final.parent / _LATEST, final.name + "\n")
    _prune(final.parent, keep)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums_of(path: Path, *, every: int = 1, first: int = 0) -> dict[str, str]:
    """{file: SHA-256} of the files below a checkpoint; of several ranks each takes its share of them."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): _checksum(file) for file in files[first::every]}


def damage(path: Path, *, every: int = 1, first: int = 0) -> str | None:
    """What is wrong with a checkpoint's files, None where they are whole; of several ranks each reads its share.

    Checkpoints of earlier versions have no checksums and are taken as whole.
    """
    if not (path / _CHECKSUMS).is_file():
        return None
    try:
        noted = json.loads((path / _CHECKSUMS).read_text())
        problems = (_damaged(path / name, noted[name]) for name in sorted(noted)[first::every])
        return next(filter(None, problems), None)
    except (OSError, ValueError) as error:
        return f"{path / _CHECKSUMS} cannot be read ({error})"


def _damaged(path: Path, checksum: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    return None if _checksum(path) == checksum else f"{path} is not what was written (its checksum differs)"


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are whole, None without any; every rank must call it.

    Raises:
        CheckpointError: there are some, and all are damaged; it names the newest one's file.
    """
    newest = latest_checkpoint(folder)
    if newest is None:
        return None
    damages: dict[Path, str] = {}
    for path in [newest, *(p for p in reversed(checkpoints(folder)) if p < newest)]:
        found = gather(damage(path, every=world_size(), first=rank()))
        problem = next(filter(None, found), None)
        if problem is None:
            if damages and rank() == 0:
                warnings.warn(f"{next(iter(damages.values()))}; going on from {path.name}", stacklevel=2)
            return path
        damages[path] = problem
    raise CheckpointError(f"{damages[newest]}, and there is no whole checkpoint before it")


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


def described(folder: Path) -> tuple[str, dict[str, Any]]:
    """(configuration, state) of the newest checkpoint that has both whole; for any rank, before they are connected.

    Raises:
        CheckpointError: there are checkpoints, and none has both.
    """
    for path in reversed(checkpoints(folder)):
        try:
            noted = json.loads((path / _CHECKSUMS).read_text()) if (path / _CHECKSUMS).is_file() else {}
            if not any(_damaged(path / name, noted[name]) for name in _SMALL if name in noted):
                return (path / "config.yaml").read_text(), state_of(path)
        except (OSError, ValueError):
            continue
    raise CheckpointError(f"{folder}: no checkpoint has a whole config.yaml and state.json")


def state_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, whole tensors by the model's own names, whoever wrote it.

    Of a sharded one `optimizer` is empty: `Trainer` reads every rank's part of it.

    Raises:
        CheckpointError: a file of it is missing, cannot be read, or is not what was written.
    """
    if problem := damage(path):
        raise CheckpointError(f"{problem}; remove {path} to use the one before")
    try:
        in_parts = sharded.is_sharded(path)
        return Checkpoint(
            model=sharded.read_whole(path, "model.") if in_parts else _load_tensors(path / "model.safetensors"),
            ema=sharded.averaged(path) if in_parts else _load_tensors(path / "ema.safetensors"),
            optimizer={} if in_parts else torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            state=state_of(path),
            config_yaml=(path / "config.yaml").read_text(),
        )
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove it to use the one before") from error


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's whole tensors under its own names, whichever of its parts are compiled or wrapped; for every rank."""
    plain = own_names(model)
    return full({plain[name]: value for name, value in model.state_dict().items()})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
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


def restore(
    path: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:  # fmt: skip
    """Fill what is trained from a checkpoint of any strategy and number of ranks; every rank must call it.

    Raises:
        CheckpointError: it cannot be read, or belongs to another model.
    """
    if not sharded.is_sharded(path):
        saved = load_checkpoint(path)
        load_weights(model, saved.model, path)
        ema.load_state_dict(saved.ema)
        load_optimizer_state(model, optimizer, saved.optimizer["optimizer"])
        if saved.optimizer["scaler"]:
            scaler.load_state_dict(saved.optimizer["scaler"])
        return
    try:
        sharded.read(path, sharded.tensors_of(model, ema, optimizer))
    except Exception as error:
        raise CheckpointError(f"{path}: does not fit this model ({error})") from error

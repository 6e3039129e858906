"""One process or many: torchrun, DistributedDataParallel or fully_shard, and what ranks tell each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vdiff_fast.models.weights import layers_of, plain_module
from vdiff_fast.training.sharding import mesh_for, shard

if TYPE_CHECKING:
    from vdiff_fast.training.config import RuntimeConfig


def start(device: torch.device) -> bool:
    """Join torchrun's process group (nccl for CUDA, gloo else) unless it is joined; True if this call did."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2 or dist.is_initialized():
        return False
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is a device, else the CPU; each rank of a node takes its own device.

    Raises:
        ValueError: the name is no device, or a CUDA device was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r}: there is no such kind; give auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r}: this machine has no usable CUDA device; use --device cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def wrap(given: nn.Module, runtime: RuntimeConfig, device: torch.device, compiled: bool = False) -> nn.Module:
    """The module to call in training; parameters stay those of `plain_module(given)`, which is on the device.

    What is compiled, parallel or sharded already stays so. A sharded model is compiled unit by unit.

    Args:
        given: the model, wrapped or not.
        runtime: how several ranks share it.
        device: where it is.
        compiled: compile it.

    Raises:
        TypeError: it is wrapped in FSDP's first version, whose parameters are not the model's.
        ValueError: groups to shard over that do not divide the ranks.
    """
    model = plain_module(given)
    if any(type(part).__name__ == "FullyShardedDataParallel" for part in model.modules()):
        raise TypeError(
            "the model is wrapped in FullyShardedDataParallel; give the plain one, which runtime.strategy fsdp shards"
        )
    layers = layers_of(given)
    was_compiled = any(hasattr(layer, "_orig_mod") for layer in layers)
    if world_size() == 1 or _parallel(given) is not None or is_sharded(model):
        return torch.compile(given) if compiled and not was_compiled else given  # type: ignore[return-value]
    compiled = compiled or was_compiled
    if runtime.strategy == "ddp":
        ids = [device.index] if device.type == "cuda" else None
        shared = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        return torch.compile(shared) if compiled else shared  # type: ignore[return-value]
    mesh = mesh_for(runtime.strategy, device, runtime.shard_ranks)
    shard(model, mesh, compiled=compiled, reshard_after_forward=runtime.reshard_after_forward)
    return model


def _parallel(module: nn.Module) -> DistributedDataParallel | None:
    return next((layer for layer in layers_of(module) if isinstance(layer, DistributedDataParallel)), None)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 holds its parameters in parts."""
    # DTensor is not imported where nothing is sharded.
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def accumulating(wrapped: nn.Module, more: bool) -> AbstractContextManager[Any]:
    """Inside the block, gradients are exchanged only if no more micro-steps follow."""
    parallel = _parallel(wrapped)
    if parallel is not None:
        return parallel.no_sync() if more else nullcontext()
    exchange = getattr(plain_module(wrapped), "set_requires_gradient_sync", None)
    if exchange is not None:
        exchange(not more)
    return nullcontext()


def mean(values: Tensor) -> Tensor:
    """Average over ranks, in place; a NaN of one rank is seen by all."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= world_size()
    return values


def gather(value: Any) -> list[Any]:
    """A picklable object of every rank, in order of rank."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from sharded ones, one for all names of the same; every rank must call it."""
    whole: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in whole:
            whole[id(tensor)] = _full(tensor)
    return {name: whole[id(tensor)] for name, tensor in tensors.items()}


def _full(tensor: Tensor) -> Tensor:
    # DTensor is not imported where nothing is sharded.
    return getattr(tensor, "full_tensor", lambda: tensor)()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory; any other tensor as it is."""
    return getattr(tensor, "to_local", lambda: tensor)()


def shard_like(whole: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor as this rank's part, if `reference` is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(reference, DTensor):
        return whole
    return distribute_tensor(whole.to(reference.device), reference.device_mesh, reference.placements)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, whole and on the CPU whatever the sharding; every rank must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(model, optimizer, options=options))


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `optimizer_state`, for what was accumulated: rates and betas stay those of the configuration."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
    for group, values in zip(optimizer.param_groups, configured):
        group.update(values)

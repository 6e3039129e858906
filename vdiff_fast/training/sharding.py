"""FSDP2 for a network: which modules are units, over which mesh, in which order they are gathered."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# How many units are gathered while another computes.
_AHEAD = 1


def mesh_for(strategy: Literal["fsdp", "hybrid"], device: torch.device, shard_ranks: int | None = None) -> DeviceMesh:
    """One dimension of all ranks to shard over; of hybrid (replicate, shard), with `shard_ranks` in the second.

    Args:
        strategy: "fsdp" shards over every rank, "hybrid" within groups of neighbours, which are replicas of each other.
        device: where the model is.
        shard_ranks: ranks of a group; those of a node, as torchrun tells them, if left out.

    Raises:
        ValueError: the number of ranks is no multiple of `shard_ranks`.
    """
    ranks = dist.get_world_size()
    if strategy == "fsdp":
        return dist.init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    size = int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) if shard_ranks is None else shard_ranks
    if size < 1 or ranks % size:
        raise ValueError(f"runtime.shard_ranks {size}: must divide the number of ranks, {ranks}")
    return dist.init_device_mesh(device.type, (ranks // size, size), mesh_dim_names=("replicate", "shard"))


def shard(model: nn.Module, mesh: DeviceMesh, *, compiled: bool = False, reshard_after_forward: bool = True) -> None:
    """FSDP2 in place: every unit of the model gathers its parameters when it is called.

    Args:
        model: every unit's forward is called through the module, not past it.
        mesh: one dimension, or (replicate, shard).
        compiled: compile the forward of every unit; the gathering stays outside.
        reshard_after_forward: free a unit's gathered parameters between forward and backward. False saves the second
            gathering and needs the memory of the whole model.
    """
    from torch.distributed.fsdp import fully_shard

    # FSDP2 shards contiguous tensors alone, and gathers them so: weights of convolutions lie in channels-last memory.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parts = units(model)
    for unit in parts:
        if compiled:
            unit.forward = torch.compile(unit.forward)  # type: ignore[method-assign]
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "blocks_in_order"):
        _prefetch(parts)


def _prefetch(blocks: list[nn.Module]) -> None:
    """Blocks that run one after the other: each gathers the next while it computes, in the backward the one before."""
    for i, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[i + 1 : i + 1 + _AHEAD])  # type: ignore[operator]
        block.set_modules_to_backward_prefetch(blocks[max(0, i - _AHEAD) : i][::-1])  # type: ignore[operator]


def units(model: nn.Module) -> list[nn.Module]:
    """The modules that are sharded apart: blocks where the model names them, else its layers.

    Each must be called, since its parameters are gathered by a hook on its forward; containers are not. A model that
    only wraps another, as those that come from diffusers, has the units of the one inside.
    """
    named = getattr(model, "blocks_in_order", None)
    if named is not None:
        return list(named())
    parts = [child for child in model.children() if next(child.parameters(), None) is not None]
    if len(parts) == 1 and not isinstance(parts[0], nn.ModuleList) and list(parts[0].children()):
        inner = units(parts[0])
        return inner if inner else parts
    layers: list[nn.Module] = []
    for part in parts:
        layers += part if isinstance(part, nn.ModuleList) else [part]
    return [
        layer for layer in layers if not isinstance(layer, nn.ModuleList) and next(layer.parameters(), None) is not None
    ]


def free_gathered(model: nn.Module) -> None:
    """Forget parameters that are still gathered, after sharded ones were written; nothing if it is not sharded.

    After a forward without a backward FSDP2 keeps those of the outermost unit, and would use them in the next forward.
    """
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if reshard is not None and hasattr(module, "set_reshard_after_backward"):
            reshard()

"""Low-rank adapters (Hu et al. 2021) through peft, in the files that diffusers' pipelines read and write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdiff_fast._files import save_safetensors
from vdiff_fast.pretrained.conventions import PretrainedError
from vdiff_fast.pretrained.families import Family

# Queries, keys, values and outputs of every attention, under the names that diffusers' attentions have.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
WEIGHTS = "pytorch_lora_weights.safetensors"
# Before the names in peft's own files.
_PEFT = "base_model.model."


@dataclass(frozen=True)
class LoraOptions:
    """W x + alpha / rank B A x for the layers whose names end so.

    Attributes:
        rank: of A and B.
        alpha: see above; rank where left out.
        targets: ends of layers' names.
        weights: a folder or file of an adapter to start from.
    """

    rank: int = 16
    alpha: int | None = None
    targets: tuple[str, ...] = TARGETS
    weights: str | None = None


def parse_lora(text: str) -> LoraOptions:
    """ "rank=16,alpha=32,targets=to_q,to_k,weights=FOLDER" as options; what has no "=" goes on the list before it.

    Raises:
        PretrainedError: an unknown key, or a rank or alpha that is no whole number from 1.
    """
    lists: dict[str, list[str]] = {}
    key = ""
    for part in (piece.strip() for piece in text.split(",")):
        name, equals, value = part.partition("=")
        key = name.strip() if equals else key
        lists.setdefault(key, []).append(value.strip() if equals else part)
    unknown = sorted(set(lists) - {"rank", "alpha", "targets", "weights"})
    if unknown or any(len(lists.get(name, [""])) > 1 for name in ("rank", "alpha", "weights")):
        raise PretrainedError(f"lora {text!r}: write rank=16,alpha=16,targets=to_q,to_k,weights=FOLDER, each optional")
    try:
        rank, alpha = int(lists.get("rank", ["16"])[0]), lists.get("alpha")
        scale = None if alpha is None else int(alpha[0])
    except ValueError:
        rank, scale = 0, None
    if rank < 1 or (scale is not None and scale < 1):
        raise PretrainedError(f"lora {text!r}: rank and alpha are whole numbers from 1")
    targets = tuple(lists["targets"]) if "targets" in lists else TARGETS
    return LoraOptions(rank, scale, targets, lists.get("weights", [None])[0])  # type: ignore[list-item]


def add_lora(network: Any, family: Family, options: LoraOptions) -> None:
    """Freeze the network and give it an adapter, new (it changes nothing yet) or loaded; its parameters are trained.

    Raises:
        PretrainedError: no layer has such a name, or a file that holds no adapter for this network.
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA adapters are peft's: pip install peft") from error
    network.requires_grad_(False)
    try:
        if options.weights is None:
            rank, targets = options.rank, list(options.targets)
            config = LoraConfig(r=rank, lora_alpha=options.alpha or rank, target_modules=targets)
            if hasattr(network, "add_adapter"):
                network.add_adapter(config)
            else:
                inject_adapter_in_model(config, network)
        else:
            load_lora(network, family, options.weights)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        shown = options.weights or ", ".join(options.targets)
        raise PretrainedError(f"lora {shown}: {' '.join(str(error).split())}") from error
    adapted = [parameter for name, parameter in network.named_parameters() if "lora_" in name]
    if not adapted:
        raise PretrainedError(f"lora {options.weights}: holds no adapter of a {family.name}")
    for parameter in adapted:
        parameter.requires_grad_(True)


def load_lora(network: Any, family: Family, place: str) -> None:
    """Load an adapter that a pipeline of diffusers, peft, or `save_lora` wrote."""
    path = Path(place)
    if _pipeline_saves(family):
        folder, name = (path, WEIGHTS) if path.is_dir() else (path.parent, path.name)
        network.load_lora_adapter(str(folder), weight_name=name, prefix=family.part, local_files_only=True)
        return
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    inject_adapter_in_model(LoraConfig.from_pretrained(str(path)), network)
    weights = load_peft_weights(str(path), device="cpu")
    set_peft_model_state_dict(network, {name.removeprefix(_PEFT): value for name, value in weights.items()})


def save_lora(network: Any, family: Family, folder: Path) -> None:
    """Write the adapter as the family's pipeline does; `pipeline.load_lora_weights(folder)` reads it.

    Latte's pipeline reads no adapters: its are in peft's own format, `PeftModel.from_pretrained(transformer, folder)`.
    """
    import diffusers
    from peft.utils import get_peft_model_state_dict

    layers = {name: value.detach().cpu().contiguous() for name, value in get_peft_model_state_dict(network).items()}
    config = next(iter(network.peft_config.values()))
    if not _pipeline_saves(family):
        config.save_pretrained(str(folder))
        save_safetensors(folder / "adapter_model.safetensors", {_PEFT + name: value for name, value in layers.items()})
        return
    options = {f"{family.part}_lora_layers": layers, f"{family.part}_lora_adapter_metadata": config.to_dict()}
    getattr(diffusers, family.pipeline).save_lora_weights(str(folder), **options)


def _pipeline_saves(family: Family) -> bool:
    import diffusers

    return hasattr(getattr(diffusers, family.pipeline), "save_lora_weights")

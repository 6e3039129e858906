"""From configuration to objects: network, schedule, data set."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import Dataset

from vdiff_fast import data
from vdiff_fast.diffusion import NoiseSchedule
from vdiff_fast.latents import LatentDataset, LatentInfo, is_cache
from vdiff_fast.pretrained import PREFIX, load_pretrained, parse_lora, schedule_of
from vdiff_fast.training.latents import prepare_model

if TYPE_CHECKING:
    from vdiff_fast.training.config import DataConfig, DiffusionConfig, TrainConfig

MODELS = {"unet": "VideoUNet", "dit": "VideoDiT"}


def _preset(name: str, changes: dict[str, Any]) -> nn.Module:
    from vdiff_fast import models

    family, _, preset = name.partition("-")
    known = {short: long for short, long in MODELS.items() if hasattr(models, long)}
    if family not in known or not preset:
        choices = ", ".join(f"{short}-<preset>" for short in known)
        raise ValueError(f"unknown model {name!r}; choose from {choices}, or package.module:function")
    return getattr(models, known[family]).preset(preset, **changes)


def _imported(path: str, changes: dict[str, Any]) -> nn.Module:
    module, _, function = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model {path!r}: {error}") from error
    return make(**changes)


def model_changes(config: TrainConfig, num_classes: int | None, latents: LatentInfo | None = None) -> dict[str, Any]:
    """Constructor arguments of the network: those of the data, then the user's own."""
    changes: dict[str, Any] = {}
    channels = config.data.channels if latents is None else latents.latent_channels
    if channels != 3:
        changes |= {"in_channels": channels, "out_channels": channels}
    if config.diffusion.learned_variance:
        changes["out_channels"] = 2 * config.model.changes.get("in_channels", channels)
    if latents is not None:
        changes["context_dim"] = latents.context_dim
    if num_classes:
        changes["num_classes"] = num_classes
    if config.diffusion.masks:
        changes["cond_channels"] = channels + 1
    if config.diffusion.continuous_time:
        changes["time_scale"] = 1000.0  # the sinusoids tell steps apart, not thousandths
    if config.mean_flow.share:
        # The target holds du/dt, which grows with the sinusoids' frequencies: at 1000 it drowns the velocity.
        changes |= {"interval": True, "time_scale": 1.0}
    if config.runtime.activation_checkpointing:
        changes["gradient_checkpointing"] = True
    own = {key: tuple(v) if isinstance(v, list) else v for key, v in config.model.changes.items()}
    if config.diffusion.learned_variance:
        own.pop("out_channels", None)  # twice the channels, whatever is said there
    return changes | own


def build_model(
    config: TrainConfig, *, num_classes: int | None = None, latents: LatentInfo | None = None
) -> nn.Module:  # fmt: skip
    """The network a configuration names; its channels, labels, context and checkpointing follow the configuration.

    Args:
        config: see above.
        num_classes: labels of the data, None without.
        latents: what the cache tells, where the data is one.

    Raises:
        ValueError: no such family, preset or function, or arguments that the network does not take.
        CacheError: a network that does not fit the latents.
    """
    if config.model.name.startswith(PREFIX):
        return _pretrained(config, latents)
    if config.model.lora is not None:
        raise ValueError(f"model.lora is for models diffusers:FOLDER, not {config.model.name}; leave it out")
    changes = model_changes(config, num_classes, latents)
    try:
        make = _imported if ":" in config.model.name else _preset
        model = make(config.model.name, changes)
    except (TypeError, KeyError) as error:
        raise ValueError(f"model {config.model.name!r} with {changes}: {error}") from error
    if latents is not None:
        prepare_model(model, latents)
    return model


def _pretrained(config: TrainConfig, latents: LatentInfo | None) -> nn.Module:
    """A denoiser of diffusers, which is trained on latents."""
    if latents is None:
        raise ValueError(f"model {config.model.name} is trained on latents; make a cache with vdiff-fast cache --codec")
    if config.model.changes:
        raise ValueError(f"model.changes: {config.model.name} is what its folder says; leave them out")
    model = load_pretrained(
        config.model.name.removeprefix(PREFIX), compression=latents.compression, fps=latents.fps,
        lora=None if config.model.lora is None else parse_lora(config.model.lora), patched=config.model.patched,
        gradient_checkpointing=config.runtime.activation_checkpointing,
    )  # fmt: skip
    prepare_model(model, latents)
    return model


def schedule_for(config: TrainConfig) -> NoiseSchedule:
    """The noise schedule, on the CPU; of a pretrained model that is no flow, its own."""
    if config.diffusion.schedule == "model":
        return schedule_of(config.model.name.removeprefix(PREFIX))
    return build_schedule(config.diffusion)


def build_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The noise schedule, on the CPU."""
    if config.schedule == "flow":
        return NoiseSchedule.flow(config.timesteps, shift=config.flow_shift)
    if config.schedule == "model":
        raise ValueError("diffusion.schedule model is for models diffusers:FOLDER; name another")
    if config.continuous_time or config.flow_shift != 1 or config.flow_shift_positions:
        raise ValueError(f"continuous_time and flow_shift are for the flow schedule, not {config.schedule}")
    make = getattr(NoiseSchedule, config.schedule)
    return make(config.timesteps, zero_terminal_snr=config.zero_terminal_snr)


def build_dataset(config: DataConfig, seed: int) -> Dataset:
    """The clips a configuration names; errors are those of `vdiff_fast.data.open_dataset`, and `LatentDataset`."""
    if is_cache(config.source):
        if config.labels:
            raise ValueError(f"data.labels: {config.source} is a cache of latents, which has captions; leave it out")
        return LatentDataset(config.source)
    digits = {"num_digits": config.digits} | config.model_dump(include={"digit_size", "handwritings", "speed"})
    tolerance = config.model_dump(include={"max_missing", "max_corrupt"})
    arguments = config.model_dump(exclude={"source", "workers", "digits", "values"} | digits.keys() | tolerance.keys())
    return data.open_dataset(
        config.source, seed=seed, digits=digits, tolerance=data.Tolerance(**tolerance), **arguments
    )

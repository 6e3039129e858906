"""The configuration of a training run: YAML sections and flags, checked, every key documented."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vdiff_fast.diffusion import SAMPLERS
from vdiff_fast.pretrained.conventions import with_conventions
from vdiff_fast.pretrained.lora import parse_lora
from vdiff_fast.training.masks import Role, check_masks, parse_masks

# Keys that may differ when a run is resumed: they change neither the weights nor the order of the data.
_FREE: dict[str, Any] = {"resume": "free"}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and the rule."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())


class DataConfig(_Section):
    """Where clips come from and what one clip looks like."""

    source: str = Field(description="folder of videos, one video file, moving-digits, or a cache of latents")
    frames: int = Field(default=16, ge=1, description="frames of a clip")
    size: int | tuple[int, int] = Field(default=32, description="side of a frame, or height and width, in pixels")
    stride: int = Field(default=1, ge=1, description="take every stride-th frame")
    strides: tuple[int, ...] = Field(
        default=(), description="draw each clip's stride from these instead; one listed twice comes twice as often"
    )
    fps: float | None = Field(default=None, gt=0, description="resample videos to this rate by their time stamps")
    channels: Literal[1, 3] = Field(default=3, description="3 (RGB) or 1 (luma)")
    fit: Literal["cover", "contain", "stretch"] = Field(default="cover", description="crop, pad with black, or distort")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of a horizontal flip of the whole clip")
    random_crop: bool = Field(default=False, description="draw the crop's place instead of the centre")
    random_window: bool = Field(default=True, description="draw the first frame of a folder's clips")
    digits: int = Field(default=2, ge=1, description="moving-digits: how many")
    digit_size: int | None = Field(default=None, ge=1, description="moving-digits: pixels; half the side if left out")
    handwritings: int | None = Field(default=None, ge=1, description="moving-digits: only the first so many pictures")
    speed: tuple[float, float] | None = Field(
        default=None, description="moving-digits: lowest and highest, pixels per frame"
    )
    labels: bool = Field(default=False, description="train with class labels: the file's folder, or the digits")
    cache_dir: str | None = Field(default=None, description="keep decoded frames here", json_schema_extra=_FREE)
    skip_limit: float = Field(default=0.05, ge=0, le=1, description="share of unusable files that stops the run")
    max_missing: float = Field(
        default=0.02, ge=0, le=1, description="share of a file's frames that may be missing at its end"
    )
    max_corrupt: float = Field(default=0.0, ge=0, le=1, description="share of a file's frames that may be damaged")
    deinterlace: bool = Field(default=False, description="make whole pictures of interlaced frames")
    values: Literal["pixels", "any"] = Field(
        default="pixels", description="of a data set of your own: pixels, in [-1, 1], or any, such as latents"
    )
    workers: int = Field(default=0, ge=0, description="processes that load ahead", json_schema_extra=_FREE)

    @property
    def all_strides(self) -> tuple[int, ...]:
        """Every stride that clips have."""
        return self.strides or (self.stride,)


class ModelConfig(_Section):
    """Which network."""

    name: str = Field(
        default="unet-tiny",
        description="unet-tiny|small|base, dit-tiny|s|b|l|xl, diffusers:FOLDER, or package.module:function",
    )
    lora: str | None = Field(
        default=None, description="of diffusers:FOLDER: train an adapter, rank=16,alpha=16,targets=to_q,to_k"
    )
    patched: bool = Field(default=True, description="of diffusers:FOLDER: run it on this library's kernels")
    changes: dict[str, Any] = Field(
        default_factory=dict, description="constructor arguments that differ from the preset"
    )


class DiffusionConfig(_Section):
    """The noise schedule and the objective."""

    schedule: Literal["linear", "scaled_linear", "cosine", "flow", "model"] = Field(
        default="linear", description="noise schedule; model is that of diffusers:FOLDER"
    )
    timesteps: int = Field(default=1000, ge=1, description="steps of the schedule")
    zero_terminal_snr: bool = Field(
        default=False, description="rescale the schedule so that the last step is pure noise"
    )
    flow_shift: float = Field(default=1.0, gt=0, description="of a flow: above 1 more steps at high noise")
    flow_shift_positions: int | None = Field(
        default=None, ge=1, description="latents of a clip that flow_shift is for; others' grows with the root"
    )
    continuous_time: bool = Field(
        default=False, description="of a flow: the model is given s in [0, 1] instead of the step"
    )
    target: Literal["noise", "v", "x0", "flow"] = Field(default="v", description="what the model predicts")
    learned_variance: bool = Field(
        default=False, description="the network predicts a variance, too: twice the channels"
    )
    variational_weight: float = Field(
        default=0.001, ge=0, description="of learned_variance: weight of the variational bound, summed over timesteps"
    )
    weighting: Literal["uniform", "min_snr"] = Field(default="uniform", description="weight of the loss over timesteps")
    gamma: float = Field(default=5.0, gt=0, description="cap of the signal-to-noise ratio in min_snr")
    masks: dict[Role, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="roles that a clip is trained in, and their weights: global, local, first, prediction, inpaint, "
        "random, as in global,local=2; none trains without known frames",
    )
    label_dropout: float = Field(
        default=0.1, ge=0, le=1, description="share of labels or captions left out, for guidance"
    )

    _parse_masks = field_validator("masks", mode="before")(parse_masks)


class MeanFlowConfig(_Section):
    """Training of mean velocities, for videos in one step (sampler mean_flow)."""

    share: float = Field(default=0, ge=0, le=1, description="share of samples over an interval; 0: no mean velocities")
    power: float = Field(
        default=1.0, ge=0, le=2, description="of the adaptive weight 1 / (error^2 + 0.001)^power; 0 is the square error"
    )


class OptimizerConfig(_Section):
    """AdamW and its learning rate."""

    lr: float = Field(default=2e-4, gt=0, description="peak learning rate")
    warmup_steps: int = Field(default=100, ge=0, description="linear warm-up from 0")
    decay: Literal["constant", "cosine", "linear", "inverse_sqrt", "cooldown"] = Field(
        default="cosine", description="course of the rate after the warm-up"
    )
    final_lr: float = Field(default=0.05, ge=0, le=1, description="last rate as a share of the peak")
    betas: tuple[float, float] = Field(default=(0.9, 0.99), description="decay of AdamW's two moments")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(
        default=0.01, ge=0, description="decoupled decay of weight matrices; norms and biases have none"
    )
    clip_norm: float = Field(default=1.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients are added up per step")


class EmaConfig(_Section):
    """The moving average of the weights, with which samples are drawn."""

    decay: float = Field(default=0.999, ge=0, lt=1, description="decay per step")
    warmup: bool = Field(default=True, description="lower decay at the start: min(decay, (1 + step) / (10 + step))")


class RuntimeConfig(_Section):
    """How the same mathematics is computed."""

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...", json_schema_extra=_FREE)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="fp32", description="autocast dtype; fp16 scales the loss, auto is bf16 where the device is fast in it"
    )
    compile: bool = Field(default=False, description="torch.compile the model")
    activation_checkpointing: bool = Field(
        default=False, description="recompute blocks in the backward instead of storing them"
    )
    backend: str = Field(default="auto", description="auto, reference, cpu, triton or cuda for every op")
    strategy: Literal["ddp", "fsdp", "hybrid"] = Field(
        default="ddp", description="with torchrun: replicate, shard, or shard in groups", json_schema_extra=_FREE
    )
    shard_ranks: int | None = Field(
        default=None, ge=1, description="of hybrid: ranks of a group; a node's if left out", json_schema_extra=_FREE
    )
    reshard_after_forward: bool = Field(
        default=True, description="sharded: gather again in the backward, for less memory", json_schema_extra=_FREE
    )
    deterministic: bool = Field(default=False, description="let torch refuse non-deterministic algorithms")


class SampleConfig(_Section):
    """Samples drawn while training, with the EMA weights."""

    every: int = Field(default=1000, ge=0, description="steps between samples; 0 for none", json_schema_extra=_FREE)
    count: int = Field(default=4, ge=1, description="videos per sample", json_schema_extra=_FREE)
    sampler: str = Field(default="ddim", description=", ".join(SAMPLERS), json_schema_extra=_FREE)
    steps: int = Field(default=50, ge=1, description="sampling steps", json_schema_extra=_FREE)
    spacing: str | None = Field(default=None, description="sampling times, see sampler_table", json_schema_extra=_FREE)
    guidance: float = Field(default=1.0, description="guidance scale; 1 is none", json_schema_extra=_FREE)
    fps: float = Field(default=8.0, gt=0, description="frame rate of what is written", json_schema_extra=_FREE)
    upscale: int = Field(default=1, ge=1, description="enlarge by a whole factor", json_schema_extra=_FREE)


class LogConfig(_Section):
    """metrics.jsonl, loss.png, tensorboard."""

    every: int = Field(default=10, ge=1, description="steps between rows of metrics.jsonl", json_schema_extra=_FREE)
    plot_every: int = Field(
        default=500, ge=0, description="steps between loss.png; 0: at the end", json_schema_extra=_FREE
    )
    tensorboard: bool = Field(default=False, description="write event files too", json_schema_extra=_FREE)


class CheckpointConfig(_Section):
    """When to save, and how much to keep."""

    every: int = Field(
        default=1000, ge=0, description="steps between checkpoints; 0: at the end", json_schema_extra=_FREE
    )
    keep: int = Field(default=3, ge=1, description="newest checkpoints that stay", json_schema_extra=_FREE)


class NonFiniteConfig(_Section):
    """What to do with a loss or gradient that is NaN or Inf."""

    policy: Literal["raise", "skip"] = Field(
        default="raise", description="stop, or leave the step out", json_schema_extra=_FREE
    )
    limit: int = Field(
        default=10, ge=1, description="skipped steps in a row that stop the run", json_schema_extra=_FREE
    )


class TrainConfig(_Section):
    """Everything a run depends on."""

    steps: int = Field(default=10_000, ge=1, description="optimizer steps")
    batch_size: int = Field(default=4, ge=1, description="clips per rank and micro-step")
    seed: int = Field(default=0, description="seed of weights, data, timesteps, noise and samples")
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    mean_flow: MeanFlowConfig = Field(default_factory=MeanFlowConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    ema: EmaConfig = Field(default_factory=EmaConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    nonfinite: NonFiniteConfig = Field(default_factory=NonFiniteConfig)


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def fields(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with dots ("optimizer.lr") and its pydantic field."""
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            yield prefix + name, field
        else:
            yield from fields(section, f"{prefix}{name}.")


def describe() -> str:
    """Every key, its default and what it means, as a table in plain text."""
    rows = []
    for key, field in fields():
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        rows.append(f"{key:<36} {default!s:<14} {field.description}")
    return "\n".join(rows)


def _nearest(key: str) -> str:
    """ "; did you mean optimizer.lr?" with the valid key most like this one, by its last part before the whole."""
    known = [name for name, _ in fields()]
    sections = sorted({name.split(".")[0] for name in known if "." in name})
    last = key.split(".")[-1]
    same = [name for name in known if name.split(".")[-1] == last]
    found = same or difflib.get_close_matches(key, known + sections, n=1, cutoff=0.6)
    if not found:
        tails = {name.split(".")[-1]: name for name in known}
        found = [tails[tail] for tail in difflib.get_close_matches(last, tails, n=1, cutoff=0.5)]
    return f"; did you mean {found[0]}?" if found else f"; sections are {', '.join(sections)}"


def _problem(error: Any) -> str:
    # A union names the branch it tried after the key ("data.size.int"): only the key is of use.
    path = [str(part) for part in error["loc"]]
    key = next(
        (".".join(path[:n]) for n in range(len(path), 0, -1) if ".".join(path[:n]) in dict(fields())), ".".join(path)
    )
    if error["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(path)}{_nearest('.'.join(path))}"
    if error["type"] == "missing":
        return f"{'.'.join(path)} is missing"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {message}, got {error['input']!r}"


def from_mapping(values: Mapping[str, Any]) -> TrainConfig:
    """A checked configuration from nested dictionaries.

    Raises:
        ConfigError: unknown keys (with the nearest valid name), missing ones, values out of range; all in one message.
    """
    try:
        config = TrainConfig.model_validate(with_conventions(values))
        if config.model.lora is not None:
            parse_lora(config.model.lora)
        if config.diffusion.masks:
            check_masks(config.diffusion.masks, config.data.all_strides)
        if config.mean_flow.share:
            _check_mean_flow(config)
        if config.diffusion.learned_variance and config.diffusion.schedule == "flow":
            raise ValueError("diffusion.learned_variance is of a diffusion's steps back; a flow has none: leave it out")
    except ValidationError as error:
        problems = dict.fromkeys(_problem(e) for e in error.errors())
        raise ConfigError("configuration: " + "; ".join(problems)) from None
    except ValueError as error:
        raise ConfigError(f"configuration: {error}") from None
    return config


def _check_mean_flow(config: TrainConfig) -> None:
    """Raise ValueError where mean velocities, which are a flow's, would be trained for something else."""
    diffusion = config.diffusion
    rules = {
        "diffusion.schedule": (diffusion.schedule, "flow"),
        "diffusion.target": (diffusion.target, "flow"),
        "diffusion.continuous_time": (diffusion.continuous_time, True),
        "diffusion.weighting": (diffusion.weighting, "uniform"),
        "runtime.strategy": (config.runtime.strategy, "ddp"),
    }
    for key, (value, needed) in rules.items():
        if value != needed:
            raise ValueError(f"mean_flow.share {config.mean_flow.share} needs {key} {needed}, got {value}")


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with dotted keys replaced: {"optimizer.lr": 1e-3}."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        target = merged
        for parent in parents:
            below = target.get(parent)
            target[parent] = dict(below) if isinstance(below, Mapping) else {}
            target = target[parent]
        target[last] = value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a string: here it is the number it looks like."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """The value of a flag `--set key=value`, read as YAML."""
    return yaml.load(text, _Loader)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Nested values of a YAML file.

    Raises:
        ConfigError: the file is not there, is no YAML, or holds something else than keys and values.
    """
    try:
        content = yaml.load(Path(path).read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold keys and values, got {type(content).__name__}")
    return content


def load_config(path: str | os.PathLike[str] | None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """YAML file (or none), then flags over it, checked."""
    return from_mapping(with_overrides(read_yaml(path) if path else {}, overrides or {}))


def to_yaml(config: TrainConfig) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)

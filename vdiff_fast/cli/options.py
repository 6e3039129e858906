"""Flags that set configuration keys: their names are here, their help is the configuration's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from vdiff_fast.training import config as configuration

# Flag (without --) and the key it sets.
TRAIN_FLAGS = {
    "data": "data.source",
    "model": "model.name",
    "lora": "model.lora",
    "steps": "steps",
    "batch-size": "batch_size",
    "frames": "data.frames",
    "size": "data.size",
    "stride": "data.stride",
    "strides": "data.strides",
    "fps": "data.fps",
    "flip": "data.flip",
    "labels": "data.labels",
    "cache-dir": "data.cache_dir",
    "skip-limit": "data.skip_limit",
    "max-missing": "data.max_missing",
    "max-corrupt": "data.max_corrupt",
    "deinterlace": "data.deinterlace",
    "workers": "data.workers",
    "lr": "optimizer.lr",
    "warmup": "optimizer.warmup_steps",
    "decay": "optimizer.decay",
    "clip": "optimizer.clip_norm",
    "accumulate": "optimizer.accumulate",
    "ema": "ema.decay",
    "target": "diffusion.target",
    "schedule": "diffusion.schedule",
    "weighting": "diffusion.weighting",
    "masks": "diffusion.masks",
    "seed": "seed",
    "precision": "runtime.precision",
    "device": "runtime.device",
    "compile": "runtime.compile",
    "activation-checkpointing": "runtime.activation_checkpointing",
    "backend": "runtime.backend",
    "strategy": "runtime.strategy",
    "sample-every": "sample.every",
    "checkpoint-every": "checkpoint.every",
    "log-every": "log.every",
}


def _parameter(flag: str, field: Any) -> inspect.Parameter:
    name = flag.replace("-", "_")
    if field.annotation is bool:
        option = typer.Option(f"--{flag}/--no-{flag}", help=field.description, show_default=False)
        annotation: Any = Annotated[bool | None, option]
    else:
        option = typer.Option(f"--{flag}", help=field.description, metavar="VALUE", show_default=False)
        annotation = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def with_flags(flags: dict[str, str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these flags; it receives those that were set as `overrides`, {key: value}."""
    fields = dict(configuration.fields())
    parameters = [_parameter(flag, fields[key]) for flag, key in flags.items()]
    keys = {flag.replace("-", "_"): key for flag, key in flags.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "overrides"]

        def called(**values: Any) -> None:
            given = {keys[name]: values.pop(name) for name in keys if values.get(name) is not None}
            for name in keys:
                values.pop(name, None)
            command(overrides={key: _value(key, value) for key, value in given.items()}, **values)

        called.__doc__ = command.__doc__
        called.__name__ = command.__name__
        called.__signature__ = inspect.Signature(own + parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in own + parameters}
        return called

    return decorate


def _value(key: str, text: Any) -> Any:
    if key == "data.size":
        return parse_size(text)
    if key == "data.strides":
        return [configuration.parse_value(part) for part in text.strip("[]").split(",")]
    return configuration.parse_value(text) if isinstance(text, str) else text


def parse_size(text: str) -> int | tuple[int, int]:
    """ "64" is 64, "48x64" is (48, 64): height, then width.

    Raises:
        ValueError: the text is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"size {text!r}: give one number from 1 on, or height x width such as 48x64")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def check_guidance(guidance: float, num_classes: int | None, run: Path) -> None:
    """Raise ValueError for guidance of a model that has nothing to be guided by."""
    if guidance != 1.0 and num_classes is None:
        raise ValueError(
            f"guidance {guidance} needs a model with labels; {run} was trained without data.labels: use 1, or train it "
            "with --labels"
        )


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """["optimizer.lr=1e-3"] as {key: value}.

    Raises:
        ValueError: an entry without "=".
    """
    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r}: write key=value, such as optimizer.lr=1e-3")
        overrides[key.strip()] = configuration.parse_value(value)
    return overrides

"""What a folder of diffusers says of its denoiser: class, prediction target, schedule. Torch's modules are not made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vdiff_fast.diffusion import NoiseSchedule
from vdiff_fast.pretrained.families import FAMILIES, Family

PREFIX = "diffusers:"
_TARGETS = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}


class PretrainedError(ValueError):
    """A folder that holds no known denoiser, or one used against its conventions; the message says what would work."""


def find_model(folder: str | os.PathLike[str]) -> tuple[Path, Family]:
    """The folder with the denoiser's config.json, of a model or of a whole pipeline, and the record of its class.

    Raises:
        PretrainedError: no such folder, no model in it, or an unknown class.
    """
    root = Path(folder)
    if not root.is_dir():
        raise PretrainedError(f"{root}: no such folder; give a pipeline's or a denoiser's, as save_pretrained made it")
    parts = [root, root / "transformer", root / "unet"]
    path = next((part for part in parts if (part / "config.json").is_file()), None)
    if path is None:
        raise PretrainedError(f"{root}: holds no config.json, transformer/ or unet/, so it is no denoiser's folder")
    name = _read(path / "config.json").get("_class_name", "")
    if name not in FAMILIES:
        raise PretrainedError(f"{path}: is a {name or 'model of no named class'}; known are {', '.join(FAMILIES)}")
    return path, FAMILIES[name]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path}: cannot be read ({error})") from None


def _scheduler(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The pipeline's scheduler/ and its configuration, where there is one."""
    for root in (folder, folder.parent):
        if (root / "scheduler" / "scheduler_config.json").is_file():
            return root / "scheduler", _read(root / "scheduler" / "scheduler_config.json")
    return None


def conventions(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fixed, default) keys of the diffusion section for this model.

    Raises:
        PretrainedError: no known denoiser; or one whose scheduler is needed and missing, or predicts something else.
    """
    path, family = find_model(folder)
    found = _scheduler(path)
    config = {} if found is None else found[1]
    if family.flow:
        shift = config.get("flow_shift", config.get("shift", 1.0))
        fixed = {"schedule": "flow", "target": "flow", "continuous_time": True}
        return fixed, {"flow_shift": 1.0 if config.get("use_dynamic_shifting") else float(shift)}
    if found is None:
        raise PretrainedError(
            f"{path}: a {family.name} is trained with its pipeline's noise schedule, and there is no scheduler/ beside "
            "it; give the whole pipeline's folder"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _TARGETS:
        raise PretrainedError(f"{found[0]}: predicts {prediction!r}; known are {', '.join(_TARGETS)}")
    steps = int(config.get("num_train_timesteps", 1000))
    return {"schedule": "model", "target": _TARGETS[prediction], "timesteps": steps, "continuous_time": False}, {}


def with_conventions(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the model's own conventions, where `model.name` is "diffusers:FOLDER".

    Raises:
        PretrainedError: keys of the diffusion section that are not the model's, masks, or those of `conventions`.
    """
    merged = dict(values)
    model, section = merged.get("model"), merged.get("diffusion")
    name = model.get("name") if isinstance(model, Mapping) else None
    if not (isinstance(name, str) and name.startswith(PREFIX)) or not isinstance(section or {}, Mapping):
        return merged
    given = dict(section or {})
    fixed, default = conventions(name.removeprefix(PREFIX))
    for key, value in fixed.items():
        if key in given and given[key] != value:
            raise PretrainedError(f"diffusion.{key} {given[key]} is not that of {name}, {value}; leave it out")
    if given.get("masks"):
        raise PretrainedError(f"diffusion.masks: {name} takes no known frames; leave them out")
    merged["diffusion"] = default | given | fixed
    return merged


def schedule_of(folder: str | os.PathLike[str]) -> NoiseSchedule:
    """The schedule of a pipeline's scheduler/, from the products that it keeps.

    Raises:
        PretrainedError: there is no scheduler, or one without such products.
    """
    import diffusers

    path, _ = find_model(folder)
    found = _scheduler(path)
    if found is None:
        raise PretrainedError(f"{path}: has no scheduler/ beside it; give the whole pipeline's folder")
    place, config = found
    scheduler = getattr(diffusers, str(config.get("_class_name")), None)
    products = None if scheduler is None else getattr(scheduler.from_pretrained(place), "alphas_cumprod", None)
    if products is None:
        raise PretrainedError(f"{place}: a {config.get('_class_name')} has no alphas_cumprod to make a schedule of")
    products = products.double()
    return NoiseSchedule.from_betas(1 - products / torch.cat([products.new_ones(1), products[:-1]]))

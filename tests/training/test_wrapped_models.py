"""A model that is compiled or wrapped already trains as the plain one, and its checkpoints hold the plain names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.training.small import Ramps, SmallNet, small_config
from vdiff_fast.training import checkpoint as ckpt
from vdiff_fast.training.generate import load_run
from vdiff_fast.training.trainer import Trainer


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def in_parts(model: nn.Module) -> nn.Module:
    model.head, model.tail = compiled(model.head), checkpoint_wrapper(model.tail)
    return model


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "compiled parallel": lambda model: compiled(nn.DataParallel(model)),
    "in parts": in_parts,
    "compiled in parts": lambda model: compiled(in_parts(model)),
}


def trainer(run: Path, wrapper: Callable[[nn.Module], nn.Module], resume: bool = False) -> Trainer:
    torch.manual_seed(2)
    model = wrapper(SmallNet(dropout=0.0))
    return Trainer(small_config(), run, dataset=Ramps(), model=model, resume=resume, show_progress=False)


def newest(run: Path) -> tuple[Path, ckpt.Checkpoint]:
    path = ckpt.latest_checkpoint(run / "checkpoints")
    assert path is not None
    return path, ckpt.load_checkpoint(path)


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_it_trains_as_the_plain_model(tmp_path: Path, wrapper: str) -> None:
    """Begun wrapped, resumed plain, and the other way round: the run of the plain model."""
    plain, names = (lambda model: model), SmallNet().state_dict().keys()
    trainer(tmp_path / "whole", plain).fit(until=6)
    expected = newest(tmp_path / "whole")[1]
    for first, second in ((WRAPPED[wrapper], plain), (plain, WRAPPED[wrapper])):
        run = tmp_path / f"{first is plain}"
        begun = trainer(run, first)
        begun.fit(until=3)
        assert begun.ema.state_dict().keys() == names
        trainer(run, second, resume=True).fit(until=6)
        path, found = newest(run)
        for name in ("model", "ema"):
            mine, theirs = getattr(found, name), getattr(expected, name)
            assert mine.keys() == names
            assert all(torch.equal(mine[n], theirs[n]) for n in names), name
        assert found.optimizer["optimizer"]["state"].keys() == expected.optimizer["optimizer"]["state"].keys()
        SmallNet().load_state_dict(found.ema)
    assert path.is_dir()


def test_a_run_of_a_model_of_ones_own_is_loaded_into_it(tmp_path: Path) -> None:
    trainer(tmp_path, compiled).fit(until=2)
    found = load_run(tmp_path, device="cpu").model
    assert torch.equal(found.head.weight, newest(tmp_path)[1].ema["head.weight"])
    own = SmallNet(dropout=0.0)
    assert load_run(tmp_path, device="cpu", model=compiled(own)).model is own
    assert torch.equal(own.head.weight, found.head.weight)


def test_checkpoints_that_hold_the_names_of_wrappers_still_load(tmp_path: Path) -> None:
    trainer(tmp_path, lambda model: model).fit(until=2)
    path, saved = newest(tmp_path)
    for name in ("model", "ema"):
        old = {f"_orig_mod.{n}".replace("head.", "head._orig_mod."): v for n, v in getattr(saved, name).items()}
        save_file(old, path / f"{name}.safetensors")
    (path / "checksums.json").unlink()  # which the versions that wrote such names did not write
    resumed = trainer(tmp_path, compiled, resume=True)
    assert torch.equal(resumed.model.head.weight, saved.model["head.weight"])
    assert torch.equal(resumed.ema.state_dict()["head.weight"], saved.ema["head.weight"])

"""Roles of training clips: their masks, their strides, and a training that learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdiff_fast.training import config as configuration
from vdiff_fast.training.config import ConfigError, load_config
from vdiff_fast.training.masks import ROLES, Role, draw_masks, parse_masks, role_mask, roles_of_stride

CLIP = (6, 8, 10)


def known_frames(mask: torch.Tensor) -> list[int]:
    """Positions whose whole frame is known; a frame must be known or not, nothing between."""
    shares = mask.float().expand(1, 1, *CLIP).mean(dim=(0, 1, 3, 4)).tolist()
    assert set(shares) <= {0.0, 1.0}
    return [i for i, share in enumerate(shares) if share]


uniform = st.floats(1e-9, 1 - 1e-9)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(ROLES), st.lists(uniform, min_size=10, max_size=10))
def test_a_role_knows_what_it_says_and_never_everything(role: Role, u: list[float]) -> None:
    mask = role_mask(role, CLIP, u).expand(1, 1, *CLIP)
    assert not mask.all()
    if role == "inpaint":
        hole = ~mask[0, 0]
        assert torch.equal(hole[0], hole[-1])
        rows, columns = hole[0].any(1).sum().item(), hole[0].any(0).sum().item()
        assert hole[0].sum() == rows * columns
        assert 2 <= rows <= 6
        return
    known = known_frames(mask)
    expected: dict[str, Any] = {"global": [], "local": [0, 5], "first": [0]}
    if role in expected:
        assert known == expected[role]
    elif role == "prediction":
        assert known == list(range(len(known)))
        assert 1 <= len(known) <= 5


def test_masks_depend_on_the_sample_alone() -> None:
    roles = configuration.DiffusionConfig(masks="global,local,prediction,inpaint,random").masks
    strides = (1, 7, 49)
    of_clip = [strides[i % 3] for i in range(12)]
    whole = draw_masks(roles, strides, of_clip, CLIP, seed=4, sample_offset=20)
    parts = [draw_masks(roles, strides, of_clip[a:b], CLIP, 4, 20 + a) for a, b in ((0, 5), (5, 12))]
    assert whole.shape == (12, 1, *CLIP)
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(draw_masks(roles, strides, of_clip, CLIP, 5, 20), whole)


def test_roles_come_as_often_as_they_weigh() -> None:
    roles: dict[Role, float] = {"global": 1, "first": 3, "local": 0}
    masks = draw_masks(roles, (1,), [1] * 4000, CLIP, seed=0, sample_offset=0)
    shares = torch.tensor([bool(m.any()) for m in masks]).float().mean()
    assert float(shares) == pytest.approx(0.75, abs=0.03)


def test_key_frames_are_the_largest_stride_and_local_all_others() -> None:
    roles: dict[Role, float] = {"global": 1, "local": 1, "prediction": 1}
    of = {stride: set(roles_of_stride(roles, (7, 1, 49, 7), stride)) for stride in (1, 7, 49)}
    assert of == {49: {"global"}, 7: {"local"}, 1: {"local", "prediction"}}
    assert roles_of_stride(roles, (1,), 1) == roles


def test_configuration_of_masks() -> None:
    masks = load_config(None, {"data.source": "x", "diffusion.masks": "global, local=2"}).diffusion.masks
    assert masks == {"global": 1.0, "local": 2.0}
    assert parse_masks({"first": 1}) == {"first": 1}
    given_ = {"data.source": "x", "data.strides": [1, 7]}
    config = load_config(None, given_ | {"diffusion.masks": {"global": 1, "local": 1}})
    again = configuration.from_mapping(configuration.parse_value(configuration.to_yaml(config)))
    assert again == config
    for masks, message in (
        ("global", r"no role for clips of stride 1 \(of \[1, 7\]\); add local"),
        ("local", r"no role for clips of stride 7 .* add global"),
        ("sideways", r"masks: input should be 'global', .* got 'sideways'"),
        ("global=-1,local", "greater than or equal to 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(None, given_ | {"diffusion.masks": masks})


MODEL = {
    "channels": [8, 16], "blocks": [1, 1], "spatial_attention": [False, False], "temporal_attention": [False, True],
    "temporal_conv": [False, False], "head_dim": 8, "num_groups": 2, "condition_injection": "blocks",
}  # fmt: skip


DIT = {"width": 48, "depth": 2, "heads": 3, "condition_injection": "blocks"}


@pytest.mark.parametrize(("name", "changes", "lr"), [("unet-tiny", MODEL, 5e-3), ("dit-tiny", DIT, 3e-3)])
def test_the_loss_of_known_frames_falls_through_the_condition(
    tmp_path: Path, name: str, changes: dict[str, Any], lr: float
) -> None:
    """After a few steps the model predicts better with the condition than without: it reads the known frames."""
    from vdiff_fast.training.trainer import Trainer

    config = load_config(None, {
        "data.source": "moving-digits", "data.frames": 4, "data.size": 8, "data.channels": 1, "data.digits": 1,
        "diffusion.masks": "local", "model.name": name, "model.changes": changes,
        "steps": 120, "batch_size": 8, "optimizer.lr": lr, "optimizer.warmup_steps": 5, "sample.every": 0,
        "checkpoint.every": 0, "log.plot_every": 0, "diffusion.schedule": "cosine",
    })  # fmt: skip
    trainer = Trainer(config, tmp_path, show_progress=False)
    assert trainer.model.config.cond_channels == 2
    trainer.fit()
    raw = next(iter(trainer.loader))
    batch = trainer.objective.prepare(raw, 10_000)
    noisy = torch.full_like(batch.t, 900)
    batch = type(batch)(batch.x0, noisy, None, batch.sample_offset, batch.files, batch.timesteps, batch.cond)
    blind = type(batch)(batch.x0, noisy, None, batch.sample_offset, batch.files, batch.timesteps, None)
    with torch.no_grad():
        seeing_loss, blind_loss = (
            float(trainer.objective.loss(trainer.objective.predict(trainer.model, b), b)) for b in (batch, blind)
        )
    assert seeing_loss < 0.9 * blind_loss

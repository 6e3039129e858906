"""The configuration: YAML, flags, errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.small import small_config
from vdiff_fast.training import config as configuration
from vdiff_fast.training.config import ConfigError, load_config
from vdiff_fast.training.resuming import changed_keys

RECIPES = Path(__file__).parents[2] / "recipes"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("steps: 7\ndata: {source: clips, size: [48, 64]}\noptimizer: {lr: 1e-4}\n")
    config = load_config(path, {"steps": 9, "optimizer.clip_norm": 0.5})
    assert (config.steps, config.data.size, config.optimizer.lr, config.optimizer.clip_norm) == (9, (48, 64), 1e-4, 0.5)


def test_yaml_reads_back_what_it_wrote() -> None:
    config = small_config(optimizer__lr=3e-5, model__changes={"channels": [8, 16]}, data__size=(4, 6))
    assert configuration.from_mapping(configuration.parse_value(configuration.to_yaml(config))) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.lrate", 1, r"unknown key optimizer\.lrate; did you mean optimizer\.lr\?"),
        ("learning_rate", 1, "unknown key learning_rate"),
        ("lr", 1, r"unknown key lr; did you mean optimizer\.lr\?"),
        ("optimiser", {}, "unknown key optimiser; did you mean optimizer"),
        ("optimizer.lr", "fast", r"optimizer\.lr: input should be a valid number.*got 'fast'"),
        ("optimizer.lr", -1, r"optimizer\.lr: input should be greater than 0, got -1"),
        (
            "runtime.precision",
            "fp8",
            r"runtime\.precision: input should be 'auto', 'fp32', .*got 'fp8'",
        ),
        ("data.size", "wide", r"data\.size: .*got 'wide'"),
    ],
)
def test_errors_name_the_key_and_the_value(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, {"data.source": "clips", key: value})
    assert "\n" not in str(caught.value)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError, match=r"steps: .*got 0.*data\.source is missing"):
        load_config(None, {"steps": 0, "data.frames": 4})


@pytest.mark.parametrize(("text", "message"), [("- 1\n", "keys and values"), ("a: [", "not valid YAML")])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"bad\.yaml: .*{message}"):
        load_config(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.yaml")


def test_every_key_is_documented() -> None:
    for key, field in configuration.fields():
        assert field.description, key
    assert "optimizer.lr" in configuration.describe()


def test_changed_keys_leave_out_what_does_not_matter() -> None:
    base = small_config()
    assert changed_keys(base, small_config(checkpoint__every=5, data__workers=1, log__every=3)) == []
    assert changed_keys(base, small_config(optimizer__lr=0.5)) == ["optimizer.lr: 0.01 saved, 0.5 now"]
    assert changed_keys(base, small_config(runtime__strategy="hybrid", runtime__shard_ranks=2)) == []
    # A run may be extended; fewer steps squeeze a cosine, but not a constant rate.
    assert changed_keys(base, small_config(steps=40)) == []
    assert changed_keys(base, small_config(steps=15)) == ["steps: 20 saved, 15 now"]
    constant = {"optimizer__decay": "constant"}
    assert changed_keys(small_config(**constant), small_config(steps=15, **constant)) == []


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    load_config(recipe, {"data.source": "clips"})


def test_there_are_recipes() -> None:
    assert len(list(RECIPES.glob("*.yaml"))) >= 2

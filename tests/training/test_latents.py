"""Training on a cache of latents and sampling prompts from the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from tests.codecs.tiny import make_codec, make_text
from tests.latents.clips import make_clips, make_encoders
from vdiff_fast import data
from vdiff_fast.cli import main
from vdiff_fast.codecs import load_codec, load_text
from vdiff_fast.latents import Bucket, CacheError, LatentDataset
from vdiff_fast.training import Trainer, load_checkpoint, load_run
from vdiff_fast.training import config as configuration
from vdiff_fast.training.build import build_model
from vdiff_fast.training.latents import flow_shift_of

_DIT = {"patch": [1, 2, 2], "width": 32, "depth": 2, "heads": 2, "positions": "rope", "qk_norm": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vae/, text/, cache/ with buckets of 5 and 9 frames, and run/ of four steps with roles of known frames."""
    folder = tmp_path_factory.mktemp("latent_runs")
    make_clips(folder / "clips")
    make_encoders(folder)
    arguments = [
        "cache", str(folder / "clips"), "--cache-dir", str(folder / "cache"), "--codec", str(folder / "vae"), "--text",
        str(folder / "text"), "--captions", str(folder / "clips" / "captions.csv"), "--bucket", "5x32x32", "--bucket",
        "9x32x32", "--device", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    Trainer(_config(folder, **{"sample.every": 4, "diffusion.masks": {"first": 1}}), folder / "run").fit()
    return folder


def _config(folder: Path, **overrides: Any) -> configuration.TrainConfig:
    values = {
        "data.source": str(folder / "cache"), "model.name": "dit-tiny", "model.changes": _DIT, "steps": 4,
        "batch_size": 2, "seed": 3, "optimizer.warmup_steps": 0, "sample.every": 0, "sample.count": 2,
        "sample.steps": 2, "log.plot_every": 0, "checkpoint.every": 2, "diffusion.schedule": "flow",
        "diffusion.target": "flow", "diffusion.continuous_time": True, "diffusion.label_dropout": 0.3,
        "runtime.device": "cpu",
    }  # fmt: skip
    return configuration.from_mapping(configuration.with_overrides({}, values | overrides))


def test_a_run_trains_both_buckets_samples_and_resumes_to_the_bit(made: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (made / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["loss"] < 10 for row in rows)
    for suffix in (".gif", ".mp4", ".png"):
        assert (made / "run" / "samples" / "step_00000004").with_suffix(suffix).is_file()
    whole = load_checkpoint(made / "run" / "checkpoints" / "step_00000004")
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    (tmp_path / "run" / "checkpoints" / "latest").unlink()
    trainer = Trainer(None, tmp_path / "run", resume=True)
    assert trainer.step == 2
    trainer.fit()
    again = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000004")
    for name, tensor in whole.model.items():
        assert torch.equal(tensor, again.model[name]), name


def test_a_batch_is_normalised_draws_anew_and_drops_captions(made: Path, tmp_path: Path) -> None:
    trainer = Trainer(_config(made), tmp_path / "run")
    dataset = LatentDataset(made / "cache")
    raw = dataset.collate([dataset[0]] * 64)
    batch, later = trainer.objective.prepare(raw, 0), trainer.objective.prepare(raw, 64)
    assert batch.context is not None
    assert batch.context_mask is not None
    z = batch.x0 / torch.tensor(dataset.info.scale).view(-1, 1, 1, 1) + torch.tensor(dataset.info.shift).view(
        -1, 1, 1, 1
    )
    deviations = (z - raw["mean"]) / (0.5 * raw["logvar"]).exp()
    assert abs(float(deviations.mean())) < 0.05
    assert abs(float(deviations.std()) - 1) < 0.05
    assert not torch.equal(batch.x0, later.x0)
    assert torch.equal(batch.x0[32:], trainer.objective.prepare(raw, 32).x0[:32])  # by sample number
    null, seen = dataset.null_context()
    dropped = (batch.context == null).all(-1).all(-1)
    assert 8 < int(dropped.sum()) < 32
    assert torch.equal(batch.context_mask[dropped], seen.expand(int(dropped.sum()), -1))
    assert torch.equal(batch.context[~dropped], raw["context"][~dropped])


def test_what_a_caption_says_and_what_pads_it(made: Path) -> None:
    """The prediction depends on the caption's tokens, and not on what lies behind them."""
    run = load_run(made / "run", device="cpu")
    with torch.no_grad():
        for block in run.model.blocks_in_order():  # type: ignore[operator]
            if block.cross_attn is not None:
                torch.nn.init.normal_(block.cross_attn.proj.weight, std=0.3)
    x, t = torch.randn(1, 4, 2, 4, 4), torch.tensor([0.5])
    text = load_text(made / "text")
    context, mask = text.encode(["a seven moves left"])
    other, _ = text.encode(["a two moves left"])
    said = run.model(x, t, context=context, context_mask=mask)
    assert not torch.allclose(said, run.model(x, t, context=other, context_mask=mask))
    behind = torch.where(mask[..., None], context, torch.randn_like(context))
    torch.testing.assert_close(run.model(x, t, context=behind, context_mask=mask), said)


def test_prompts_become_videos_with_the_prompt_in_their_metadata(made: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a two moves left\n\na seven moves up\n")
    arguments = [
        "sample", str(made / "run"), "--out", str(tmp_path / "x.mp4"), "--prompts", str(tmp_path / "prompts.txt"),
        "--negative", "a nine moves down", "--guidance", "2", "--steps", "2", "--no-grid", "--device", "cpu",
    ]  # fmt: skip
    assert main([*arguments, "--frames", "9", "--decode-memory", "1"]) == 0
    for number, prompt in enumerate(("a two moves left", "a seven moves up")):
        with av.open(str(tmp_path / f"x_{number}.mp4")) as container:
            assert container.metadata["comment"] == prompt
            assert container.streams.video[0].frames == 9


def test_a_first_frame_stays_what_it_was(made: Path, tmp_path: Path) -> None:
    codec = load_codec(made / "vae")
    from vdiff_fast.training.latent_samples import draw_latents, known_latents, load_encoders

    run = load_run(made / "run", device="cpu")
    assert run.latents is not None
    picture = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    known = known_latents(codec, picture, 1)
    _, text = load_encoders(run.latents)
    drawn = draw_latents(
        run.model, run.schedule, run.config, run.latents, Bucket(5, 32, 32), text.encode(["a two moves up"] * 2),
        text.encode([""]), known=known, sampler="euler", steps=2,
    )  # fmt: skip
    first = codec.normalise(codec.encode(picture[:, :, :1]).mean)
    torch.testing.assert_close(drawn[:, :, :1], first.expand(2, -1, -1, -1, -1))
    data.write_png(torch.zeros(3, 32, 32, dtype=torch.uint8), tmp_path / "first.png")
    arguments = ["sample", str(made / "run"), "--out", str(tmp_path / "x.mp4"), "--steps", "1", "--device", "cpu"]
    assert main([*arguments, "--first-frame", str(tmp_path / "first.png"), "--prompt", "a two moves up"]) == 0


def test_clips_of_more_latents_have_a_larger_flow_shift(made: Path, tmp_path: Path) -> None:
    assert flow_shift_of(3.0, None, 999) == 3.0
    assert flow_shift_of(3.0, 32, 128) == 6.0
    dataset = LatentDataset(made / "cache")
    raw = dataset.collate([dataset[0]] * 256)
    times = [
        Trainer(_config(made, **{"diffusion.flow_shift_positions": n}), tmp_path / str(n)).objective.prepare(raw, 0).t
        for n in (32, 2)
    ]
    assert float(times[1].mean()) > float(times[0].mean()) + 0.1
    changes: dict[str, Any] = {"diffusion.schedule": "linear", "diffusion.target": "v"}
    linear = _config(made, **changes, **{"diffusion.continuous_time": False, "diffusion.flow_shift_positions": 8})
    with pytest.raises(ValueError, match="flow_shift are for the flow schedule"):
        Trainer(linear, tmp_path / "linear")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a " * 20], "tokens, the encoder's length is 8; shorten it"),
        (["--prompt", "a", "--frames", "6"], "6 frames: AutoencoderKLWan takes 1 + 4 k frames; use 5 or 9"),
        (["--prompt", "a", "--size", "36"], "height that is a multiple of 8; use 32 or 40"),
        (["--label", "1"], "--label: a run on latents takes --prompt"),
        (["--prompt", "a", "--codec", "{other}/vae"], "another codec (4 latent channels) than the latents were made"),
        (["--prompt", "a", "--text", "{other}/text"], "another text encoder (width 24, 8 tokens)"),
        (["--prompt", "a", "--codec", "{other}/absent"], "no such folder"),
        (["--prompt", "a", "--decode-memory", "0"], "decode-memory"),
    ],
)
def test_bad_prompts_shapes_and_encoders_are_errors_before_anything_is_written(
    made: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_codec("AutoencoderKL", tmp_path / "vae")
    make_text(tmp_path / "text", width=24)
    given = [word.replace("{other}", str(tmp_path)) for word in arguments]
    out = tmp_path / "x.mp4"
    assert main(["sample", str(made / "run"), "--out", str(out), "--steps", "1", "--device", "cpu", *given]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_model_or_a_cache_that_does_not_fit(made: Path, tmp_path: Path) -> None:
    info = LatentDataset(made / "cache").info
    with pytest.raises(CacheError, match="the model has in_channels 8, the cache has 4 latent channels"):
        build_model(_config(made, **{"model.changes": {**_DIT, "in_channels": 8}}), latents=info)
    with pytest.raises(CacheError, match="context_dim 24, the cache has 16 channels of the text's embeddings"):
        build_model(_config(made, **{"model.changes": {**_DIT, "context_dim": 24}}), latents=info)
    shutil.copytree(made / "cache", tmp_path / "cache")
    header = json.loads((tmp_path / "cache" / "latents.json").read_text())
    header["info"]["codec_fingerprint"] = "0" * 32
    (tmp_path / "cache" / "latents.json").write_text(json.dumps(header))
    shutil.copytree(made / "run", tmp_path / "run")
    other = _config(tmp_path, **{"sample.every": 4, "diffusion.masks": {"first": 1}})
    with pytest.raises(CacheError, match="was trained on a cache of another codec"):
        Trainer(other, tmp_path / "run", resume=True, force=True)

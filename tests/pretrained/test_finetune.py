"""Fine-tuning diffusers' denoisers: losses, adapters in diffusers' files and back, conventions, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.codecs.tiny import make_codec, make_text
from tests.latents.clips import make_clips
from tests.pretrained.tiny import NAMES, make_pipeline
from vdiff_fast.cli import main
from vdiff_fast.latents import CacheError, LatentDataset
from vdiff_fast.pretrained import FAMILIES, PretrainedError, load_pretrained, parse_lora
from vdiff_fast.training import ConfigError, Trainer, load_run
from vdiff_fast.training import config as configuration

LORA = "rank=4,targets=to_q,to_v"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cache/ of clips of three latents, and a folder per denoiser."""
    folder = tmp_path_factory.mktemp("finetune")
    make_clips(folder / "clips", [(3, 32, 32)] * 4)
    make_codec("AutoencoderKL", folder / "vae")
    make_text(folder / "text")
    arguments = [
        "cache", str(folder / "clips"), "--cache-dir", str(folder / "cache"), "--codec", str(folder / "vae"), "--text",
        str(folder / "text"), "--captions", str(folder / "clips" / "captions.csv"), "--frames", "3", "--size", "32",
        "--device", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    for name in NAMES:
        make_pipeline(name, folder / name)
    return folder


def _config(folder: Path, name: str, **overrides: Any) -> configuration.TrainConfig:
    values = {
        "data.source": str(folder / "cache"), "model.name": f"diffusers:{folder / name}", "steps": 3, "batch_size": 2,
        "seed": 3, "optimizer.warmup_steps": 0, "optimizer.lr": 1e-3, "sample.every": 0, "log.every": 1,
        "log.plot_every": 0, "runtime.device": "cpu", "ema.decay": 0.5,
    }  # fmt: skip
    return configuration.from_mapping(configuration.with_overrides({}, values | overrides))


def _losses(run: Path) -> Tensor:
    return torch.tensor([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])


def _inputs(folder: Path) -> dict[str, Tensor]:
    dataset = LatentDataset(folder / "cache")
    batch = dataset.collate([dataset[0], dataset[1]])
    x = torch.randn(batch["mean"].shape, generator=torch.Generator().manual_seed(7))
    return {"x": x, "context": batch["context"], "context_mask": batch["context_mask"]}


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("name", NAMES)
def test_patched_trains_as_unpatched(name: str, lora: str | None, made: Path, tmp_path: Path) -> None:
    runs = {}
    for patched in (True, False):
        run = tmp_path / str(patched)
        trainer = Trainer(_config(made, name, **{"model.lora": lora, "model.patched": patched}), run)
        trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.fit()
        runs[patched] = _losses(run)
        changed = [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])]
        assert trained > 0
        assert changed
        assert lora is None or all("lora_" in key for key in changed)
    assert len(runs[True]) == 3
    torch.testing.assert_close(runs[True], runs[False], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "LatteTransformer3DModel"])
@torch.no_grad()
def test_an_adapter_loads_in_diffusers_pipeline_and_back(name: str, made: Path, tmp_path: Path) -> None:
    with torch.enable_grad():
        # At this rate three steps change what the model predicts by more than rounding.
        Trainer(_config(made, name, **{"model.lora": LORA, "optimizer.lr": 0.1}), tmp_path / "run").fit()
    trained = load_run(tmp_path / "run", device="cpu").model
    given = _inputs(made)
    t = torch.tensor([0.3, 0.8]) if FAMILIES[name].flow else torch.tensor([300, 800])
    expected = trained(t=t, **given)
    pipeline = _pipeline(name, made / name)
    pipeline.load_lora_weights(str(tmp_path / "run" / "diffusers"))
    network = pipeline.unet if FAMILIES[name].part == "unet" else pipeline.transformer
    plain = load_pretrained(made / name, patched=False, compression=trained.compression)
    assert float((expected - plain.eval()(t=t, **given)).norm() / expected.norm()) > 1e-3
    plain.network = network.eval()
    torch.testing.assert_close(plain(t=t, **given), expected, rtol=1e-4, atol=1e-5)
    # And back: the file starts another adapter.
    lora = parse_lora(f"weights={tmp_path / 'run' / 'diffusers'}")
    again = load_pretrained(made / name, lora=lora, compression=trained.compression).eval()
    torch.testing.assert_close(again(t=t, **given), expected, rtol=1e-4, atol=1e-5)
    assert any(parameter.requires_grad for parameter in again.parameters())


def _pipeline(name: str, folder: Path) -> Any:
    family = FAMILIES[name]
    network = getattr(diffusers, name).from_pretrained(folder / family.part)
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, family.part: network}
    if name == "UNetMotionModel":
        parts["motion_adapter"] = None
    scheduler = getattr(diffusers, "DDIMScheduler" if not family.flow else "FlowMatchEulerDiscreteScheduler")()
    return getattr(diffusers, family.pipeline)(scheduler=scheduler, **parts)


def test_an_adapted_pipeline_gives_the_frames_that_the_run_gives(made: Path, tmp_path: Path) -> None:
    name = "WanTransformer3DModel"
    Trainer(_config(made, name, **{"model.lora": LORA, "optimizer.lr": 0.1}), tmp_path / "run").fit()
    from vdiff_fast.latents import Bucket
    from vdiff_fast.training.latent_samples import draw_latents

    run, given = load_run(tmp_path / "run", device="cpu"), _inputs(made)
    assert run.latents is not None
    text = given["context"][:1], given["context_mask"][:1]
    negative = given["context"][1:], given["context_mask"][1:]
    noise = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = draw_latents(
        run.model, run.schedule, run.config, run.latents, Bucket(3, 32, 32), text, negative, guidance=3.0,
        sampler="euler", steps=3, spacing="linspace", latents=noise,
    )  # fmt: skip
    pipeline = _pipeline(name, made / name)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {
        "prompt_embeds": text[0], "negative_prompt_embeds": negative[0], "num_inference_steps": 3,
        "guidance_scale": 3.0, "height": 32, "width": 32, "num_frames": 9, "output_type": "latent",
    }  # fmt: skip
    plain = pipeline(latents=noise.clone(), **options).frames
    pipeline.load_lora_weights(str(tmp_path / "run" / "diffusers"))
    adapted = pipeline(latents=noise.clone(), **options).frames
    torch.testing.assert_close(ours, adapted, rtol=1e-4, atol=1e-4)
    assert float((plain - adapted).abs().max()) > 1e-2


@torch.no_grad()
def test_lattes_adapter_loads_in_peft(made: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    name = "LatteTransformer3DModel"
    with torch.enable_grad():
        Trainer(_config(made, name, **{"model.lora": LORA, "optimizer.lr": 0.1}), tmp_path / "run").fit()
    given, t = _inputs(made), torch.tensor([300, 800])
    expected = load_run(tmp_path / "run", device="cpu").model(t=t, **given)
    folder = str(tmp_path / "run" / "diffusers")
    network = diffusers.LatteTransformer3DModel.from_pretrained(made / name / "transformer")
    plain = load_pretrained(made / name, patched=False).eval()
    plain.network = PeftModel.from_pretrained(network, folder).base_model.model.eval()
    torch.testing.assert_close(plain(t=t, **given), expected, rtol=1e-4, atol=1e-5)
    again = load_pretrained(made / name, lora=parse_lora(f"weights={folder}")).eval()
    torch.testing.assert_close(again(t=t, **given), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_whole_model_is_written_for_diffusers(made: Path, tmp_path: Path) -> None:
    name = "LTXVideoTransformer3DModel"
    with torch.enable_grad():
        Trainer(_config(made, name), tmp_path / "run").fit()
    written = load_pretrained(tmp_path / "run" / "diffusers").eval()
    trained, given = load_run(tmp_path / "run", device="cpu"), _inputs(made)
    assert trained.latents is not None
    written.compression = trained.latents.compression
    t = torch.tensor([0.3, 0.8])
    torch.testing.assert_close(written(t=t, **given), trained.model(t=t, **given))


def test_conventions_are_the_models_own(made: Path) -> None:
    wan = _config(made, "WanTransformer3DModel").diffusion
    assert (wan.schedule, wan.target, wan.continuous_time, wan.flow_shift) == ("flow", "flow", True, 3.0)
    assert _config(made, "WanTransformer3DModel", **{"diffusion.flow_shift": 5.0}).diffusion.flow_shift == 5.0
    cog = _config(made, "CogVideoXTransformer3DModel").diffusion
    assert (cog.schedule, cog.target, cog.timesteps, cog.continuous_time) == ("model", "v", 1000, False)
    assert _config(made, "UNetMotionModel").diffusion.target == "noise"
    with pytest.raises(ConfigError, match=r"diffusion\.target noise is not that of .*, flow; leave it out"):
        _config(made, "WanTransformer3DModel", **{"diffusion.target": "noise"})
    with pytest.raises(ConfigError, match="takes no known frames"):
        _config(made, "WanTransformer3DModel", **{"diffusion.masks": {"first": 1}})


def test_bad_folders_and_adapters(made: Path, tmp_path: Path) -> None:
    for folder, message in (
        (made / "absent", "no such folder"),
        (made / "clips", "holds no config.json, transformer/ or unet/"),
        (made / "vae", "is a AutoencoderKL; known are WanTransformer3DModel"),
        (made / "UNetMotionModel" / "scheduler", "so it is no denoiser's folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            configuration.from_mapping({"data": {"source": "x"}, "model": {"name": f"diffusers:{folder}"}})
    diffusers.UNetMotionModel.from_pretrained(made / "UNetMotionModel" / "unet").save_pretrained(tmp_path / "alone")
    with pytest.raises(ConfigError, match=r"no scheduler/ beside it; give the whole pipeline's folder"):
        _config(tmp_path, "alone")
    for text in ("rank=0", "rank=x", "size=4", "rank=4,8", "to_q"):
        with pytest.raises(PretrainedError, match="lora"):
            parse_lora(text)
    assert parse_lora("rank=8,alpha=4,targets=to_q,to_k").targets == ("to_q", "to_k")
    with pytest.raises(PretrainedError, match="lora nothing: Target modules"):
        load_pretrained(made / "WanTransformer3DModel", lora=parse_lora("targets=nothing"))
    with pytest.raises(PretrainedError, match="lora "):
        load_pretrained(made / "WanTransformer3DModel", lora=parse_lora(f"weights={tmp_path}"))
    with pytest.raises(ValueError, match="is trained on latents"):
        Trainer(_config(made, "WanTransformer3DModel", **{"data.source": "moving-digits"}), tmp_path / "run")
    make_pipeline("WanTransformer3DModel", tmp_path / "wide", text_dim=24)
    wide = _config(tmp_path, "wide", **{"data.source": str(made / "cache")})
    with pytest.raises(CacheError, match="the model has context_dim 24, the cache has 16"):
        Trainer(wide, tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""Caching captioned clips: contents, resuming, ranks, buckets, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.codecs.tiny import CAPTIONS, make_codec, make_text
from tests.latents.clips import make_clips, make_encoders
from vdiff_fast import data, latents
from vdiff_fast.cli import main
from vdiff_fast.codecs import load_codec, load_text
from vdiff_fast.latents import Bucket, LatentDataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/, vae/, text/ and a cache of two clips per shard."""
    folder = tmp_path_factory.mktemp("latents")
    make_clips(folder / "clips")
    make_encoders(folder)
    assert main(_command(folder, folder / "cache")) == 0
    return folder


def _command(folder: Path, cache: Path, *more: str) -> list[str]:
    return [
        "cache", str(folder / "clips"), "--cache-dir", str(cache), "--codec", str(folder / "vae"), "--text",
        str(folder / "text"), "--captions", str(folder / "clips" / "captions.csv"), "--bucket", "5x32x32", "--bucket",
        "9x32x32", "--shard-clips", "2", "--device", "cpu", *more,
    ]  # fmt: skip


def _contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.iterdir())}


def test_items_are_what_codec_and_encoder_give(made: Path) -> None:
    dataset = LatentDataset(made / "cache")
    codec, text = load_codec(made / "vae"), load_text(made / "text")
    assert len(dataset) == 5
    assert [tuple(item["bucket"]) for item in dataset.items] == [
        (5, 32, 32), (5, 32, 32), (9, 32, 32), (5, 32, 32), (9, 32, 32)
    ]  # fmt: skip
    for index in (0, 2):
        item = dataset[index]
        video = data.decode(made / "clips" / item["file"], layout="CTHW").frames
        moments = codec.encode(data.to_unit_range(video[None]))
        torch.testing.assert_close(item["mean"], moments.mean[0])
        torch.testing.assert_close(item["logvar"], moments.logvar[0])
        context, mask = text.encode([CAPTIONS[index]])
        assert item["caption"] == CAPTIONS[index]
        torch.testing.assert_close(item["context"], context[0][mask[0]])
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch["mean"].shape == (2, 4, 2, 4, 4)
    torch.testing.assert_close(batch["context"], text.encode(batch["caption"]).context)
    assert torch.equal(batch["context_mask"], text.encode(batch["caption"]).mask)
    null, seen = dataset.null_context()
    torch.testing.assert_close(null, text.encode([""]).context)
    assert seen.sum() == 1


def test_a_killed_run_goes_on_and_two_ranks_equal_one(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _contents(made / "cache")
    shutil.copytree(made / "cache", tmp_path / "killed")
    (tmp_path / "killed" / "shard_000001.safetensors").unlink()
    with pytest.raises(latents.CacheError, match=r"1 of 3 shards are not written yet .*it goes on where it stopped"):
        LatentDataset(tmp_path / "killed")
    kept = (tmp_path / "killed" / "shard_000000.safetensors").stat().st_mtime_ns
    assert main(_command(made, tmp_path / "killed")) == 0
    assert (tmp_path / "killed" / "shard_000000.safetensors").stat().st_mtime_ns == kept
    assert _contents(tmp_path / "killed") == whole
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main(_command(made, tmp_path / "ranks")) == 0
    assert _contents(tmp_path / "ranks") == whole


def test_bad_clips_are_skipped_with_count_and_limit(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "clips", tmp_path / "clips")
    for name in ("vae", "text"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "clips" / "clip_1.mp4").write_bytes(b"no video")
    assert main(_command(tmp_path, tmp_path / "strict")) == 1
    assert "1 of 5 skipped, 20 %; limit 5 %" in capsys.readouterr().err
    assert main(_command(tmp_path, tmp_path / "cache", "--limit", "0.5")) == 0
    out = capsys.readouterr().out
    assert "skipped: clip_1.mp4" in out
    assert "1 of 5 skipped, 20 %; limit 50 %" in out
    dataset = LatentDataset(tmp_path / "cache")
    assert [item["file"] for item in dataset.items] == ["clip_0.mp4", "clip_2.mp4", "clip_3.mp4", "clip_4.mp4"]
    assert torch.equal(dataset[0]["mean"], LatentDataset(made / "cache")[0]["mean"])


def test_captions_beside_clips_and_in_json_lines(made: Path, tmp_path: Path) -> None:
    folder = make_clips(tmp_path / "clips", [(5, 32, 32)] * 2)
    videos = data.find_videos(folder)
    for number, video in enumerate(videos):
        video.with_suffix(".txt").write_text(f" a two  moves\n{('left', 'up')[number]} ")
    expected = {videos[0]: "a two moves left", videos[1]: "a two moves up"}
    assert latents.read_captions(videos, folder) == expected
    lines = tmp_path / "captions.jsonl"
    lines.write_text(
        '{"path": "clip_1.mp4", "text": "a two moves up"}\n{"path":"clip_0.mp4","text":"a two moves left"}'
    )
    assert latents.read_captions(videos, folder, lines) == expected


def test_bad_captions_name_the_clip_and_the_way_out(tmp_path: Path) -> None:
    folder = make_clips(tmp_path / "clips", [(5, 32, 32)] * 2)
    videos, table = data.find_videos(folder), folder / "captions.csv"
    table.write_text("file,caption\nclip_0.mp4,a two moves left\n")
    with pytest.raises(latents.CaptionError, match=r"1 of 2 clips have no caption \(clip_1.mp4\): each needs a row"):
        latents.read_captions(videos, folder, table)
    assert list(latents.read_captions(videos, folder, table, missing="skip")) == videos[:1]
    with pytest.raises(latents.CaptionError, match=r"2 of 2 clips have no caption.* each needs a .txt beside it"):
        latents.read_captions(videos, folder, missing="skip")
    table.write_text("file,caption\nclip_0.mp4,\n")
    with pytest.raises(latents.CaptionError, match=r"clip_0.mp4: the caption is empty"):
        latents.read_captions(videos, folder, table)
    table.write_text("name,words\nclip_0.mp4,a\n")
    with pytest.raises(latents.CaptionError, match=r"row 1: needs a file .* got name, words"):
        latents.read_captions(videos, folder, table)


def test_another_codec_encoder_or_caption_does_not_mix_with_a_cache(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _contents(made / "cache")
    for name in ("clips", "vae", "text"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "vae").unlink()
    make_codec("AutoencoderKL", tmp_path / "vae")
    assert main(_command(tmp_path, made / "cache")) == 1
    assert "codec_fingerprint" in capsys.readouterr().err
    with pytest.raises(
        latents.CacheError, match=r"another codec \(4 latent channels\) than the latents were made with"
    ):
        latents.check_encoders(LatentDataset(made / "cache").info, load_codec(tmp_path / "vae"))
    make_text(tmp_path / "wide", width=24)
    with pytest.raises(latents.CacheError, match=r"another text encoder \(width 24, 8 tokens\)"):
        latents.check_encoders(LatentDataset(made / "cache").info, text=load_text(tmp_path / "wide"))
    assert main(_command(made, made / "cache", "--fps", "4")) == 1
    assert "fps: None saved, 4.0 now" in capsys.readouterr().err
    assert main(_command(made, tmp_path / "new", "--bucket", "6x32x32")) == 1
    assert "6 frames: AutoencoderKLWan takes 1 + 4 k frames; use 5 or 9" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert _contents(made / "cache") == before


def test_buckets_of_the_data_and_of_a_video() -> None:
    videos = [(40, 720, 1280), (40, 720, 1280), (12, 480, 640), (40, 640, 360)]
    buckets = latents.suggested_buckets(videos, 17, 64, (4, 16))
    assert buckets == [Bucket(17, 80, 48), Bucket(17, 48, 80), Bucket(5, 48, 80)]
    assert all((b.frames - 1) % 4 == 0 and b.height % 16 == b.width % 16 == 0 for b in buckets)
    assert latents.choose_bucket(buckets, 40, 720, 1280) == Bucket(17, 48, 80)
    with pytest.raises(latents.BucketError, match="3 frames < 5, the shortest bucket"):
        latents.choose_bucket([Bucket(5, 8, 8)], 3, 8, 8)
    with pytest.raises(latents.BucketError, match="give FRAMESxHEIGHTxWIDTH"):
        latents.parse_bucket("17x32")


def test_batches_are_of_one_bucket_and_resume_exactly(made: Path) -> None:
    dataset = LatentDataset(made / "cache")
    loader = data.loader(dataset, 2, seed=1, rank=0, world_size=1)
    batches = iter(loader)
    seen = [next(batches) for _ in range(6)]  # two epochs of two batches of the first bucket, one of the second
    shapes = {tuple(batch["mean"].shape[1:]) for batch in seen}
    assert shapes == {(4, 2, 4, 4), (4, 3, 4, 4)}
    assert {i for batch in seen[:3] for i in batch["index"].tolist()} == set(range(5))
    again = data.loader(dataset, 2, seed=1, rank=0, world_size=1)
    for _ in range(4):
        again.sampler.advance()
    state = again.state_dict()
    resumed = data.loader(dataset, 2, seed=1, rank=0, world_size=1)
    resumed.load_state_dict(state)
    assert next(iter(resumed))["index"].tolist() == seen[4]["index"].tolist()
    # Two ranks take the halves of the same batches.
    ranks = [dataset.sampler(1, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    for number, batch in enumerate(seen):
        assert [rank.keys(number)[0].item for rank in ranks] == batch["index"].tolist()
    with pytest.raises(data.SamplerStateError, match=r"buckets of \[5, 2\] clips saved"):
        resumed.load_state_dict(state | {"buckets": [5, 2]})


def test_a_cache_names_folders_that_are_found_from_anywhere(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    info = latents.LatentInfo.of(load_codec("vae"), load_text("text"), (Bucket(5, 32, 32),))
    assert (info.codec, info.text) == (str((made / "vae").resolve()), str((made / "text").resolve()))
    assert latents.LatentInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info

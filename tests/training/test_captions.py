"""The recipe from captions to clips, in small: every part runs, and the reader reads."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tools.captions import clips, judge
from tools.captions.__main__ import make
from vdiff_fast import data


def test_the_reader_reads_what_was_drawn_and_not_what_was_not() -> None:
    sprites, captions = clips.sprites(), clips.all_captions()
    videos = torch.stack(
        [
            clips.clip(sprites[i // 4], way, data.Draw(7, 0, i))
            for i, way in enumerate(caption.split()[-1] for caption in captions)
        ]
    )
    drawn = data.to_unit_range(videos)
    scores = judge.score(drawn, captions, sprites)
    assert scores["digits_right_in_frames"] == scores["ways_right"] == 1.0
    other = judge.score(drawn, captions[5:] + captions[:5], sprites)
    assert other["digits_right_in_frames"] == 0.0
    assert other["ways_right"] == 0.0


def test_the_recipe_runs_from_clips_to_scores(tmp_path: Path) -> None:
    given = argparse.Namespace(
        out=tmp_path, clips=40, codec_steps=2, text_steps=40, steps=2, sampling_steps=1, guidance=2.0, seed=0,
        set=["runtime.device=cpu", "batch_size=2", "sample.every=0", "model.changes.depth=2", "model.changes.width=48"],
    )  # fmt: skip
    report = make(given)
    assert report["text"]["result"] > 0.5
    assert 0 <= report["scores"]["prompts"]["digits_right_in_frames"] <= 1
    for name in ("captions.gif", "contact.png", "prompts/video_39.mp4", "run/checkpoints/latest"):
        assert (tmp_path / name).is_file(), name

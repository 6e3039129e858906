"""Long videos: the same for any batch size, number of ranks and length; shared end frames; nothing made twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.diffusion.long_helpers import FRAME, OPTIONS, PLAN, SCHEDULE, long_video, masked_dit, masked_unet
from vdiff_fast import layout
from vdiff_fast.diffusion import (
    ConditionError,
    Guidance,
    Noise,
    SegmentError,
    interpolate,
    long_video_plan,
    sample,
    sample_autoregressive,
    sample_long,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> Any:
    return masked_unet()


@pytest.fixture(scope="module")
def video(model: Any) -> Tensor:
    return long_video(model)


class Counted(torch.nn.Module):
    """The model, counting its calls and the samples of each."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config, self.sizes = model, model.config, []
        self.modulations = model.modulations

    def forward(self, x: Tensor, t: Tensor, **inputs: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.model(x, t, **inputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.model.state_dict(*args, **kwargs)


def test_shape_layout_and_range(video: Tensor) -> None:
    assert video.shape == (1, 2, PLAN.frames, 8, 8)
    assert video.dtype == torch.float32
    assert layout.is_channels_last(video)
    assert bool(torch.isfinite(video).all())
    assert float(video.std()) > 0.1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 16])
def test_any_batch_size_gives_the_same_bits(model: Any, video: Tensor, batch_size: int) -> None:
    assert torch.equal(long_video(model, batch_size=batch_size), video)


def test_without_a_fixed_batch_sizes_agree_up_to_rounding(model: Any, video: Tensor) -> None:
    for batch_size in (1, 5):
        other = long_video(model, batch_size=batch_size, fixed_batch=None)
        torch.testing.assert_close(other, video, rtol=0, atol=1e-4)


def test_calls_have_the_fixed_size_and_leave_the_model_in_its_mode(model: Any) -> None:
    counted = Counted(model).train()
    long_video(counted, batch_size=3, fixed_batch=2)
    # Levels of 1, 3 and 9 clips, batches of 3, calls of 2, each for two steps.
    assert counted.sizes == [2] * 2 * (1 + 2 + 3 * 2)
    assert counted.training


def test_seeds_differ_and_a_shorter_plan_is_the_beginning(model: Any, video: Tensor) -> None:
    assert not torch.equal(long_video(model, seed=4), video)
    for length in (1, 4, 11, 20):
        short = long_video(model, long_video_plan(4, 3, length=length))
        assert torch.equal(short, video[:, :, :length])


def test_neighbours_share_their_end_frame_and_known_frames_stay(model: Any, video: Tensor, tmp_path: Path) -> None:
    assert torch.equal(long_video(model, out=tmp_path), video)
    for level in range(PLAN.levels):
        clips = [load_file(tmp_path / f"level_{level}" / f"{s.index:08d}.safetensors")["frames"]
                 for s in PLAN.segments(level)]  # fmt: skip
        for a, b in pairwise(clips):
            assert torch.equal(a[:, -1], b[:, 0])
        for segment, clip in zip(PLAN.segments(level), clips, strict=True):
            assert torch.equal(clip, video[0][:, list(segment.frames)])


def test_a_clip_is_the_sample_of_its_number_under_its_condition(model: Any, video: Tensor) -> None:
    """The second clip of the last level, drawn by hand: number 1 + 3 + 1."""
    frames = list(list(PLAN.segments(2))[1].frames)
    known = torch.zeros(1, 2, 4, 8, 8)
    known[:, :, [0, 3]] = video[:, :, [frames[0], frames[3]]]
    mask = torch.zeros(1, 1, 4, 8, 8)
    mask[:, :, [0, 3]] = 1
    with torch.no_grad():
        clip = sample(
            model,
            (1, 2, 4, 8, 8),
            SCHEDULE,
            seed=Noise(3, sample_offset=5),
            cond=torch.cat([known, mask], 1),
            **OPTIONS,
        )
    torch.testing.assert_close(video[:, :, frames[1:3]], clip[:, :, 1:3], rtol=0, atol=1e-4)


def test_a_given_first_frame_is_kept_and_matters(model: Any, video: Tensor) -> None:
    frame = torch.rand(FRAME) * 2 - 1
    begun = long_video(model, first_frame=frame)
    assert torch.equal(begun[0, :, 0], frame)
    assert not torch.equal(begun[:, :, 1:], video[:, :, 1:])


def test_labels_reach_every_clip() -> None:
    model = masked_unet(num_classes=3)
    with_label = [long_video(model, y=torch.tensor([label]), guidance=2.0) for label in (0, 1)]
    assert not torch.equal(*with_label)
    assert torch.equal(long_video(model, y=torch.tensor([1]), guidance=2.0, batch_size=3), with_label[1])


@pytest.mark.parametrize("make", [masked_unet, masked_dit])
def test_a_context_is_projected_once_a_batch_and_the_bits_stay(make: Any) -> None:
    """All clips have one context: one call of each projection for every batch of clips, here one per level."""
    model, calls = make(context_dim=6), []
    layer = next(m for name, m in model.named_modules() if name.endswith("cross_attn.kv"))
    layer.register_forward_hook(lambda *_: calls.append(1))
    options: dict[str, Any] = {"context": torch.randn(1, 5, 6), "guidance": Guidance(uncond={}), "fixed_batch": 3}
    video = long_video(model, batch_size=9, **options)
    assert len(calls) == PLAN.levels
    assert torch.equal(long_video(model, batch_size=2, **options), video)
    assert not torch.equal(long_video(model, batch_size=2, **options | {"context": torch.randn(1, 5, 6)}), video)


def test_a_transformer_makes_long_videos_too() -> None:
    model = masked_dit()
    video = long_video(model)
    assert video.shape == (1, 2, PLAN.frames, 8, 8)
    assert torch.equal(long_video(model, batch_size=2), video)
    keys = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        between = interpolate(model, keys, SCHEDULE, clip_frames=4, **OPTIONS)
    assert torch.equal(between[0, :, ::3], keys)
    with pytest.raises(ConditionError, match=r"4 frames are not a multiple of the 3 .* clips of 3 or 6"):
        long_video(masked_dit(patch=(3, 2, 2)))


def test_nothing_is_made_twice_and_progress_counts_all(
    model: Any, video: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_video(model, out=tmp_path)
    files = sorted(tmp_path.glob("level_*/*"))
    assert len(files) == PLAN.clips
    assert [path.name for path in tmp_path.rglob(".writing*")] == []
    for path in (tmp_path / "level_1" / "00000001.safetensors", tmp_path / "level_2" / "00000008.safetensors"):
        path.unlink()
    counted = Counted(model)
    again = long_video(counted, out=tmp_path, fixed_batch=4, progress=True, seed=3)
    assert torch.equal(again, video)
    assert counted.sizes == [4] * 2 * 2
    assert "13/13" in capsys.readouterr().err


RUN = """
import sys, time, torch
import torch.distributed as dist
from tests.diffusion.long_helpers import long_video, masked_unet
from vdiff_fast.diffusion.long import files as segment_files

torch.set_num_threads(1)
out, slow = sys.argv[1], float(sys.argv[2])
if len(sys.argv) > 3:
    dist.init_process_group("gloo")
save = segment_files.SegmentFiles.save
def slowly(self, *arguments):
    save(self, *arguments)
    time.sleep(slow)
segment_files.SegmentFiles.save = slowly
video = long_video(masked_unet(), out=out, batch_size=2)
rank = dist.get_rank() if dist.is_initialized() else 0
torch.save(video, f"{out}_rank{rank}.pt")
if dist.is_initialized():
    dist.destroy_process_group()
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_killed_in_the_middle_it_goes_on_with_the_same_bits(tmp_path: Path, video: Tensor) -> None:
    out = tmp_path / "segments"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(out), "0.2"], cwd=ROOT, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while len(list(out.glob("level_2/0*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob("level_*/0*")}
    assert 1 + 3 + 2 <= len(kept) < PLAN.clips
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(out), "0"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    whole = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "whole"), "0"], cwd=ROOT, env=ENVIRONMENT, timeout=120
    )
    assert whole.returncode == 0
    assert torch.equal(torch.load(f"{out}_rank0.pt"), torch.load(tmp_path / "whole_rank0.pt"))


def test_two_ranks_give_the_bits_of_one(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), "0", "gloo"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "one"), "0"], cwd=ROOT, env=ENVIRONMENT, timeout=120
    )
    assert one.returncode == 0
    expected = torch.load(tmp_path / "one_rank0.pt")
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"two_rank{rank}.pt"), expected)
    for path in sorted((tmp_path / "one").glob("level_*/0*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_interpolation_keeps_the_frames_it_was_given(model: Any, tmp_path: Path) -> None:
    keys = torch.rand(2, 5, 8, 8) * 2 - 1
    options: dict[str, Any] = {"clip_frames": 4, "seed": 3, "out": tmp_path} | OPTIONS
    with torch.no_grad():
        video = interpolate(model, keys, SCHEDULE, **options)
        assert video.shape == (1, 2, 13, 8, 8)
        assert torch.equal(video[0, :, ::3], keys)
        assert torch.equal(interpolate(model, keys, SCHEDULE, batch_size=1, **(options | {"out": None})), video)
        with pytest.raises(SegmentError, match="interpolated"):
            interpolate(model, keys.flip(1), SCHEDULE, **options)
        with pytest.raises(ConditionError, match="at least 2 frames"):
            interpolate(model, keys[:, :1], SCHEDULE, **options)


@pytest.mark.parametrize(("frames", "overlap"), [(3, 2), (12, 2), (13, 1), (9, 3)])
def test_autoregressive_clips_go_on_from_the_last_frames(model: Any, tmp_path: Path, frames: int, overlap: int) -> None:
    start = torch.rand(2, 4, 8, 8) * 2 - 1
    options: dict[str, Any] = {"clip_frames": 4, "overlap": overlap, "start": start, "seed": 3} | OPTIONS
    counted = Counted(model)
    with torch.no_grad():
        video = sample_autoregressive(counted, frames, SCHEDULE, out=tmp_path, **options)
        assert video.shape == (1, 2, frames, 8, 8)
        assert torch.equal(video[0, :, : min(frames, 4)], start[:, :frames])
        clips = max(0, -(-(frames - 4) // (4 - overlap)))
        assert counted.sizes == [1] * 2 * clips
        counted.sizes.clear()
        assert torch.equal(sample_autoregressive(counted, frames, SCHEDULE, out=tmp_path, **options), video)
        assert counted.sizes == []


def test_a_folder_of_another_video_is_refused(model: Any, tmp_path: Path) -> None:
    plan = long_video_plan(4, 2)
    long_video(model, plan, out=tmp_path)
    for changes, named in (
        ({"steps": 3}, "steps: 2 saved, 3 now"), ({"seed": 5}, "seed: 3 saved, 5 now"),
        ({"fixed_batch": 2}, "fixed_batch: 4 saved, 2 now"), ({"first_frame": torch.zeros(FRAME)}, "first_frame"),
    ):  # fmt: skip
        with pytest.raises(SegmentError, match=named):
            long_video(model, plan, out=tmp_path, **changes)
    with pytest.raises(SegmentError, match=r"model: .* saved"):
        long_video(masked_unet(num_classes=2), plan, out=tmp_path)
    long_video(model, long_video_plan(4, 2, length=7), out=tmp_path)
    file = tmp_path / "level_1" / "00000001.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(SegmentError, match=r"00000001\.safetensors: cannot be read .* remove it"):
        long_video(model, plan, out=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_frame": torch.zeros(2, 16, 16)}, r"first_frame is \(2, 16, 16\), .* = \(2, 8, 8\); resize"),
        ({"frame_shape": (1, 8, 8)}, r"cond_channels=3\).* need cond_channels=2"),
        ({"frame_shape": (8, 8)}, r"frame_shape must be \(C, H, W\), got \(8, 8\)"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"fixed_batch": 0}, "fixed_batch must be at least 1, or None"),
        ({"y": torch.zeros(2, dtype=torch.int64)}, r"y is for one video, .* got \(2,\)"),
    ],
)
def test_inputs_that_do_not_fit(model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        long_video(model, **changes)


def test_models_that_cannot_make_it() -> None:
    plain = masked_unet(cond_channels=0, condition_injection="input")
    with pytest.raises(ConditionError, match=r"built without known frames .*--masks global,local"):
        long_video(plain)
    with pytest.raises(ConditionError, match="clips of 9 frames > 8 learned positions; use clips of 8 or fewer"):
        long_video(masked_unet(), long_video_plan(9, 2))
    with pytest.raises(ConditionError, match=r"overlap must be within \[1, 3\]"):
        sample_autoregressive(masked_unet(), 9, SCHEDULE, start=torch.zeros(2, 4, 8, 8), clip_frames=4, overlap=4)
    with pytest.raises(ConditionError, match=r"start must be .* n >= overlap 3, got \(2, 2, 8, 8\)"):
        sample_autoregressive(masked_unet(), 9, SCHEDULE, start=torch.zeros(2, 2, 8, 8), clip_frames=4, overlap=3)
    with pytest.raises(ConditionError, match="frames must be at least 1"):
        sample_autoregressive(masked_unet(), 0, SCHEDULE, start=torch.zeros(2, 4, 8, 8), clip_frames=4, overlap=3)


def test_a_plain_function_is_a_model() -> None:
    """Without a config nothing can be checked: it is believed. The condition arrives as it was given."""
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor, *, cond: Tensor) -> Tensor:
        seen.append(cond)
        return x * 0.1

    video = sample_long(model, long_video_plan(3, 2), SCHEDULE, frame_shape=(1, 4, 4), steps=1, target="v", clip=1.0)
    assert video.shape == (1, 1, 5, 4, 4)
    assert not seen[0].any()
    assert torch.equal(seen[1][0, :1, 0], video[0, :, 0])
    assert torch.equal(seen[1][0, :1, 2], video[0, :, 2])
    assert seen[1][0, 1].flatten(1).mean(1).tolist() == [1.0, 0.0, 1.0]

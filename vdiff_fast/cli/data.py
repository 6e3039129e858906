"""`vdiff-fast check-data` and `vdiff-fast cache`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from vdiff_fast._files import printable, write_text
from vdiff_fast.cli.options import parse_size


def _progress(items: Iterator[Any], total: int) -> Iterator[Any]:
    return iter(tqdm(items, total=total, unit="file", leave=False))


def _spec(frames: int, size: str, stride: int, fps: float | None, deinterlace: bool = False) -> Any:
    from vdiff_fast import data

    side = parse_size(size)
    return data.ClipSpec(
        frames, (side, side) if isinstance(side, int) else side, stride=stride, fps=fps, deinterlace=deinterlace
    )


MaxMissing = Annotated[
    float, typer.Option(min=0, max=1, help="Share of a file's frames that may be missing (data.max_missing).")
]
MaxCorrupt = Annotated[
    float, typer.Option(min=0, max=1, help="Share of a file's frames that may be damaged (data.max_corrupt).")
]


def check_data(
    paths: Annotated[list[Path], typer.Argument(help="Video files, or folders of them.")],
    frames: Annotated[int | None, typer.Option(min=1, help="A video with fewer frames is bad.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Every stride-th frame is used.")] = 1,
    fps: Annotated[float | None, typer.Option(help="Rate that videos are resampled to.")] = None,
    limit: Annotated[float, typer.Option(min=0, max=1, help="Share of bad files above which training stops.")] = 0.05,
    max_missing: MaxMissing = 0.02,
    max_corrupt: MaxCorrupt = 0.0,
    problems: Annotated[bool, typer.Option("--problems", help="List only files with a remark.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the report here, too.")] = None,
) -> None:
    """Decode every file from end to end and say what is wrong with it; exit 1 if training would stop."""
    from vdiff_fast import data

    missing = [printable(path) for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such file or folder")
    spec = _spec(frames, "1", stride, fps) if frames else None
    tolerance = data.Tolerance(max_missing, max_corrupt)
    report = data.check_videos(paths, spec=spec, tolerance=tolerance, limit=limit, progress=_progress)
    print(report.format(only_problems=problems))
    if json_out is not None:
        write_text(json_out, json.dumps(report.to_json(), indent=1) + "\n")
    if not report.ok:
        raise typer.Exit(1)


def cache(
    source: Annotated[Path, typer.Argument(help="Folder of videos.")],
    cache_dir: Annotated[Path, typer.Option(help="Folder for decoded frames; give it to train, too.")],
    size: Annotated[str, typer.Option(help="Side, or HxW, that will be trained with.")] = "32",
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip; shorter videos are left out.")] = 16,
    stride: Annotated[int, typer.Option(min=1, help="Every stride-th frame is used.")] = 1,
    fps: Annotated[float | None, typer.Option(help="Rate that videos are resampled to.")] = None,
    limit: Annotated[float, typer.Option(min=0, max=1, help="Share of bad files that stops.")] = 0.05,
    max_missing: MaxMissing = 0.02,
    max_corrupt: MaxCorrupt = 0.0,
    deinterlace: Annotated[bool, typer.Option("--deinterlace", help="Make interlaced frames whole.")] = False,
    codec: Annotated[
        Path | None, typer.Option(help="Folder of an autoencoder: cache latents and embeddings instead of frames.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="With --codec: folder of a text encoder and tokenizer.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="With --codec: .csv or .jsonl of captions; else clip.txt beside clip.mp4.")
    ] = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option(help="With --codec: FRAMESxHEIGHTxWIDTH, repeatedly, or auto; --frames and --size if left out."),
    ] = None,
    text_length: Annotated[int | None, typer.Option(min=1, help="With --codec: tokens of a prompt.")] = None,
    text_padding: Annotated[
        str,
        typer.Option(help="With --codec: masked (Wan, Latte), encoded (LTX), seen (CogVideoX, AnimateDiff)."),
    ] = "masked",
    encode_memory: Annotated[
        int | None, typer.Option(min=1, help="With --codec: MiB that encoding may need; sets chunks and tiles.")
    ] = None,
    shard_clips: Annotated[int, typer.Option(min=1, help="With --codec: clips of one file.")] = 64,
    skip_uncaptioned: Annotated[
        bool, typer.Option("--skip-uncaptioned", help="With --codec: leave out clips without a caption.")
    ] = False,
    device: Annotated[str, typer.Option(help="With --codec: auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="With --codec: fp32, bf16 or fp16 of both encoders.")] = "fp32",
) -> None:
    """Decode a folder once to training resolution, or with --codec cache latents and embeddings of captioned clips."""
    from vdiff_fast import data

    if codec is not None:
        from vdiff_fast.cli.latents import cache_latents

        if stride != 1 or deinterlace:
            raise ValueError("--stride and --deinterlace are for frames; give --fps for the rate of latents' clips")
        return cache_latents(
            source, cache_dir, codec, text, captions, buckets=bucket, frames=frames, size=size, fps=fps, limit=limit,
            tolerance=data.Tolerance(max_missing, max_corrupt), text_length=text_length, memory=encode_memory,
            text_padding=text_padding,
            shard_clips=shard_clips, skip_uncaptioned=skip_uncaptioned, device=device, precision=precision,
        )  # fmt: skip
    if text is not None or captions is not None or bucket:
        raise ValueError("--text, --captions and --bucket are for latents: give --codec, too")

    spec = _spec(frames, size, stride, fps, deinterlace)
    tolerance = data.Tolerance(max_missing, max_corrupt)
    folder = data.VideoFolder(
        source, spec, cache_dir=cache_dir, skip_limit=limit, tolerance=tolerance, progress=_progress
    )
    for _ in tqdm(folder.build_cache(), total=len(folder.videos), unit="file", leave=False):
        pass
    size_mib = data.FrameCache(cache_dir).size_bytes() / 2**20
    print(f"{len(folder.videos)} files, {size_mib:.1f} MiB in {cache_dir}; {folder.skip_summary()}")

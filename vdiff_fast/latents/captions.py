"""The captions of a folder of clips: a CSV or JSON Lines file, or a text file beside each clip."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

_FILE_KEYS = ("file", "path", "video", "file_name", "filename")
_CAPTION_KEYS = ("caption", "text", "prompt")
Missing = Literal["error", "skip"]


class CaptionError(ValueError):
    """Captions that are missing, empty or cannot be read; the message names clips and says what would work."""


def read_captions(
    videos: Sequence[Path], root: Path, captions: Path | None = None, *, missing: Missing = "error"
) -> dict[Path, str]:
    """The caption of each clip, in the order of the clips.

    Args:
        videos: the clips.
        root: the folder that names in a file of captions are relative to.
        captions: a .csv with a header, or a .jsonl, whose rows have a file (file, path, video, file_name) and a caption
            (caption, text, prompt); None reads clip.txt beside clip.mp4.
        missing: what to do about clips without a caption: raise, or leave them out.

    Raises:
        CaptionError: a file that cannot be read or has other columns, an empty caption, clips without one, or none
            left.
    """
    found = dict(_sidecars(videos)) if captions is None else _from_file(captions, root)
    where = "a .txt beside it" if captions is None else f"a row in {captions.name}"
    matched = {video: found[key] for video in videos if (key := video.resolve()) in found}
    empty = [video.name for video, text in matched.items() if not text.strip()]
    if empty:
        raise CaptionError(f"{_some(empty)}: the caption is empty; write one, or remove the clip")
    absent = [video.name for video in videos if video not in matched]
    if absent and (missing == "error" or not matched):
        raise CaptionError(
            f"{len(absent)} of {len(videos)} clips have no caption ({_some(absent)}): each needs {where}; add them, or "
            "leave those clips out with --skip-uncaptioned"
        )
    return {video: " ".join(text.split()) for video, text in matched.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _sidecars(videos: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for video in videos:
        path = video.with_suffix(".txt")
        if path.is_file():
            yield video.resolve(), path.read_text()


def _from_file(path: Path, root: Path) -> dict[Path, str]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionError(f"{path}: cannot be read as text ({error})") from error
    if path.suffix.lower() == ".csv":
        rows: list[Any] = list(csv.DictReader(text.splitlines()))
    elif path.suffix.lower() == ".jsonl":
        rows = [_json(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        raise CaptionError(f"{path}: captions are a .csv or a .jsonl file, or a .txt beside each clip")
    return dict(_row(path, number, row, root) for number, row in enumerate(rows, 1))


def _json(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise CaptionError(f"{path}, line {number}: is no JSON ({error})") from None


def _row(path: Path, number: int, row: Any, root: Path) -> tuple[Path, str]:
    keys = row if isinstance(row, dict) else {}
    file = next((str(keys[key]) for key in _FILE_KEYS if keys.get(key)), None)
    caption = next((str(keys[key]) for key in _CAPTION_KEYS if keys.get(key) is not None), None)
    if file is None or caption is None:
        raise CaptionError(
            f"{path}, row {number}: needs a file ({', '.join(_FILE_KEYS)}) and a caption ({', '.join(_CAPTION_KEYS)}), "
            f"got {', '.join(map(str, keys)) or 'neither'}"
        )
    return (root / file).resolve(), caption

"""Find the videos below a folder, each file once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_SUFFIXES = ".mp4 .m4v .mov .avi .mkv .webm .gif .apng .mpg .mpeg .wmv .flv .ogv .ts .m2ts .mts .3gp .y4m"
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())


def find_videos(root: str | os.PathLike[str]) -> list[Path]:
    """Every file below `root` whose name ends like a video's, sorted by path; hidden files and folders are left out.

    Links are followed, and a file or folder that can be reached by several names (symbolic links, hard links, a link to
    a folder above) is taken once: under its own name before a link's, then under the first name.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such file or folder")
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    folders = [root]
    while folders:
        # Links to folders wait until the folders with names of their own have been walked.
        links: list[Path] = []
        for folder in sorted(folders):
            found += _walk(folder, seen, links)
        folders = links
    return sorted(unique_files(sorted(found)))


def unique_files(paths: Iterable[Path]) -> list[Path]:
    """Each file once, whatever it is called; a path that does not exist stays, so that its reader can say so."""
    kept: dict[object, Path] = {}
    for path in paths:
        identity = _identity(path)
        key: object = path if identity is None else identity
        if key not in kept or (kept[key].is_symlink() and not path.is_symlink()):
            kept[key] = path
    return list(kept.values())


def _walk(top: Path, seen: set[tuple[int, int]], links: list[Path]) -> list[Path]:
    """Videos below `top` without following links to folders, which are collected in `links`."""
    found = []
    for name, subfolders, files in os.walk(top):
        folder = Path(name)
        identity = _identity(folder)
        if identity is None or identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        visible = sorted(name for name in subfolders if not name.startswith("."))
        links += [folder / name for name in visible if (folder / name).is_symlink()]
        subfolders[:] = [name for name in visible if not (folder / name).is_symlink()]
        found += [folder / name for name in sorted(files) if not name.startswith(".") and is_video_name(name)]
    return found


def is_video_name(name: str) -> bool:
    """Whether a file's name ends like a video's."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file that a path leads to; None where it leads nowhere."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino

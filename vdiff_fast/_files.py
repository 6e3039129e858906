"""Files that are whole or absent, readable by whom the umask allows, and errors that name the file.

A result is written under a temporary name beside its own, flushed to the disk and renamed: nobody ever reads half of
it, and a full disk leaves nothing behind. Writers of other libraries tell a full disk in words of their own
("unexpected position"): here it is an `OSError` with the disk's own number and the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Leftovers of a killed process begin with this.
WRITING = ".writing-"


def printable(path: str | bytes | os.PathLike[Any]) -> str:
    """The path as one line for any terminal: line breaks, controls and bytes that are not UTF-8 are escaped."""
    text = os.fsdecode(path)
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # A byte that is no UTF-8 comes as U+DC80 to U+DCFF (PEP 383).
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def flush(path: str | os.PathLike[str]) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors_of(path: str | os.PathLike[str], temporary: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Raise what the disk refuses inside as an `OSError` that names `path`, whichever library met it.

    An `OSError` that names another file than `temporary`, and every other error, passes unchanged.
    """
    try:
        yield
    except Exception as error:
        number = _disk_error(error, os.fspath(temporary or path))
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _disk_error(error: BaseException, path: str) -> int | None:
    """The number of the operating system's error behind an exception about `path`."""
    if isinstance(error, OSError):
        named = error.filename is None or os.fspath(error.filename).removeprefix("file:") == path
        # FFmpeg has numbers of its own beside the system's.
        return error.errno if named and error.errno in errno.errorcode else None
    # Rust's libraries, safetensors among them, tell the number in their text.
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def _create(path: Path) -> int:
    """Make an empty file as the umask allows, and return its mode."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the same folder, with the same suffix, that becomes `path` if the body raises nothing.

    The file gets the mode that the umask allows, also where a writer puts a private file in its place.

    Raises:
        OSError: the disk is full or refuses otherwise; it names `path`.
    """
    path = Path(path)
    temporary = path.parent / f"{WRITING}{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
    with disk_errors_of(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            mode = _create(temporary)
            yield temporary
            os.chmod(temporary, mode)
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place if the body raises nothing, and is removed if it does.

    A folder that is there already is replaced. A process that is killed leaves `path` as it was, or absent only while
    the old folder bears the temporary name.

    Raises:
        OSError: the disk is full or refuses otherwise; it names the file as it would lie below `path`.
    """
    path = Path(path)
    temporary = path.with_name(f"{WRITING}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        flush(temporary)
        _replace_folder(temporary, path)
        flush(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        below = os.fspath(error.filename or "")
        if not below.startswith(os.fspath(temporary)):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path) + below[len(os.fspath(temporary)) :]) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _replace_folder(new: Path, final: Path) -> None:
    if final.exists():
        old = final.with_name(f"{WRITING}old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        os.rename(new, final)
        shutil.rmtree(old)
    else:
        os.rename(new, final)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """A text file in UTF-8, whole or as it was before."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """A file of these bytes, whole or as it was before."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Contiguous CPU tensors as a safetensors file, whole or as it was before."""
    from safetensors.torch import save_file

    with whole_file(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata) if metadata else None)


def save_pickle(path: str | os.PathLike[str], content: Any) -> None:
    """What `torch.save` writes, whole or as it was before."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        target = _Target(file)
        try:
            torch.save(content, target)  # type: ignore[arg-type]
        except RuntimeError as error:
            if target.error is None:
                raise
            raise target.error from error


class _Target:
    """What `torch.save` writes into: it remembers the disk's error, of which torch tells only a wrong position."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()

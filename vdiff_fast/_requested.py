"""Which backend was asked for by name: for the whole process, or inside a `with` block of one thread.

Traced code reads it as well: what a thread asked for lies in a `threading.local`, whose attributes torch.compile guards
in the thread that calls the compiled function. Context variables cannot be traced.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

BACKENDS = ("reference", "cpu", "triton", "cuda", "sdpa", "xformers")
_NOT_ASKED = ""
# The entry of torch's own thread-local state that autograd hands to the threads in which it runs a GPU's backward.
_INHERITED = "vdiff_fast.requested"


def checked(name: str | None) -> str | None:
    """The backend's name, None for "auto".

    Raises:
        ValueError: the name is no backend.
    """
    if name in (None, "", "auto"):
        return None
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose from auto, {', '.join(BACKENDS)}")
    return name


@dataclass(eq=False)
class _Setting:
    """One call of `use_backend`: a statement, or the `block` of a `with` statement."""

    name: str | None
    ops: tuple[str, ...] | None
    block: bool


@dataclass(eq=False)
class _Answers:
    """What a list of settings comes to: `by_op` for the ops named last, `every` for all others."""

    every: str | None = _NOT_ASKED
    by_op: dict[str, str | None] = field(default_factory=dict)

    @staticmethod
    def of(settings: list[_Setting]) -> _Answers:
        every: str | None = _NOT_ASKED
        by_op: dict[str, str | None] = {}
        for setting in settings:
            if setting.ops is None:
                every, by_op = setting.name, {}
            else:
                by_op.update(dict.fromkeys(setting.ops, setting.name))
        return _Answers(every, by_op)


class _Settings:
    """Settings in the order in which they were made. Readers see `answers`, which is replaced as a whole."""

    def __init__(self, settings: list[_Setting]) -> None:
        self.replace(settings)

    def replace(self, settings: list[_Setting]) -> None:
        self.settings = settings
        self.answers = _Answers.of(settings)


class _ThisThread(threading.local):
    def __init__(self) -> None:
        # An attribute of the class would be read without a guard that an instance hides it.
        self.asked = _Settings([])


_this_thread = _ThisThread()
_process = _Settings([_Setting(checked(os.environ.get("VDIFF_FAST_BACKEND")), None, block=False)])
# Reentrant, because the end of an object can come in the middle of a change.
_lock = threading.RLock()
_forget = getattr(torch._C, "_remove_obj_from_tls", None)  # torch 2.13


def requested(op: str) -> str | None:
    """The backend asked for by name for this op; None for auto."""
    mine = _this_thread.asked
    answers = mine.answers
    if not mine.settings and not torch.compiler.is_compiling() and torch._C._is_key_in_tls(_INHERITED):
        answers = torch._C._get_obj_in_tls(_INHERITED)
    if op in answers.by_op:
        return answers.by_op[op]
    if answers.every != _NOT_ASKED:
        return answers.every
    everywhere = _process.answers
    return everywhere.by_op.get(op, everywhere.every)


def _guard() -> AbstractContextManager[Any]:
    """Nobody else changes what any thread asked for; traced code takes no lock."""
    return nullcontext() if torch.compiler.is_compiling() else _lock


def _change(asked: _Settings, settings: list[_Setting]) -> None:
    """Replace what a thread asked for, and what threads that run its backward inherit."""
    asked.replace(settings)
    if torch.compiler.is_compiling() or asked is not _this_thread.asked:
        return
    if settings or _forget is None:
        torch._C._stash_obj_in_tls(_INHERITED, asked.answers)
    elif torch._C._is_key_in_tls(_INHERITED):
        _forget(_INHERITED)


def _without_traced(settings: list[_Setting], statement: _Setting) -> list[_Setting]:
    """Traced code makes no object that could end: the statement of its last run gives way, or they would add up."""
    last = settings[-1] if settings and torch.compiler.is_compiling() else None
    repeated = last is not None and not last.block and (last.name, last.ops) == (statement.name, statement.ops)
    return settings[:-1] if repeated else settings


def _close(asked: _Settings, block: _Setting) -> None:
    """End a block, and the statements in it."""
    start = len(asked.settings) - 1 - asked.settings[::-1].index(block)
    end = start + 1
    while end < len(asked.settings) and not asked.settings[end].block:
        end += 1
    statements = asked.settings[start + 1 : end]
    _change(asked, asked.settings[:start] + asked.settings[end:])
    if statements:
        _process.replace([s for s in _process.settings if s not in statements])


def _tell_every_thread(asked: _Settings, statement: _Setting) -> None:
    """The statement, with those made before it in its thread, holds for the process: for good outside every block."""
    if statement not in asked.settings:
        return
    end = asked.settings.index(statement) + 1
    known = _process.settings
    made = [s for s in asked.settings[:end] if not s.block and s not in known]
    if any(s.block for s in asked.settings[:end]):
        _process.replace([*known, *made])
        return
    for setting in made:
        known = [] if setting.ops is None else [s for s in known if s.ops != setting.ops]
        known = [*known, setting]
    _process.replace(known)
    _change(asked, asked.settings[end:])


class use_backend:
    """Ask for a backend by name, for good or for a `with` block.

    >>> vf.use_backend("reference")                                # every op, from here on
    >>> with vf.use_backend("triton", ops=["group_norm_silu"]):    # these ops, inside the block
    ...     y = model(x, t)

    A statement holds for every thread, and to the end of the block around it if there is one. A block holds for the
    thread that runs it and for the backward passes started in it; other threads do not see it, and blocks of several
    threads may overlap. In a thread its own blocks come before what was asked for the whole process. Compiled functions
    follow both: another backend is another graph.

    Args:
        name: "auto", "reference", "cpu", "triton", "cuda", and for attention "sdpa" or "xformers".
        ops: names of ops; all ops where it is left out.

    Raises:
        ValueError: the name is no backend. A call that the named backend cannot run raises BackendUnavailableError.
    """

    _pending = False

    def __init__(self, name: str | None, *, ops: Iterable[str] | None = None) -> None:
        named, of = checked(name), None if ops is None else tuple(ops)
        self._statement, self._block = _Setting(named, of, block=False), _Setting(named, of, block=True)
        self._asked = _this_thread.asked
        # For this thread at once. Other threads see it when the object ends without having been entered: before that
        # nobody can tell a statement from a block.
        with _guard():
            _change(self._asked, [*_without_traced(self._asked.settings, self._statement), self._statement])
        self._pending = True

    def __enter__(self) -> use_backend:
        with _guard():
            if self._pending:
                _change(self._asked, [s for s in self._asked.settings if s is not self._statement])
            self._pending = False
            self._asked = _this_thread.asked
            _change(self._asked, [*self._asked.settings, self._block])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _guard():
            # A generator may be closed in another thread than it ran in.
            mine = _this_thread.asked
            _close(mine if self._block in mine.settings else self._asked, self._block)

    def __del__(self) -> None:
        if self._pending:
            with _guard():
                _tell_every_thread(self._asked, self._statement)

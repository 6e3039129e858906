"""The typer application: commands by name, and errors as one line."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import sys

import typer

# Command, module, function; a module that is not there leaves its command out.
COMMANDS = (
    ("demo", "demo", "demo"),
    ("train", "train", "train"),
    ("sample", "sample", "sample"),
    ("long", "long", "long"),
    ("interpolate", "long", "interpolate"),
    ("check-data", "data", "check_data"),
    ("cache", "data", "cache"),
    ("parity", "parity", "parity"),
    ("bench", "bench", "bench"),
    ("doctor", "doctor", "doctor"),
    ("build", "build", "build"),
)

app = typer.Typer(
    name="vdiff-fast",
    help="Train and sample video diffusion models with fused kernels. --debug shows tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vdiff_fast._version import __version__

        print(__version__)
        raise typer.Exit


# Eager: it is answered before the missing command is.
_VERSION = typer.Option(False, "--version", help="Print the version.", callback=_print_version, is_eager=True)


@app.callback()
def _version(version: bool = _VERSION) -> None:
    """Options of the program itself."""


def _register() -> None:
    for command, module, function in COMMANDS:
        path = f"vdiff_fast.cli.{module}"
        if importlib.util.find_spec(path) is not None:
            app.command(command)(getattr(importlib.import_module(path), function))


_register()


def _message(error: Exception) -> str:
    """The error on one line; its type where the message alone would say little."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text or 'no message'}"


def run(arguments: list[str]) -> int:
    """Run one command line; see `vdiff_fast.cli.main`."""
    # A path may hold what the terminal's encoding has not: shown as an escape, not the end of a run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("vdiff_fast").setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        status = app(arguments, prog_name="vdiff-fast", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # Wrong usage: an exception of click, which typer brings along under a name of its own.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        if debug:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return 1

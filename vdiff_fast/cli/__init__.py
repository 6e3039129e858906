"""The command `vdiff-fast`. Each command is a module; its optional packages are imported when it runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

_NEEDED = {"typer": "typer", "rich": "rich", "pydantic": "pydantic", "yaml": "pyyaml"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 after an error (one line on stderr), 2 for wrong usage.

    `--debug`, anywhere, shows the traceback of an error instead.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"error: vdiff-fast needs {', '.join(missing)}: pip install 'vdiff-fast[cli]'", file=sys.stderr)
        return 1
    from vdiff_fast.cli.app import run

    return run(list(sys.argv[1:] if arguments is None else arguments))

"""Measurements that `auto` reads: which backend was fastest, by architecture, op, dtype and size.

`ops/_measured/<architecture>.json` is written by `vdiff-fast bench --tune` and committed. Its `order` maps op, dtype
and "forward" or "training" to rows [largest number of elements or null, backends from fastest to slowest]. "inductor"
in a row stands for the reference under torch.compile: it is taken in traced code only.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from vdiff_fast import _library

FOLDER = Path(__file__).resolve().parent / "ops" / "_measured"
INDUCTOR = "inductor"

# dtype and "forward" or "training" -> rows
OpOrder = dict[str, dict[str, list[tuple[int | None, tuple[str, ...]]]]]


def architecture(device: torch.device) -> str:
    """Name of a table: "cpu_avx512", "sm_90"."""
    if device.type != "cuda":
        return f"cpu_{_library.isa()}"
    properties = torch.cuda.get_device_properties(device)
    return f"sm_{properties.major}{properties.minor}"


def read(name: str) -> dict[str, OpOrder]:
    """The table of an architecture, empty where none was measured."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return {}
    return {
        op: {
            dtype: {mode: [(limit, tuple(names)) for limit, names in rows] for mode, rows in modes.items()}
            for dtype, modes in dtypes.items()
        }
        for op, dtypes in json.loads(path.read_text())["order"].items()
    }


# Read at import: traced code may read a module global, but no file.
TABLES = {path.stem: read(path.stem) for path in sorted(FOLDER.glob("*.json"))}
CPU = architecture(torch.device("cpu"))


def order(op: str, x: Tensor) -> tuple[str, ...]:
    """Backends from fastest to slowest for this call, empty where nothing was measured."""
    table = TABLES.get(CPU if x.device.type == "cpu" else architecture(x.device))
    if not table:
        return ()
    modes = table.get(op, {}).get(str(x.dtype).removeprefix("torch."))
    if modes is None:
        return ()
    training = "training" if torch.is_grad_enabled() and x.requires_grad else "forward"
    for limit, names in modes.get(training, ()):
        if limit is None or x.numel() <= limit:
            return names
    return ()

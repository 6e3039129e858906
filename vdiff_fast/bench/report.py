"""Results as JSON, and the tables and plots drawn from them."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from vdiff_fast import _library
from vdiff_fast._version import __version__
from vdiff_fast.bench.cases import COMPILE, EAGER, OURS, Row

NOT_MEASURED = "not measured"


def machine_name(device: torch.device) -> str:
    """Folder name of a machine's results: "nvidia-h200", "cpu-amd-epyc-avx2-2" (what the kernels use, threads)."""
    if device.type == "cuda":
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"cpu-{_cpu_model().lower().replace(' ', '-')}-{_library.isa() or 'no-kernels'}-{torch.get_num_threads()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    try:
        out = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
    except OSError:
        return "unknown"
    return out.stdout.strip() or "unknown"


def environment(device: torch.device) -> dict[str, Any]:
    """What a number needs beside it: machine, versions, commit, date."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    details: dict[str, Any] = {
        "machine": machine_name(device),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "vdiff_fast": __version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if device.type == "cuda":
        details |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return details


def write_json(path: Path, rows: Sequence[Row], device: torch.device, copy_gb_per_s: float, **extra: Any) -> None:
    document = {
        "environment": environment(device) | {"copy_gb_per_s": round(copy_gb_per_s, 1)},
        "rows": [row.to_dict() for row in rows],
    } | extra
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def by_group(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str, str], dict[str, dict[str, Any]]]:
    """Rows keyed by (op, case, dtype, direction), then by implementation."""
    table: dict[tuple[str, str, str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        table[row["op"], row["case"], row["dtype"], row["direction"]][row["implementation"]] = row
    return dict(table)


def ratio(group: dict[str, dict[str, Any]], peer: str) -> float | None:
    """How many times as fast ours is as a peer; None where either was not measured."""
    ours, other = group.get(OURS, {}).get("median_ms"), group.get(peer, {}).get("median_ms")
    return other / ours if ours and other else None


def geometric_mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def _cell(value: float | None, pattern: str = "{:.2f}", absent: str = "—") -> str:
    return absent if value is None else pattern.format(value)


def _peer_cell(group: dict[str, dict[str, Any]], peer: str) -> str:
    """Ours against a peer; where it has no time, whether it was wrong or cannot run; in brackets: not checked."""
    if peer not in group:
        return ""
    note = str(group[peer].get("note") or "")
    if note and not group[peer]["median_ms"]:
        return note.split(":")[0]
    cell = _cell(ratio(group, peer))
    return f"({cell})" if note else cell


def markdown_table(rows: Iterable[dict[str, Any]]) -> str:
    """One line per group of an op: our time, the ratio to each peer, GB/s, % of copy, error in units of eager's."""
    groups = by_group(rows)
    others = peers(groups.values())
    head = ["case", "dtype", "direction", "backend", "ms", "x eager", "x compile", *(f"x {p}" for p in others)]
    head += ["GB/s", "% of copy", "error / eager's"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for (_, case, dtype, direction), group in groups.items():
        ours = group.get(OURS, {})
        cells = [case, dtype, direction, ours.get("backend", "")]
        time = _cell(ours.get("median_ms"), "{:.3f}")
        if note := ours.get("note"):
            time = f"{time}, {note}" if ours.get("median_ms") else note
        cells.append(time)
        cells += [_peer_cell(group, peer) for peer in (EAGER, COMPILE, *others)]
        cells += [_cell(ours.get("gb_per_s"), "{:.1f}"), _cell(ours.get("percent_of_copy"), "{:.0f}")]
        cells.append(_cell(ours.get("error_in_eager_units")))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peers(groups: Iterable[dict[str, dict[str, Any]]]) -> list[str]:
    """Peers beside eager and compile that were measured in some group."""
    measured = {name for group in groups for name, row in group.items() if row["median_ms"]}
    return sorted(measured - {OURS, EAGER, COMPILE})


def _mean(ratios: Iterable[float | None]) -> str:
    return _cell(geometric_mean(ratios), absent=NOT_MEASURED)


def summary_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Geometric means over the shapes, one line per op, dtype and direction."""
    table = by_group(rows)
    keys = sorted({(op, dtype, direction) for op, _, dtype, direction in table})
    lines = []
    for op, dtype, direction in keys:
        chosen = [g for (o, _, dt, dr), g in table.items() if (o, dt, dr) == (op, dtype, direction)]
        speedups = {name: [ratio(g, name) for g in chosen] for name in (EAGER, COMPILE, *peers(chosen))}
        known = [r for ratios in speedups.values() for r in ratios if r]
        means = "   ".join(f"{_mean(ratios)} x {name}" for name, ratios in speedups.items())
        lines.append(
            f"{op:<28} {dtype:<9} {direction:<17} {len(chosen):>2} shapes   {means}   "
            f"worst {_cell(min(known) if known else None, absent=NOT_MEASURED)}"
        )
    return lines

"""What `vdiff_fast.patch` serves in video models of diffusers: `python -m benchmarks.coverage` (needs diffusers).

Small models with random weights on the CPU. Places are norms, activations, gated residuals and attentions over frames.
Bytes are those of every operator that is no product, convolution or attention, its inputs and outputs once, counted as
torch dispatches them in one forward: views are free, an op of this library is one operator.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vdiff_fast as vf
from vdiff_fast.bench.report import environment, machine_name
from vdiff_fast.bench.small_models import MODELS, first_tensor, in_float64

# Operators whose time is arithmetic, by the beginning of their names.
_PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product", "linear", "matmul", "upsample",
    "temporal_attention",
)  # fmt: skip
NOT_A_PLACE = "not known to attend over frames"


class _Bytes(TorchDispatchMode):
    """Counts what memory-bound operators read and write."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        storages = {t.untyped_storage().data_ptr() for t in given}
        is_view = results and all(t.untyped_storage().data_ptr() in storages for t in results)
        writes = any(argument.is_write for argument in (a.alias_info for a in func._schema.arguments) if argument)
        if not name.startswith(_PRODUCTS) and not (is_view and not writes) and not name.startswith("empty"):
            self.total += sum(map(_dense_bytes, [*given, *results]))
        return out


def _dense_bytes(t: Tensor) -> int:
    """Bytes of the elements that lie in memory: an expanded axis is read once."""
    return t.element_size() * math.prod(n for n, stride in zip(t.shape, t.stride()) if stride or n == 0)


@torch.no_grad()
def _output_and_bytes(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, int]:
    with _Bytes() as counter:
        out = first_tensor(model(**inputs))
    return out, counter.total


@torch.no_grad()
def _exact(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """The output in float64; None for a model that casts to float32 itself and then mixes the two."""
    try:
        return first_tensor(copy.deepcopy(model).double()(**in_float64(inputs)))
    except RuntimeError:
        return None


def measure(name: str) -> dict[str, Any]:
    """One row of the table."""
    model, inputs = MODELS[name].build()
    exact = _exact(model, inputs)
    plain, plain_bytes = _output_and_bytes(model, inputs)
    report = vf.patch(model)
    patched, patched_bytes = _output_and_bytes(model, inputs)
    truth = plain if exact is None else exact
    return {
        "model": name,
        "class": MODELS[name].cls,
        "served": report.served,
        "places": report.places - len(report.left.get(NOT_A_PLACE, ())),
        "ops": {op: len(names) for op, names in report.patched.items()},
        "left": {reason: len(names) for reason, names in report.left.items() if reason != NOT_A_PLACE},
        "bytes_plain": plain_bytes,
        "bytes_patched": patched_bytes,
        "error_plain": None if exact is None else float((plain - truth).norm() / truth.norm()),
        "error_patched": float((patched - truth).norm() / truth.norm()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a page."""
    lines = [
        "# What patch serves",
        "",
        (__doc__ or "").split("\n\n", 1)[1].strip(),
        "The configurations are small, so that the share of bytes differs from that of a real width. Errors are",
        "relative, in float32, against the model in float64; - where the model itself cannot run in float64, and the",
        "patched error is the difference from the plain model there. `benchmarks/coverage.py` writes this page.",
        "",
        "| model | places served | bytes saved | error, plain | error, patched | ops |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        saved = 1 - row["bytes_patched"] / row["bytes_plain"]
        plain = "-" if row["error_plain"] is None else f"{row['error_plain']:.1e}"
        ops = ", ".join(f"{op} {count}" for op, count in sorted(row["ops"].items()))
        lines.append(
            f"| {row['model']} | {row['served']} of {row['places']} | {saved:.0%} | {plain} |"
            f" {row['error_patched']:.1e} | {ops} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, nargs="*", default=list(MODELS))
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--page", default="docs/patch_coverage.md")
    given = parser.parse_args()
    device = torch.device("cpu")
    rows = [measure(name) for name in given.model]
    path = Path(given.out) / machine_name(device) / "coverage.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(device), "coverage": rows}, indent=1) + "\n")
    Path(given.page).write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

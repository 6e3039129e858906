"""`vdiff-fast parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

# Largest relative difference that rounding explains on a whole network, by dtype of the computation.
TOLERANCES = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 3e-2}


def parity(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run; else give --model.")] = None,
    model: Annotated[str | None, typer.Option(help="A preset such as unet-tiny.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips.")] = 1,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip, for --model.")] = 8,
    size: Annotated[int, typer.Option(min=1, help="Side of a frame, for --model.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each backend.")] = 3,
) -> None:
    """Fused against reference on a whole model: largest differences, time per step, bytes kept."""
    from vdiff_fast import ops
    from vdiff_fast.training import compare
    from vdiff_fast.training.objective import AUTOCAST_DTYPES

    if precision not in TOLERANCES:
        raise ValueError(f"precision {precision!r} must be one of {', '.join(TOLERANCES)}")
    if (run is None) == (model is None):
        raise ValueError("parity: give the folder of a run, or --model with a preset such as unet-tiny")
    trained, shape = _from_run(run, device) if run is not None else _from_preset(str(model), frames, size, device)
    where = trained.schedule.device
    x0 = ops.noise((batch_size, *shape), 1, device=where).clamp_(-1, 1)
    y = torch.zeros(batch_size, dtype=torch.int64, device=where) if trained.num_classes else None
    step = compare.StepUnderTest(
        trained.model, x0, trained.schedule, target=trained.config.diffusion.target, y=y,
        autocast=AUTOCAST_DTYPES.get(precision),
    )  # fmt: skip
    found = step.parity()
    print(compare.format_costs(step.costs(rounds), found))
    if not found.relative <= TOLERANCES[precision]:
        typer.echo(f"differs: {found.relative:.1e} relative > {TOLERANCES[precision]:.0e} in {precision}", err=True)
        raise typer.Exit(1)


def _from_run(run: Path, device: str) -> tuple[Any, tuple[int, ...]]:
    from vdiff_fast.training.generate import load_run

    trained = load_run(run, device=device)
    data = trained.config.data
    height, width = (data.size, data.size) if isinstance(data.size, int) else data.size
    return trained, (data.channels, data.frames, height, width)


def _from_preset(name: str, frames: int, size: int, device: str) -> tuple[Any, tuple[int, ...]]:
    """A fresh model whose weights are all drawn: layers that start at zero would hide what comes before them."""
    from vdiff_fast.training import config as configuration
    from vdiff_fast.training.build import build_model, build_schedule
    from vdiff_fast.training.distributed import choose_device
    from vdiff_fast.training.generate import TrainedRun

    config = configuration.load_config(None, {"data.source": "none", "model.name": name})
    torch.manual_seed(0)
    network = build_model(config).to(choose_device(device))
    with torch.no_grad():
        for parameter in network.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.02)
    schedule = build_schedule(config.diffusion).to(next(network.parameters()).device)
    return TrainedRun(network.eval(), schedule, config, 0, None), (3, frames, size, size)

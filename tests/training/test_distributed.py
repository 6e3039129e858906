"""Two ranks: disjoint data, and the losses of one rank with the double batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.small import small_trainer
from vdiff_fast.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 5

RANK = """
import json, sys
from pathlib import Path
import torch
from tests.training.small import Ramps, SmallNet, small_config, small_trainer
from vdiff_fast.training import distributed
from vdiff_fast.training.trainer import Trainer

run, strategy, until = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
options = dict(batch_size=2, model__changes={"dropout": 0.0}, optimizer__accumulate=2)
if strategy == "given":  # wrapped by the user, around a compiled model
    distributed.start(torch.device("cpu"))
    torch.manual_seed(3)
    model = torch.compile(SmallNet(dropout=0.0), backend="eager")
    model = torch.nn.parallel.DistributedDataParallel(model)
    trainer = Trainer(small_config(**options), run, resume=True, model=model, dataset=Ramps(), show_progress=False)
else:
    trainer = small_trainer(run, resume=True, runtime__strategy=strategy, **options)
seen, prepare = [], trainer.objective.prepare

def recorded(raw, offset):
    seen.append([raw["index"].tolist(), offset])
    return prepare(raw, offset)

trainer.objective.prepare = recorded
trainer.fit(until=until)
Path(f"{run}_rank{distributed.rank()}_{until}.json").write_text(json.dumps(seen))
distributed.stop()
"""


def two_ranks(run: Path, strategy: str, until: int) -> list[list]:
    """Run both ranks; what each was given: [items, number of the first sample] per batch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(run) + ".py"]
    Path(f"{run}.py").write_text(RANK)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(run), strategy, str(until)], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(f"{run}_rank{rank}_{until}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "given"])
def test_two_ranks_are_one_with_the_double_batch(tmp_path: Path, strategy: str) -> None:
    run = tmp_path / strategy
    first, second = two_ranks(run, strategy, until=STEPS)
    for (mine, offset), (other, other_offset) in zip(first, second, strict=True):
        assert not set(mine) & set(other)
        assert other_offset == offset + 2
    one = small_trainer(tmp_path / "one", batch_size=4, model__changes={"dropout": 0.0}, optimizer__accumulate=2)
    one.fit(until=STEPS)
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (run, tmp_path / "one")]
    assert len(losses[0]) == STEPS
    # The two halves of a batch are summed in another order: a few roundings of fp32 per step.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

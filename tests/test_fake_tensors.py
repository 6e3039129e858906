"""Tensors without values: ops and networks on the meta device and under FakeTensorMode, where memory is estimated."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vdiff_fast as vf
from tests.checks import as_tuple, fresh, run
from vdiff_fast import _library
from vdiff_fast._spec import OpSpec

CPU, META = torch.device("cpu"), torch.device("meta")
every_op = pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in vf.ops.specs()])


def _described(tensors: list[Tensor]) -> list[Any]:
    """Shape, dtype and strides; those of axes of size 1 and of empty tensors say nothing."""
    return [
        (t.shape, t.dtype, [s for s, n in zip(t.stride(), t.shape) if n > 1] if t.numel() else None) for t in tensors
    ]


@every_op
def test_ops_under_fake_tensor_mode(spec: OpSpec) -> None:
    """Forward and backward on every backend that runs here, every third sample: as the real call."""
    here = ("reference", "sdpa") if _library.CPU.reason else ("reference", "sdpa", "cpu")
    for backend in [b for b in spec.predicates if b in here]:
        for sample in itertools.islice(spec.samples(CPU, torch.float32), 0, None, 3):
            with vf.use_backend(backend, ops=[spec.name]):
                real = run(spec.function, fresh(sample), torch.float32)
                with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                    copy = fresh(sample)
                    fake = copy.map_tensors(lambda t: mode.from_tensor(t.detach()).requires_grad_(t.requires_grad))
                    outputs, gradients = run(spec.function, fake, torch.float32)
            assert _described(outputs) == _described(real[0]), (backend, sample.name)
            assert [g.shape for g in gradients] == [g.shape for g in real[1]], (backend, sample.name)


@every_op
def test_ops_on_the_meta_device(spec: OpSpec) -> None:
    """The reference's shapes and dtypes, forward and backward."""
    for real, sample in zip(spec.samples(CPU, torch.float32), spec.samples(META, torch.float32)):
        expected = as_tuple(spec.reference(*real.args, **real.kwargs))
        outputs, gradients = run(spec.function, sample, torch.float32)
        assert [(o.shape, o.dtype) for o in outputs] == [(e.shape, e.dtype) for e in expected], sample.name
        assert all(t.device == META for t in outputs + gradients)
        assert [g.shape for g in gradients] == [t.shape for t in sample.differentiable()]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rope": {"positions": "rope"},
    "everything": {
        "num_classes": 10, "context_dim": 32, "cond_channels": 4, "condition_injection": "blocks",
        "gradient_checkpointing": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("network", [vf.models.VideoUNet, vf.models.VideoDiT])
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_networks_are_built_and_trained_without_memory(kind: str, network: Any, options: dict[str, Any]) -> None:
    with FakeTensorMode() if kind == "fake" else META:
        model = network.preset("tiny", **options)
        x, t = torch.randn(2, 3, 4, 16, 16), torch.zeros(2, dtype=torch.int64)
        given: dict[str, Tensor] = {}
        if "num_classes" in options:
            given = {"y": t, "context": torch.randn(2, 5, 32), "cond": torch.randn(2, 4, 4, 16, 16)}
        prediction = model(x, t, **given)
        prediction.square().mean().backward()
        with torch.no_grad():
            assert model(x, t, **given).shape == prediction.shape == x.shape
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    # A context was given.
    assert unused == ({"null_context"} if given else set())


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "flow"])
def test_a_schedule_under_fake_tensor_mode_has_the_shapes(kind: str) -> None:
    with FakeTensorMode():
        schedule = getattr(vf.diffusion.NoiseSchedule, kind)(10)
        x = torch.randn(2, 3, 4, 8, 8)
        assert vf.ops.q_sample(x, torch.tensor([1, 2]), schedule, seed=1).shape == x.shape
    with torch.device("meta"):
        real = getattr(vf.diffusion.NoiseSchedule, kind)(10)
    assert real.betas.device == real.exact_signal.device == CPU

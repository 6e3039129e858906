"""torch's default device and dtype are the user's: nothing in the library depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

import vdiff_fast as vf
from tests.checks import as_tuple, fresh, run
from tests.models.helpers import small_dit, small_unet, steps, video
from vdiff_fast._spec import OpSpec

CPU = torch.device("cpu")


@contextmanager
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# What is made on the meta device by mistake has no values, and fails or shows.
DEFAULTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "meta": lambda: torch.device("meta"),
    "float64": _default_dtype,
}
another_default = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)


@another_default
@pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in vf.ops.specs()])
def test_ops(spec: OpSpec, default: Callable[[], AbstractContextManager[object]]) -> None:
    for backend in ("auto", "reference"):
        for sample in list(spec.samples(CPU, torch.float32))[::3]:
            given = fresh(sample)
            with vf.use_backend(backend, ops=[spec.name]):
                expected = run(spec.function, sample, torch.float32)
                with default():
                    outputs = as_tuple(spec.function(*given.args, **given.kwargs))
                    recorded = [o for o in outputs if o.requires_grad]
                    torch.autograd.backward(recorded, recorded)
            torch.testing.assert_close(list(outputs), expected[0], equal_nan=True, rtol=1e-6, atol=1e-6)
            assert all(t.grad is None or t.grad.device == CPU for t in given.differentiable())


@another_default
@pytest.mark.parametrize("make", [small_unet, small_dit])
@pytest.mark.parametrize("options", [{}, {"positions": "rope"}], ids=["positions", "rope"])
def test_networks(
    make: Callable[..., torch.nn.Module],
    options: dict[str, str],
    default: Callable[[], AbstractContextManager[object]],
) -> None:
    model = make(**options)
    x, t = video((2, 3, 4, 12, 8)), steps()
    expected = model(x, t)
    with default():
        actual = model(x, t)
        actual.square().mean().backward()
    torch.testing.assert_close(actual, expected)
    assert all(p.grad is None or p.grad.device == CPU for p in model.parameters())


@another_default
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "flow"])
def test_schedules_and_samplers(kind: str, default: Callable[[], AbstractContextManager[object]]) -> None:
    make = getattr(vf.diffusion.NoiseSchedule, kind)
    schedule = make()
    with default():
        other = make()
    for name, value in vars(schedule).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(other, name), value, equal_nan=True)
    for sampler in ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "euler", "heun"):
        target = "flow" if kind == "flow" else "v"

        def drawn(schedule: vf.diffusion.NoiseSchedule, sampler: str = sampler, target: str = target) -> torch.Tensor:
            return vf.diffusion.sample(
                lambda x, t: 0.5 * x, (1, 3, 2, 4, 4), schedule, sampler, steps=3, seed=1, target=target
            )

        expected = drawn(schedule)
        with default():
            torch.testing.assert_close(drawn(other), expected)

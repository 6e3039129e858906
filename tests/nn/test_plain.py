"""What stands in a Linear's place or hangs on a module is called, in training and without gradients."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

import vdiff_fast as vf
from tests.models.helpers import small_dit, small_unet, steps, video
from vdiff_fast.models.video_unet import Level
from vdiff_fast.nn.plain import is_plain, why_not_plain
from vdiff_fast.training.sharding import shard

SHAPE = (1, 3, 4, 8, 8)
UNET: dict[str, Any] = {"num_classes": 3, "context_dim": 8, "cond_channels": 4, "grid": True, "positions": "rope"}
DIT: dict[str, Any] = {"num_classes": 3, "context_dim": 8, "cond_channels": 4, "positions": "rope"}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "unet": partial(small_unet, **UNET),
    "dit_divided": partial(small_dit, attention="divided", qk_norm=True, **DIT),
    "dit_joint": partial(small_dit, attention="joint", condition_injection="blocks", **DIT),
}
each_model = pytest.mark.parametrize("name", MODELS)


def inputs() -> dict[str, Any]:
    cond = video((1, 4, *SHAPE[2:]), 2)
    return {"x": video(SHAPE), "t": steps(1), "context": video((1, 5, 8), 1), "cond": cond}


def outputs(model: nn.Module) -> list[Tensor]:
    """In training, and without gradients."""
    given = inputs()
    trained = model(**given)
    with torch.no_grad():
        return [trained, model(**given)]


def assert_same(actual: list[Tensor], expected: Tensor) -> None:
    for y in actual:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if type(module) is nn.Linear]


def _is_called(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, Level))


@each_model
def test_a_hook_on_any_one_module_fires(name: str) -> None:
    model = MODELS[name]()
    expected, _ = outputs(model)
    for path, module in model.named_modules():
        if not _is_called(module):
            continue
        calls = []
        handle = module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert_same(outputs(model), expected)
        handle.remove()
        assert len(calls) >= 2, path


class _Adapter(nn.Module):
    """What LoRA libraries put in the place of a Linear."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.scale = base, nn.Parameter(torch.tensor(2.0))

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.scale


def _adapt(model: nn.Module) -> None:
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            owner, _, key = path.rpartition(".")
            setattr(model.get_submodule(owner), key, _Adapter(module))


class _Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrise(model: nn.Module) -> None:
    for linear in linears(model):
        for parameter in ("weight", "bias") if linear.bias is not None else ("weight",):
            parametrize.register_parametrization(linear, parameter, _Twice())


def _hook(model: nn.Module) -> None:
    for linear in linears(model):
        linear.register_forward_hook(lambda module, args, output: 2 * output)


def _replace_forward(model: nn.Module) -> None:
    for linear in linears(model):
        linear.forward = lambda x, call=linear.forward: 2 * call(x)  # type: ignore[method-assign]


def _subclass(model: nn.Module) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return 2 * super().forward(x)

    for linear in linears(model):
        linear.__class__ = Doubled


class _DoubledWeight(Tensor):
    """A weight that says itself what a product with it is, as quantised ones do."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not nn.functional.linear:
            return super().__torch_function__(function, types, args, kwargs or {})
        x, weight, bias = (*args, None)[:3]
        return 2 * nn.functional.linear(x, weight.as_subclass(Tensor), bias)


def _subclass_of_tensor(model: nn.Module) -> None:
    for linear in linears(model):
        linear.weight = nn.Parameter(linear.weight.detach().as_subclass(_DoubledWeight))


def _double(model: nn.Module) -> None:
    for linear in linears(model):
        for parameter in linear.parameters():
            parameter.data *= 2


@each_model
@pytest.mark.parametrize("change", [_adapt, _parametrise, _hook, _replace_forward, _subclass, _subclass_of_tensor])
def test_a_linear_that_is_doubled_by_any_means(name: str, change: Callable[[nn.Module], None]) -> None:
    model = MODELS[name]()
    doubled = copy.deepcopy(model)
    _double(doubled)
    expected, _ = outputs(doubled)
    change(model)
    actual = outputs(model)
    assert_same(actual, expected)
    if change is _adapt:
        actual[0].sum().backward()
        assert not [path for path, p in model.named_parameters() if path.endswith("scale") and p.grad is None]


@each_model
def test_pruned_weights(name: str) -> None:
    model = MODELS[name]()
    for linear in linears(model):
        prune.random_unstructured(linear, "weight", amount=0.5)
    actual = outputs(model)
    for linear in linears(model):
        prune.remove(linear, "weight")
    assert_same(actual, outputs(model)[0])


@each_model
def test_a_hook_on_all_modules_sees_every_linear(name: str) -> None:
    model, seen = MODELS[name](), set()
    handle = register_module_forward_hook(lambda module, args, output: seen.add(id(module)))
    model(**inputs())
    handle.remove()
    assert {id(linear) for linear in linears(model)} <= seen


@each_model
def test_backward_hooks_fire(name: str) -> None:
    model, calls = MODELS[name](), []
    for linear in linears(model):
        linear.register_full_backward_hook(lambda module, *_: calls.append(id(module)))
    model(**inputs()).sum().backward()
    assert set(calls) == {id(linear) for linear in linears(model)}


@each_model
def test_quantised_linears(name: str) -> None:
    model = MODELS[name]().eval()
    expected = outputs(model)[0]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with torch.no_grad():
        actual = quantised(**inputs())
    # Eight bits per weight.
    assert (actual - expected).norm() < 0.1 * expected.norm()


@each_model
def test_offloaded_parameters(name: str) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model = MODELS[name]().eval()
    expected = outputs(model)[1]
    accelerate.cpu_offload(model, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs()), expected)
    schedule = vf.diffusion.NoiseSchedule.linear()
    drawn = vf.diffusion.sample(model, SHAPE, schedule, steps=2, context=inputs()["context"])
    assert torch.isfinite(drawn).all()


@each_model
def test_hooks_fire_in_every_step_of_a_sampling_run(name: str) -> None:
    """A block with a hook is not passed by; a Linear alone may be called once for all steps."""
    model, schedule = MODELS[name]().eval(), vf.diffusion.NoiseSchedule.linear()
    options: dict[str, Any] = {"context": inputs()["context"], "cond": inputs()["cond"], "seed": 0, "steps": 3}
    expected = vf.diffusion.sample(model, SHAPE, schedule, **options)
    for kinds, least in ((nn.Linear, 1), (nn.Module, 3)):
        watched = [path for path, module in model.named_modules() if _is_called(module) and isinstance(module, kinds)]
        calls: list[str] = []
        handles = [
            model.get_submodule(path).register_forward_hook(lambda *_, path=path, calls=calls: calls.append(path))
            for path in watched
        ]
        actual = vf.diffusion.sample(model, SHAPE, schedule, **options)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert [path for path in watched if calls.count(path) < least] == []


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # of in-place changes, which nobody makes
@pytest.mark.parametrize("every_linear", [False, True], ids=["blocks", "linears"])
@each_model
def test_units_of_fsdp(name: str, every_linear: bool, one_rank: DeviceMesh) -> None:
    """The hooks of a unit gather its weights, and scatter them after its forward: past it lies a shard."""
    model = MODELS[name]().eval()
    expected = copy.deepcopy(model)(**inputs())
    model.to(memory_format=torch.contiguous_format)  # FSDP2 shards nothing else
    if every_linear:
        for linear in linears(model):
            fully_shard(linear, mesh=one_rank)
    shard(model, one_rank)
    actual = outputs(model)
    assert_same(actual, expected)
    actual[0].sum().backward()
    plain = MODELS[name]().eval()
    plain(**inputs()).sum().backward()
    for (path, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), path
        if q.grad is not None:
            assert (p.grad.full_tensor() - q.grad).norm() <= 1e-4 * q.grad.norm() + 1e-4, path
    schedule, options = vf.diffusion.NoiseSchedule.linear(), {"steps": 2, "context": inputs()["context"]}
    drawn = vf.diffusion.sample(model, SHAPE, schedule, **options)
    torch.testing.assert_close(drawn, vf.diffusion.sample(plain, SHAPE, schedule, **options), rtol=1e-3, atol=1e-3)


def test_compiles_whole_with_adapters() -> None:
    model = MODELS["dit_joint"]()
    _adapt(model)
    expected = outputs(model)[0]
    torch._dynamo.reset_code_caches()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs()), expected, rtol=1e-4, atol=1e-5)


def test_nobody_reads_a_layers_weights_unasked() -> None:
    """`layer.weight` of another module stands only behind a question, or where parameters are initialised."""
    unasked = []
    package = Path(vf.__file__).parent
    for path in [*(package / "nn").glob("*.py"), *(package / "models").glob("*.py"), *(package / "patch").glob("*.py")]:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef) or function.name in (
                "__init__",
                "reset_parameters",
                "weights",
            ):
                continue
            asks = {"is_plain", "computes", "_norm_is_plain"} & {
                node.id for node in ast.walk(function) if isinstance(node, ast.Name)
            }
            for node in ast.walk(function):
                read = isinstance(node, ast.Attribute) and node.attr in ("weight", "bias")
                if read and not asks and ast.unparse(node.value) != "self":
                    unasked.append(f"{path.name}: {function.name}: {ast.unparse(node)}")
    # Whose caller asked, as its docstring says.
    assert sorted(unasked) == [
        "modulated.py: _root_mean_square: norm.weight",
        "norm_silu.py: norm_with_silu: norm.bias",
        "norm_silu.py: norm_with_silu: norm.weight",
    ]


def test_the_reason_is_named() -> None:
    linear = nn.Linear(2, 2)
    assert is_plain(linear, nn.Linear)
    assert why_not_plain(linear, nn.Linear) is None
    assert why_not_plain(linear, nn.GroupNorm) == "it is a Linear, not a GroupNorm"
    handle = linear.register_forward_pre_hook(lambda *_: None)
    assert why_not_plain(linear, nn.Linear) == "it has hooks or a forward of its own"
    handle.remove()
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(type("Quantised", (Tensor,), {})))
    assert why_not_plain(linear, nn.Linear) == "its parameters are a subclass of Tensor"

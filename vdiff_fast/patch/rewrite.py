"""A forward whose runs of layers go through one function, for modules that call norm and activation themselves.

    h = self.norm(h)
    h = self.act(h)

becomes `h = run(h, self.norm, self.act)`, and so does `self.act(self.norm(h))`, with a function in the place of a
module, and with the norm at the end of an `if` before the activation. `run` decides at every call, and calls one after
the other what it cannot do better: a rewritten forward is right for every module of the class, and for versions of the
source that nobody has looked at.
"""

from __future__ import annotations
import __future__

import ast
import copy
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType
from typing import Any

from torch import nn

from vdiff_fast.patch.arithmetic import GATED, MODULATED, Arithmetic
from vdiff_fast.patch.modulated import gated, modulated
from vdiff_fast.patch.norm_silu import run

_HELPER = "_vdiff_fast_run"
# Where the layers among a helper's arguments end.
_LAYERS = {_HELPER: None, MODULATED: 2, GATED: 1}
# What a test may consist of that reads a module alone, and changes nothing.
_TEST_NODES = (
    *(ast.Attribute, ast.Name, ast.Constant, ast.Subscript, ast.List, ast.Tuple, ast.expr_context),
    *(ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop),
)
# Functions that may be SiLU by their name; whether they are is told by what they compute.
_ACTIVATIONS = ("silu", "swish", "nonlinearity", "activation")
_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


@dataclass(frozen=True)
class _Guard:
    """A condition over attributes of the module alone, and the value that it has where the branch is taken."""

    test: ast.expr
    value: bool


@dataclass(frozen=True)
class _Source:
    """A class's forward: its rewritten syntax tree, and each of its runs with the conditions around it."""

    function: FunctionType
    owner: str
    tree: ast.FunctionDef
    runs: tuple[tuple[tuple[ast.expr, ...], tuple[_Guard, ...]], ...]

    def layers(self, helper: str, module: nn.Module) -> Iterator[tuple[Any, ...]]:
        """What the calls of one helper are given behind their input, as it is in `module`."""
        tree = self.tree.body
        scope = {**self.function.__globals__, self.owner: module}
        for layers, guards in self.runs if helper == _HELPER else _runs(tree, self.owner, (), helper):
            if all(_holds(guard.test, scope) == guard.value for guard in guards):
                yield tuple(_value(layer, scope) for layer in layers)


_SOURCES: dict[type[nn.Module], _Source | None] = {}


def pairs_of(cls: type[nn.Module], module: nn.Module) -> list[tuple[Any, Any]]:
    """What the forward of `cls` calls one on the result of the other, as it is in `module`; none without a source."""
    source = _source_of(cls)
    return [] if source is None else [pair for run in source.layers(_HELPER, module) for pair in pairwise(run)]


def modulated_norms_of(cls: type[nn.Module], module: nn.Module) -> list[Any]:
    """The norms whose result the forward of `cls` modulates."""
    source = _source_of(cls)
    return [] if source is None else [norm for (norm,) in source.layers(MODULATED, module)]


def gates_of(cls: type[nn.Module], module: nn.Module) -> int:
    """How many gated residuals stand in the forward of `cls`."""
    source = _source_of(cls)
    return 0 if source is None else len(list(source.layers(GATED, module)))


def rewritten(cls: type[nn.Module]) -> Any:
    """The forward of a class that has pairs, compiled in the place of its source, so that errors name its lines."""
    source = _source_of(cls)
    if source is None:
        raise ValueError(f"the source of {cls.__name__}'s forward cannot be read")
    function = source.function
    free = dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ())))
    free |= {_HELPER: run, MODULATED: modulated, GATED: gated}
    # A function around it gives the forward its closure, `__class__` for super() among it.
    factory = ast.parse(f"def factory({', '.join(free)}):\n    return {source.tree.name}")
    factory.body[0].body.insert(0, source.tree)  # type: ignore[attr-defined]
    code = compile(
        ast.fix_missing_locations(factory), function.__code__.co_filename, "exec",
        flags=function.__code__.co_flags & _FUTURE, dont_inherit=True,
    )  # fmt: skip
    scope: dict[str, Any] = {}
    exec(code, function.__globals__, scope)
    return scope["factory"](**free)


def _source_of(cls: type[nn.Module]) -> _Source | None:
    if cls not in _SOURCES:
        _SOURCES[cls] = _read(inspect.unwrap(cls.forward))
    return _SOURCES[cls]


def _read(function: Any) -> _Source | None:
    if not isinstance(function, FunctionType):
        return None
    try:
        lines, first = inspect.getsourcelines(function)
        # Under an `if` of its own a method keeps its columns.
        tree = ast.parse("if True:\n" + "".join(lines) if lines[0][0].isspace() else "if True: pass\n" + "".join(lines))
    except (OSError, SyntaxError):
        return None
    ast.increment_lineno(tree, first - 2)
    definition = tree.body[0].body[0] if len(tree.body) == 1 else tree.body[1]  # type: ignore[attr-defined]
    if not isinstance(definition, ast.FunctionDef) or not definition.args.args or _has_private_names(definition):
        return None
    owner = definition.args.args[0].arg
    arithmetic = Arithmetic(lambda node: _is_owned(node, owner))
    rewritten_tree = _Rewriter(owner).visit(arithmetic.visit(definition))
    return _Source(function, owner, rewritten_tree, tuple(_runs(rewritten_tree.body, owner, ())))


def _has_private_names(tree: ast.AST) -> bool:
    """Names that a class body would mangle."""
    names = (getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree))
    return any(name.startswith("__") and not name.endswith("__") for name in names)


def _runs(
    statements: Iterable[ast.AST], owner: str, guards: tuple[_Guard, ...], helper: str = _HELPER
) -> Iterator[tuple[tuple[ast.expr, ...], tuple[_Guard, ...]]]:
    """The layers of every run, with the conditions around it that a module alone decides."""
    for node in statements:
        if isinstance(node, ast.If) and _asks_owner_alone(node.test, owner):
            yield from _runs(node.body, owner, (*guards, _Guard(node.test, True)), helper)
            yield from _runs(node.orelse, owner, (*guards, _Guard(node.test, False)), helper)
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == helper:
            # Behind the input stand the layers; the vectors of a norm are no layers.
            yield tuple(node.args[1 : _LAYERS[helper]]), guards
        yield from _runs(ast.iter_child_nodes(node), owner, guards, helper)


def _asks_owner_alone(test: ast.expr, owner: str) -> bool:
    """self.a, not self.a, self.kind == "b", self.kind in ("b", "c"), and such tests joined."""
    nodes = list(ast.walk(test))
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    return bool(names) and set(names) == {owner} and all(isinstance(node, _TEST_NODES) for node in nodes)


def _holds(test: ast.expr, scope: dict[str, Any]) -> bool:
    """What such a test says of a module; False where the module lacks a part that it reads."""
    expression = ast.fix_missing_locations(ast.Expression(copy.deepcopy(test)))
    try:
        return bool(eval(compile(expression, "<test>", "eval"), scope))
    except (AttributeError, IndexError, KeyError, TypeError):
        return False


class _Rewriter(ast.NodeTransformer):
    """Gathers the runs of one function, whose first parameter is `owner`."""

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def visit(self, node: ast.AST) -> Any:
        node = super().visit(node)
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, self._gathered(statements))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        outer = self._as_run(node)
        inner = None if outer is None else self._as_run(outer[0])
        return node if outer is None or inner is None else _call(inner[0], inner[1] + outer[1], node)

    def _gathered(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """`v = a(e)` and `v = b(v)`, one behind the other, become one statement."""
        done: list[ast.stmt] = []
        for statement in statements:
            last = done[-1] if done else None
            joined = None if last is None else self._joined(last, statement)
            if joined is not None:
                done[-1] = joined
            elif isinstance(last, ast.If) and any(self._joined(branch[-1], statement) for branch in _branches(last)):
                # What follows an `if` may as well stand at the end of each branch.
                for branch in _branches(last):
                    branch[:] = self._gathered([*branch, copy.deepcopy(statement)])
            else:
                done.append(statement)
        return done

    def _joined(self, first: ast.stmt, second: ast.stmt) -> ast.stmt | None:
        name = _assigned_name(first)
        if name is None or name != _assigned_name(second):
            return None
        before = self._as_run(first.value)  # type: ignore[attr-defined]
        after = self._as_run(second.value)  # type: ignore[attr-defined]
        if before is None or after is None or not (isinstance(after[0], ast.Name) and after[0].id == name):
            return None
        joined = copy.copy(second)
        joined.value = _call(before[0], before[1] + after[1], second)  # type: ignore[attr-defined]
        return joined

    def _as_run(self, value: ast.AST) -> tuple[ast.expr, list[ast.expr]] | None:
        """The input and the layers of a call of one layer, or of a run of layers."""
        if not isinstance(value, ast.Call) or value.keywords or any(isinstance(a, ast.Starred) for a in value.args):
            return None
        if isinstance(value.func, ast.Name) and value.func.id == _HELPER:
            return value.args[0], value.args[1:]
        layer = _is_owned(value.func, self.owner) or ast.unparse(value.func).split(".")[-1] in _ACTIVATIONS
        return (value.args[0], [value.func]) if layer and len(value.args) == 1 else None


def _call(x: ast.expr, layers: list[ast.expr], place: ast.AST) -> ast.Call:
    return ast.copy_location(ast.Call(ast.Name(_HELPER, ast.Load()), [x, *layers], []), place)  # type: ignore[type-var]


def _branches(choice: ast.If) -> list[list[ast.stmt]]:
    """The statements of every branch of if, elif and else; an else is made where there is none."""
    if len(choice.orelse) == 1 and isinstance(choice.orelse[0], ast.If):
        return [choice.body, *_branches(choice.orelse[0])]
    if not choice.orelse:
        choice.orelse = [ast.copy_location(ast.Pass(), choice)]
    return [choice.body, choice.orelse]


def _is_owned(node: ast.expr, owner: str) -> bool:
    """self.a, self.a.b, self.a[0]"""
    part: ast.expr = node
    while isinstance(part, ast.Attribute) or (isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant)):
        part = part.value
    return part is not node and isinstance(part, ast.Name) and part.id == owner


def _assigned_name(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None


def _value(node: ast.expr, scope: dict[str, Any]) -> Any:
    """The object of a dotted name with constant indices; None where a module lacks the part."""
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, scope), node.attr, None)
    assert isinstance(node, ast.Subscript)
    assert isinstance(node.slice, ast.Constant)
    try:
        return _value(node.value, scope)[node.slice.value]
    except (IndexError, KeyError, TypeError):
        return None

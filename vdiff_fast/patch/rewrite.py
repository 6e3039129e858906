"""A forward with `act(norm(x))` rewritten, for modules that call norm and activation from their own source.

    h = self.norm(h)
    h = self.act(h)

becomes `h = norm_then_act(self.norm, self.act, h)`, and so do `self.act(self.norm(h))` and `F.silu(self.norm(h))`, and
an activation behind an `if` whose branches end with norms.
`norm_then_act` decides at every call, and does what the source said wherever it cannot do better: a rewritten forward
is right for every module of the class, and for versions of the source that nobody has looked at.
"""

from __future__ import annotations
import __future__

import ast
import copy
import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

from vdiff_fast.patch.norm_silu import norm_then_act

_HELPER = "_vdiff_fast_norm_then_act"
_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


@dataclass(frozen=True)
class Pair:
    """A norm, and the activation that is called on its result."""

    norm: Any
    act: Any


@dataclass(frozen=True)
class _Source:
    """A class's forward: its rewritten syntax tree, and the expressions of the norms and activations that it pairs."""

    function: FunctionType
    tree: ast.FunctionDef
    sites: tuple[tuple[ast.expr, ast.expr], ...]


_SOURCES: dict[type[nn.Module], _Source | None] = {}


def pairs_of(cls: type[nn.Module], module: nn.Module) -> list[Pair]:
    """The pairs in the forward of `cls`, as they are in `module`; none where its source cannot be read."""
    source = _source_of(cls)
    found: list[Pair] = []
    if source is None:
        return found
    for norm, act in source.sites:
        scope = {**source.function.__globals__, source.tree.args.args[0].arg: module}
        try:
            found.append(Pair(_value(norm, scope), _value(act, scope)))
        except (AttributeError, KeyError, IndexError, TypeError):
            continue  # This module lacks a part that others of its class have.
    return found


def rewritten(cls: type[nn.Module]) -> Any:
    """The forward of a class that has pairs, compiled in the place of its source, so that errors name its lines."""
    source = _source_of(cls)
    if source is None or not source.sites:
        raise ValueError(f"the forward of {cls.__name__} calls no activation on a norm")
    function = source.function
    free = dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ())))
    free[_HELPER] = norm_then_act
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
    rewriter = _Rewriter(definition.args.args[0].arg)
    return _Source(function, rewriter.visit(definition), tuple(rewriter.sites))


def _has_private_names(tree: ast.AST) -> bool:
    """Names that a class body would mangle."""
    names = (getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree))
    return any(name.startswith("__") and not name.endswith("__") for name in names)


class _Rewriter(ast.NodeTransformer):
    """Replaces the pairs of one function, whose first parameter is `owner`."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.sites: list[tuple[ast.expr, ast.expr]] = []

    def visit(self, node: ast.AST) -> Any:
        node = super().visit(node)
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, self._paired(statements))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        inner = _only_argument(node)
        if isinstance(inner, ast.Call) and self._is_norm(inner) and self._is_act(node):
            return self._pair(inner, node)
        return node

    def _paired(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """`v = norm(e)` and `v = act(v)`, one behind the other, become one statement."""
        done: list[ast.stmt] = []
        for statement in statements:
            if done and self._continues(done[-1], statement):
                norm, act = done[-1].value, statement.value  # type: ignore[attr-defined]
                done[-1].value = self._pair(norm, act)  # type: ignore[attr-defined]
            elif done and isinstance(done[-1], ast.If) and self._some_branch_continues(done[-1], statement):
                self._into_branches(done[-1], statement)
            else:
                done.append(statement)
        return done

    def _some_branch_continues(self, choice: ast.If, second: ast.stmt) -> bool:
        """Whether every branch ends by assigning the name that `second` reads, one of them a norm's result."""
        ends, name = [branch[-1] for branch in _branches(choice)], _assigned_name(second)
        if name is None or any(_assigned_name(end) != name for end in ends):
            return False
        return any(self._continues(end, second) for end in ends)

    def _into_branches(self, choice: ast.If, second: ast.stmt) -> None:
        for branch in _branches(choice):
            branch[:] = self._paired([*branch, copy.deepcopy(second)])

    def _continues(self, first: ast.stmt, second: ast.stmt) -> bool:
        name = _assigned_name(first)
        if name is None or name != _assigned_name(second):
            return False
        norm, act = first.value, second.value  # type: ignore[attr-defined]
        if not (isinstance(norm, ast.Call) and isinstance(act, ast.Call)):
            return False
        argument = _only_argument(act)
        reads = isinstance(argument, ast.Name) and argument.id == name
        return reads and self._is_norm(norm) and self._is_act(act)

    def _pair(self, norm: ast.Call, act: ast.Call) -> ast.Call:
        self.sites.append((norm.func, act.func))
        helper = ast.Name(_HELPER, ast.Load())
        return ast.copy_location(ast.Call(helper, [norm.func, act.func, norm.args[0]], []), act)

    def _is_norm(self, call: ast.Call) -> bool:
        return _only_argument(call) is not None and self._is_owned(call.func)

    def _is_act(self, call: ast.Call) -> bool:
        function = ast.unparse(call.func).split(".")[-1] == "silu"
        return self._is_owned(call.func) or function

    def _is_owned(self, node: ast.expr) -> bool:
        """self.a, self.a.b, self.a[0]"""
        part: ast.expr = node
        while isinstance(part, ast.Attribute) or (
            isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant)
        ):
            part = part.value
        return part is not node and isinstance(part, ast.Name) and part.id == self.owner


def _branches(choice: ast.If) -> list[list[ast.stmt]]:
    """The statements of every branch of if, elif and else; a branch that is left out is `pass`."""
    found = [choice.body]
    if len(choice.orelse) == 1 and isinstance(choice.orelse[0], ast.If):
        return found + _branches(choice.orelse[0])
    return [*found, choice.orelse or [ast.Pass()]]


def _only_argument(call: ast.Call) -> ast.expr | None:
    """The argument of a call with one, by position; `inplace`, which changes no value, may stand beside it."""
    others = [keyword for keyword in call.keywords if keyword.arg != "inplace"]
    one = len(call.args) == 1 and not others and not isinstance(call.args[0], ast.Starred)
    return call.args[0] if one else None


def _assigned_name(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None


def _value(node: ast.expr, scope: dict[str, Any]) -> Any:
    """The object of a dotted name with constant indices."""
    if isinstance(node, ast.Name):
        return scope[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, scope), node.attr)
    assert isinstance(node, ast.Subscript)
    assert isinstance(node.slice, ast.Constant)
    return _value(node.value, scope)[node.slice.value]

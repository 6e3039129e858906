"""The syntax of modulated norms and gated residuals in a forward's source.

    h = self.norm(x) * (1 + scale) + shift        becomes  h = modulated(x, self.norm, scale, shift)
    h = h + gate * self.attn(y)                   becomes  h = gated(h, gate, self.attn(y))

A norm whose result is modulated by a later statement of the same block is called there, if nothing between the two
reads the result or changes what the norm reads.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable

MODULATED, GATED = "_vdiff_fast_modulated", "_vdiff_fast_gated"


class Arithmetic(ast.NodeTransformer):
    """Rewrites one function; `is_owned` tells the layers of its module by their expression."""

    def __init__(self, is_owned: Callable[[ast.expr], bool]) -> None:
        self.is_owned = is_owned

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, self._norms_moved_down(statements))
        result: ast.AST = super().visit(node)
        return result

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Add):
            return node
        found = self._modulation(node)
        if found is not None:
            norm, scale, shift = found
            return _call(MODULATED, [norm.args[0], norm.func, scale, shift], node)
        for product, residual in ((node.right, node.left), (node.left, node.right)):
            if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult) and _names_a_gate(product):
                return _call(GATED, [residual, product.left, product.right], node)
        return node

    def _modulation(self, node: ast.BinOp) -> tuple[ast.Call, ast.expr, ast.expr] | None:
        """The call of the norm, scale and shift in `norm(x) * (1 + scale) + shift`."""
        product = node.left
        if not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
            return None
        scale = _scale(product.right)
        norm = product.left
        return None if scale is None or not self._is_norm(norm) else (norm, scale, node.right)  # type: ignore[return-value]

    def _is_norm(self, node: ast.AST) -> bool:
        one = isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords
        return one and self.is_owned(node.func) and not isinstance(node.args[0], ast.Starred)  # type: ignore[attr-defined]

    def _norms_moved_down(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        done = list(statements)
        for first in statements:
            name, call = _assigned(first)
            if name is None or call is None or not self._is_norm(call):
                continue
            place = done.index(first)
            for at in range(place + 1, len(done)):
                if self._modulates_alone(done[at], name):
                    done[at] = _with_value_in_place(done[at], name, call)
                    del done[place]
                    break
                if _touches(done[at], {name}) or _may_change(done[at], call):
                    break
        return done

    def _modulates_alone(self, statement: ast.stmt, name: str) -> bool:
        """v = v * (1 + scale) + shift, where scale and shift do not read v."""
        target, value = _assigned(statement)
        if target != name or not isinstance(value, ast.BinOp) or not isinstance(value.op, ast.Add):
            return False
        product = value.left
        if not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
            return False
        is_value = isinstance(product.left, ast.Name) and product.left.id == name
        others = _names(product.right) | _names(value.right)
        return is_value and _scale(product.right) is not None and name not in others


def _scale(node: ast.expr) -> ast.expr | None:
    """scale of 1 + scale, scale + 1, and of (1 + scale)[..]."""
    if isinstance(node, ast.Subscript):
        inner = _scale(node.value)
        return None if inner is None else ast.copy_location(ast.Subscript(inner, node.slice, node.ctx), node)
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return None
    for one, other in ((node.left, node.right), (node.right, node.left)):
        if isinstance(one, ast.Constant) and one.value == 1:
            return other
    return None


def _names_a_gate(product: ast.BinOp) -> bool:
    return any("gate" in ast.unparse(factor) for factor in (product.left, product.right))


def _assigned(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """v and the value of `v = value`."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, statement.value
    return None, None


def _with_value_in_place(statement: ast.stmt, name: str, call: ast.expr) -> ast.stmt:
    result = copy.deepcopy(statement)
    result.value.left.left = copy.deepcopy(call)  # type: ignore[attr-defined]
    return result


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _touches(statement: ast.stmt, names: set[str]) -> bool:
    return bool(_names(statement) & names)


def _may_change(statement: ast.stmt, call: ast.expr) -> bool:
    """Whether a statement assigns to what the call reads, or works in place."""
    read = _names(call)
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)) and node.id in read:
            return True
        if isinstance(node, (ast.AugAssign, ast.Return, ast.Raise)):
            return True
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            return True
        in_place = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if in_place and node.func.attr.endswith("_"):  # type: ignore[attr-defined]
            return True
    return False


def _call(helper: str, arguments: list[ast.expr], place: ast.AST) -> ast.Call:
    return ast.copy_location(ast.Call(ast.Name(helper, ast.Load()), arguments, []), place)  # type: ignore[type-var]

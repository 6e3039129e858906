"""The pages of the section "API": one per op room, one per public module, the configuration and the command line."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Public modules and the title of their page. The ops have a page per room.
MODULES = {
    "vdiff_fast": "Backends, patch, doctor",
    "vdiff_fast.nn": "Modules",
    "vdiff_fast.models": "Models",
    "vdiff_fast.diffusion": "Diffusion",
    "vdiff_fast.training": "Training",
    "vdiff_fast.data": "Data",
    "vdiff_fast.codecs": "Codecs and text encoders",
    "vdiff_fast.latents": "Caches of latents",
    "vdiff_fast.pretrained": "Pretrained denoisers",
    "vdiff_fast.layout": "Memory layout",
}
OPS = "vdiff_fast.ops"
CONFIGURATION, COMMAND_LINE = "api/configuration.md", "api/command_line.md"


def public_names(module: ModuleType) -> list[str]:
    """What a module exports, submodules and its version aside: `__all__`, or without one, what it defines."""
    names = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if _is_defined_in(v, module)]
    return [n for n in names if not n.startswith("_") and not inspect.ismodule(getattr(module, n))]


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and hasattr(value, "__qualname__")


def home(module: ModuleType, name: str) -> str:
    """The path at which a public name is defined, where its docstring stands."""
    item = getattr(module, name)
    if hasattr(item, "__qualname__"):
        return f"{item.__module__}.{item.__qualname__}"
    # A value does not know its module: it is the one that assigns it, not one that imports it from there.
    assignment = re.compile(rf"^{name}\b[^=\n]*=", re.MULTILINE)
    holders = [m for n, m in sys.modules.items() if n.startswith(f"{module.__name__}.") and vars(m).get(name) is item]
    return next(f"{m.__name__}.{name}" for m in holders if assignment.search(inspect.getsource(m)))


def documented() -> dict[str, str]:
    """Every public name, as users import it, and the path at which it is defined."""
    modules = [importlib.import_module(name) for name in (*MODULES, OPS)]
    return {f"{m.__name__}.{name}": home(m, name) for m in modules for name in public_names(m)}


def pages() -> Iterator[tuple[str, str]]:
    """Every page: its path and its text."""
    yield "api/ops/index.md", _ops_index()
    for room in rooms():
        yield f"api/ops/{room}.md", _room_page(room)
    for name, title in MODULES.items():
        yield module_path(name), _module_page(name, title)
    yield CONFIGURATION, _configuration_page()
    yield COMMAND_LINE, _command_line_page()


def rooms() -> tuple[str, ...]:
    return tuple(importlib.import_module(OPS).ROOMS)


def module_path(name: str) -> str:
    """The page of a public module."""
    return f"api/{name.split('.')[-1]}.md"


def _entry(module: ModuleType, name: str) -> str:
    """The directive of mkdocstrings for one name, headed by the path that users write."""
    short = module.__name__.replace("vdiff_fast", "vf", 1)
    options = f"    options:\n      heading: {short}.{name}\n      toc_label: {name}\n"
    return f"::: {home(module, name)}\n{options}"


def _module_page(name: str, title: str) -> str:
    module = importlib.import_module(name)
    entries = [_entry(module, item) for item in public_names(module)]
    return "\n".join([f"# {title}\n", f"{inspect.getdoc(module)}\n", *entries])


def _spec(room: str) -> Any:
    return importlib.import_module(f"{OPS}.{room}.spec").SPEC


def _room_page(room: str) -> str:
    """One op: what it is, its backends, its functions, and where it was measured."""
    ops, spec = importlib.import_module(OPS), _spec(room)
    names = [n for n in public_names(ops) if getattr(ops, n).__module__.startswith(f"{OPS}.{room}.")]
    measured = sorted(Path("docs/performance").glob(f"*/{room}.md"))
    links = ", ".join(f"[{path.parent.name}](../../performance/{path.parent.name}/{room}.md)" for path in measured)
    facts = f"Backends: {', '.join(spec.predicates)}. Measured on: {links or 'no machine yet'}.\n"
    return "\n".join([f"# {room}\n", f"{sentence(spec.summary)}\n", facts, *(_entry(ops, name) for name in names)])


def _ops_index() -> str:
    lines = [f"| [`{room}`]({room}.md) | {_spec(room).summary} |" for room in rooms()]
    head = (
        "# Ops\n\nFunctions on tensors, in `vf.ops`. Each op has a page.\n\n| op | what it computes |\n| --- | --- |\n"
    )
    return head + "\n".join(lines) + "\n"


def sentence(text: str) -> str:
    """A summary or help text as a sentence; a name at its beginning keeps its case."""
    text = text[0].upper() + text[1:] if text.split()[0].rstrip(",:").isalpha() else text
    return text if text.endswith(".") else f"{text}."


def _configuration_page() -> str:
    """Every key of a training configuration, by section."""
    from vdiff_fast.training import config

    parts = ["# Configuration\n", "`vdiff-fast train --keys` prints the same.\n"]
    before = None
    for key, field in config.fields():
        section = key.rpartition(".")[0] or "Top level"
        if section != before:
            parts += ["", f"## {section}\n", "| key | default | what it means |", "| --- | --- | --- |"]
            before = section
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        meaning = sentence(field.description).replace("|", "\\|")
        parts.append(f"| `{key}` | `{default}` | {meaning} |")
    return "\n".join(parts) + "\n"


def _command_line_page() -> str:
    """Every command of `vdiff-fast` with its options."""
    from typer.main import get_command

    from vdiff_fast.cli.app import app

    parts = ["# Command line\n", "`vdiff-fast COMMAND --help` prints the same.\n"]
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        parts += [f"## vdiff-fast {name}\n", f"{command.help}\n", *map(_option, command.params), ""]
    return "\n".join(parts)


def _option(parameter: Any) -> str:
    """One option or argument of a command as an item of a list."""
    optional = parameter.param_type_name == "option"
    name = " / ".join([*parameter.opts, *parameter.secondary_opts]) if optional else parameter.name.upper()
    return f"- `{name}`: {sentence(parameter.help)}"

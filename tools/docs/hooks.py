"""Hooks of mkdocs: pages made from the docstrings, the navigation of pages found, links from names to their page."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Public modules and the title of their page. The ops have a page per room.
MODULES = {
    "vdiff_fast": "Backends, patch, doctor",
    "vdiff_fast.nn": "Modules",
    "vdiff_fast.models": "Models",
    "vdiff_fast.diffusion": "Diffusion",
    "vdiff_fast.training": "Training",
    "vdiff_fast.data": "Data",
    "vdiff_fast.layout": "Memory layout",
}
OPS = "vdiff_fast.ops"
_NAME_IN_CODE = re.compile(r"<code>(vf(?:\.\w+)+)(\([^<]*\))?</code>")


def public_names(module: ModuleType) -> list[str]:
    """What a module exports: classes and functions in `__all__`, or without one, those it defines."""
    names = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if _is_defined_in(v, module)]
    return [n for n in names if inspect.isclass(getattr(module, n)) or inspect.isfunction(getattr(module, n))]


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    name = getattr(value, "__name__", "_")
    return getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")


def all_public_names() -> list[str]:
    """Every public name by the path that users import it from, such as vdiff_fast.ops.noise."""
    modules = [importlib.import_module(name) for name in (*MODULES, OPS)]
    return [f"{module.__name__}.{name}" for module in modules for name in public_names(module)]


def _entry(module: ModuleType, name: str) -> str:
    """The directive of mkdocstrings for one name, which is documented where it is defined."""
    item = getattr(module, name)
    heading = f"{module.__name__.replace('vdiff_fast', 'vf', 1)}.{name}"
    return (
        f"::: {item.__module__}.{item.__qualname__}\n    options:\n      heading: {heading}\n      toc_label: {name}\n"
    )


def _module_page(name: str, title: str) -> str:
    module = importlib.import_module(name)
    entries = [_entry(module, item) for item in public_names(module)]
    return "\n".join([f"# {title}\n", f"{inspect.getdoc(module)}\n", *entries])


def _room_page(room: str) -> str:
    """One op: what it is, its backends, its functions, and where it was measured."""
    ops = importlib.import_module(OPS)
    spec = importlib.import_module(f"{OPS}.{room}.spec").SPEC
    names = [n for n in public_names(ops) if getattr(ops, n).__module__.startswith(f"{OPS}.{room}.")]
    measured = sorted(Path("docs/performance").glob(f"*/{room}.md"))
    links = ", ".join(f"[{path.parent.name}](../../performance/{path.parent.name}/{room}.md)" for path in measured)
    return "\n".join([
        f"# {room}\n",
        f"{spec.summary[0].upper()}{spec.summary[1:]}.\n",
        f"Backends: {', '.join(spec.predicates)}. Measured on: {links or 'no machine yet'}.\n",
        *(_entry(ops, name) for name in names),
    ])  # fmt: skip


def _ops_index() -> str:
    ops = importlib.import_module(OPS)
    rows = [
        f"| [`{spec.name}`]({spec.name}.md) | {spec.summary} |"
        for spec in (importlib.import_module(f"{OPS}.{room}.spec").SPEC for room in ops.ROOMS)
    ]
    head = ["# Ops\n", f"{inspect.getdoc(ops)}\n", "| op | what it computes |", "| --- | --- |"]
    return "\n".join([*head, *rows]) + "\n"


def generated_pages() -> Iterator[tuple[str, str]]:
    """Every API page: its path and its text."""
    yield "api/ops/index.md", _ops_index()
    for room in importlib.import_module(OPS).ROOMS:
        yield f"api/ops/{room}.md", _room_page(room)
    for name, title in MODULES.items():
        yield f"api/{name.split('.')[-1]}.md", _module_page(name, title)


def _api_navigation() -> list[Any]:
    rooms = [f"api/ops/{room}.md" for room in importlib.import_module(OPS).ROOMS]
    modules = [f"api/{name.split('.')[-1]}.md" for name in MODULES]
    return [modules[0], {"Ops": ["api/ops/index.md", *rooms]}, *modules[1:]]


def _performance_navigation(docs: Path) -> list[Any]:
    folder = docs / "performance"
    machines = []
    for machine in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = sorted(path for path in machine.glob("*.md") if path.stem != "index")
        pages: list[Any] = [f"performance/{machine.name}/index.md"]
        pages += [{path.stem: f"performance/{machine.name}/{path.name}"} for path in found]
        machines.append({machine.name: pages})
    return ["performance/index.md", *machines, "performance/kernel_resources.md"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of "api/" and "performance/" into the navigation."""
    found = {"api/": _api_navigation, "performance/": lambda: _performance_navigation(Path(config.docs_dir))}
    config.nav = [
        {title: found[entry]() if isinstance(entry, str) and entry in found else entry}
        for section in config.nav or []
        for title, entry in section.items()
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the API pages, which exist nowhere but in the site."""
    for path, text in generated_pages():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`vf.ops.noise` in the text becomes a link to its API page."""

    def link(match: re.Match[str]) -> str:
        identifier = match[1].replace("vf", "vdiff_fast", 1)
        return f'<autoref identifier="{identifier}" optional>{match[0]}</autoref>'

    return _NAME_IN_CODE.sub(link, html)

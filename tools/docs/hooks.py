"""Hooks of mkdocs: the API pages, the navigation of pages that are found, links from names in the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs import api_pages

_NAME_IN_CODE = re.compile(r"<code>(vf(?:\.\w+)+)(\([^<]*\))?</code>")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of "api/" and "performance/" into the navigation."""
    found = {"api/": _api_navigation(), "performance/": _performance_navigation(Path(config.docs_dir))}
    config.nav = [
        {title: found.get(entry, entry) if isinstance(entry, str) else entry}
        for section in config.nav or []
        for title, entry in section.items()
    ]
    return config


def _api_navigation() -> list[Any]:
    rooms = [f"api/ops/{room}.md" for room in api_pages.rooms()]
    first, *others = map(api_pages.module_path, api_pages.MODULES)
    reference = [api_pages.CONFIGURATION, api_pages.COMMAND_LINE]
    return [first, {"Ops": ["api/ops/index.md", *rooms]}, *others, *reference]


def _performance_navigation(docs: Path) -> list[Any]:
    folder = docs / "performance"
    machines = []
    for machine in sorted(path for path in folder.iterdir() if path.is_dir()):
        ops = sorted(path for path in machine.glob("*.md") if path.stem != "index")
        overview = f"performance/{machine.name}/index.md"
        machines.append({machine.name: [overview, *({p.stem: f"performance/{machine.name}/{p.name}"} for p in ops)]})
    others = [f"performance/{page.name}" for page in sorted(folder.glob("*.md")) if page.stem != "index"]
    return ["performance/index.md", *machines, *others]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the API pages, which exist nowhere but in the site."""
    for path, text in api_pages.pages():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """`vf.ops.noise` in the text becomes a link to its API page."""

    def link(match: re.Match[str]) -> str:
        identifier = match[1].replace("vf", "vdiff_fast", 1)
        return f'<autoref identifier="{identifier}" optional>{match[0]}</autoref>'

    return _NAME_IN_CODE.sub(link, html)

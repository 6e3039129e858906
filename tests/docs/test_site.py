"""The site builds without a warning and without a network, and every public name is on one of its API pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.docs.api_pages import documented
from tools.docs.blocks import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the site, and what the build printed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def test_the_site_builds_without_a_warning(built: tuple[Path, str]) -> None:
    assert "WARNING" not in built[1], built[1]


def test_pages_load_nothing_from_a_network(built: tuple[Path, str]) -> None:
    pages = list(built[0].rglob("*.html"))
    assert len(pages) > 50
    loaded = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", re.IGNORECASE
    )
    found = {(page.name, url) for page in pages for url in loaded.findall(page.read_text())}
    assert not found
    styles = "".join(path.read_text() for path in built[0].rglob("*.css"))
    assert not re.findall(r"url\([\"']?https?:[^)]*\)|@import[^;]*https?:", styles)


def test_every_public_name_is_on_an_api_page(built: tuple[Path, str]) -> None:
    pages = {path: path.read_text() for path in (built[0] / "api").rglob("*.html")}
    anchors = {anchor for text in pages.values() for anchor in re.findall(r'<h\d id="([^"]+)"', text)}
    names = documented()
    assert len(names) > 150
    assert [name for name, home in names.items() if home not in anchors] == []

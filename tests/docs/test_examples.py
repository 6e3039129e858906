"""The Python examples of every page run as they stand there, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tools.docs.blocks import ROOT, example, written_pages

PAGES = [page for page in written_pages() if example(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in example(page):
        # Errors name the page and its line.
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)


def test_there_are_examples() -> None:
    assert {"README.md", "index.md", "ops_and_modules.md", "patch.md", "train.md", "sample.md"} <= {
        p.name for p in PAGES
    }

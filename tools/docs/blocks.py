"""The code blocks of the documentation, by what they are: examples to run, files and edits of a how-to, commands.

A fence with a title, ```python title="vdiff_fast/x.py", is that file. With ```diff title="..." it is an edit of the
file, in which its lines without a mark or with "-" stand. A comment <!-- setup: ... --> holds Python that runs before
the next example of its page and that readers do not see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND_LANGUAGES = ("sh", "console")
_INLINE_COMMAND = re.compile(r"(?<!`)`((?:make|vdiff-fast|python -m|torchrun|pytest|pip) [^`]+)`(?!`)")
_BLOCK = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<code>.*?)^```$"
    r"|^<!-- setup:\n(?P<setup>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block of a page; `line` is where its code begins, `hidden` whether it is a setup that readers do not see."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str
    hidden: bool = False

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def written_pages() -> list[Path]:
    """Every page that a person writes: README, CONTRIBUTING and docs/ without the results."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in pages if "performance" not in p.parts)]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in its order."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        hidden = match["setup"] is not None
        code = match["setup"] if hidden else match["code"]
        line = text.count("\n", 0, match.start()) + 2
        yield Block(page, line, "python" if hidden else match["language"], match["title"], code, hidden)


def example(page: Path) -> list[Block]:
    """The Python blocks that run one after the other, in one namespace."""
    return [block for block in blocks(page) if block.language == "python" and block.title is None]


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """(place, command) for every command of a page: the lines of its shell blocks, and inline code that is one."""
    for block in blocks(page):
        if block.language not in COMMAND_LANGUAGES:
            continue
        joined = block.code.replace("\\\n", " ")
        for offset, line in enumerate(joined.splitlines()):
            command = " ".join(re.sub(r"(^|\s)#.*$", "", line).split())
            if command:
                yield f"{page.relative_to(ROOT)}:{block.line + offset}", command
    text = _BLOCK.sub("", page.read_text())
    for match in _INLINE_COMMAND.finditer(text):
        yield str(page.relative_to(ROOT)), " ".join(match[1].split())


def apply(page: Path, tree: Path) -> list[str]:
    """Write the files and make the edits of a how-to below `tree`; the paths that changed, in order.

    Raises:
        ValueError: an edit's old lines do not stand in its file exactly once, or a new file exists already.
    """
    return [apply_block(block, tree) for block in blocks(page) if block.title is not None]


def apply_block(block: Block, tree: Path) -> str:
    """Write the file or make the edit of one block with a title below `tree`; the path that changed.

    Raises:
        ValueError: an edit's old lines do not stand in its file exactly once, or a new file exists already.
    """
    assert block.title is not None
    target = tree / block.title
    if block.language == "diff":
        target.write_text(_edited(target.read_text(), block))
    elif target.exists():
        raise ValueError(f"{block.place}: {block.title} exists already")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.code)
    return block.title


def _edited(text: str, block: Block) -> str:
    lines = block.code.splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    if text.count(old) != 1:
        raise ValueError(f"{block.place}: the old lines stand {text.count(old)} times in {block.title}, not once")
    return text.replace(old, new)

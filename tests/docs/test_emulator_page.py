"""The kernels of docs/emulator.md are right as they stand there, and each of its edits is found as the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.docs.blocks import ROOT, Block, apply_block, blocks

PAGE = ROOT / "docs" / "emulator.md"
BLOCKS = list(blocks(PAGE))
FILES = [block for block in BLOCKS if block.title and block.language != "diff"]
EDITS = [(block, BLOCKS[i + 1]) for i, block in enumerate(BLOCKS) if block.language == "diff"]
PROGRAMS = {"softmax.cu": "prove_softmax.py", "rms_norm.py": "rms_norm.py"}


def _run(folder: Path, kernel: str) -> subprocess.CompletedProcess[str]:
    if kernel.endswith(".cu") and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc (not a GPU)")
    if kernel.endswith(".py"):
        pytest.importorskip("triton")
    # Fusion is Triton's default up to 3.9.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, PROGRAMS[kernel]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for block in FILES:
        apply_block(block, tmp_path)
    return tmp_path


def _without_numbers(text: str) -> str:
    """Bytes of a vector, addresses and lanes depend on the compiler and on where a tensor lies."""
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text)


@pytest.mark.parametrize("kernel", PROGRAMS)
def test_a_kernel_of_the_page_is_right(kernel: str, folder: Path) -> None:
    done = _run(folder, kernel)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("edit", "says"), EDITS, ids=[f"line-{edit.line}" for edit, _ in EDITS])
def test_a_defect_of_the_page_is_found(edit: Block, says: Block, folder: Path) -> None:
    done = _run(folder, apply_block(edit, folder))
    assert done.returncode != 0
    assert says.language == "text", says.place
    assert _without_numbers(says.code.strip()) in _without_numbers(done.stderr), done.stderr


def test_a_proof_is_ten_lines_long() -> None:
    (proof,) = [block for block in FILES if block.title == "prove_softmax.py"]
    assert len(proof.code.strip().splitlines()) <= 10

"""The files and edits that the how-to pages show fit the sources, and what they add works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.docs.blocks import ROOT, apply

PAGES = ROOT / "docs" / "how_to"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, with the libraries that are built."""
    ignore = shutil.ignore_patterns("__pycache__", "_lib", "results")
    for name in ("vdiff_fast", "csrc", "tests", "tools", "benchmarks", "gpu_emulator"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _python(tree: Path, *arguments: str) -> str:
    libraries = os.environ.get("VDIFF_FAST_LIB_DIR", str(ROOT / "vdiff_fast" / "_lib"))
    environment = os.environ | {"PYTHONPATH": str(tree), "VDIFF_FAST_LIB_DIR": libraries}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_an_op_of_new_files_alone_passes_the_contract(tree: Path) -> None:
    changed = apply(PAGES / "add_an_op.md", tree)
    assert all(path.startswith("vdiff_fast/ops/softcap/") for path in changed)
    out = _python(tree, "-m", "pytest", "-q", "tests/test_contract.py", "-k", "softcap", "-p", "no:cacheprovider")
    assert " passed" in out


def test_a_sampler_is_one_file(tree: Path) -> None:
    assert set(apply(PAGES / "add_a_sampler.md", tree)) == {"vdiff_fast/diffusion/samplers.py"}
    code = """
import torch, vdiff_fast as vf
z = lambda x, t: x
out = vf.diffusion.sample(z, (1, 3, 2, 4, 4), vf.diffusion.NoiseSchedule.cosine(), "consistency", steps=3, target="v")
assert bool(torch.isfinite(out).all())
"""
    _python(tree, "-c", code)


def test_a_target_agrees_in_every_language(tree: Path) -> None:
    apply(PAGES / "add_a_prediction_target.md", tree)
    _python(tree, "-m", "pytest", "-q", "tests/test_agreement.py", "-k", "targets", "-p", "no:cacheprovider")

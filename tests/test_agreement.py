"""Facts that are written in more than one language or file: each test reads all the places and compares them."""

from __future__ import annotations

import re
from pathlib import Path

import vdiff_fast as vf
from tools.write_ops_stub import stub
from vdiff_fast._build import MINIMUM_TORCH
from vdiff_fast.ops._common import tiling, tokens
from vdiff_fast.ops._common.targets import TARGETS
from vdiff_fast.ops.diffusion_loss.config import INPUTS
from vdiff_fast.ops.sampler_step import columns
from vdiff_fast.ops.temporal_attention.api import MAX_FRAMES

ROOT = Path(__file__).parents[1]


def _source(path: str) -> str:
    return (ROOT / path).read_text()


def _enumerators(path: str, name: str) -> list[str]:
    """The names of a C++ enum, in order."""
    body = re.search(rf"enum (?:class )?{name}\b[^{{]*{{([^}}]*)}}", _source(path))
    assert body is not None, f"{path} has no enum {name}"
    return [entry.split("=")[0].strip() for entry in body.group(1).split(",")]


def _constant(path: str, name: str) -> str:
    """The value of a C++ constant, as it is written."""
    found = re.search(rf"\b{name} = ([^,;]+)[,;]", _source(path))
    assert found is not None, f"{path} has no constant {name}"
    return found.group(1)


def test_targets_have_the_codes_of_the_kernels() -> None:
    assert _enumerators("csrc/ops/diffusion_loss/math.h", "LossTarget") == list(TARGETS)
    names = re.search(r"names\[\] = {([^}]*)}", _source("csrc/ops/diffusion_loss/arguments.h"))
    assert names is not None
    assert re.findall(r'"(\w+)"', names.group(1)) == list(TARGETS)
    lines = re.findall(r"TARGET == (\d+):", _source("vdiff_fast/ops/diffusion_loss/triton.py"))
    assert [int(code) for code in lines] == list(range(len(TARGETS)))


def test_inputs_of_the_loss_have_the_codes_of_the_kernels() -> None:
    assert _enumerators("csrc/ops/diffusion_loss/math.h", "LossInput") == list(INPUTS)


# Python's name of a column or clipping mode -> C++'s, in the order of their numbers.
COLUMN_NAMES = {
    "X0_X": "kX0FromX", "X0_Y": "kX0FromY", "X": "kX", "X0": "kX0", "Y": "kY", "PREVIOUS": "kPrevious",
    "NOISE": "kNoise", "GUIDANCE": "kGuidance", "PREVIOUS2": "kPrevious2",
}  # fmt: skip
CLIP_NAMES = {"NO_CLIP": "kNoClip", "FIXED": "kFixed", "DYNAMIC": "kDynamic"}


def test_columns_of_the_sampler_table_have_one_order() -> None:
    header = "csrc/ops/sampler_step/columns.h"
    assert [getattr(columns, name) for name in COLUMN_NAMES] == list(range(columns.COLUMNS))
    assert _enumerators(header, "Column") == [*COLUMN_NAMES.values(), "kColumns"]
    assert [getattr(columns, name) for name in CLIP_NAMES] == list(range(len(CLIP_NAMES)))
    assert _enumerators(header, "Clip") == list(CLIP_NAMES.values())


def test_limits_of_attention_are_the_kernels() -> None:
    room = "csrc/ops/temporal_attention"
    rows = int(re.sub(r"\D", "", _constant(f"{room}/cuda_four_warps.h", "kKeyOctets")))
    assert _constant(f"{room}/cuda_four_warps.h", "kMaxFrames") == "8 * kKeyOctets"
    assert 8 * rows == MAX_FRAMES
    for path, name in ((f"{room}/cuda_tile.h", "kMaxWarpDim"), ("csrc/common/tokens.h", "kMaxHeadDim")):
        assert int(_constant(path, name)) == tokens.MAX_HEAD_DIM


def test_the_kinds_of_correlated_noise_have_the_codes_of_the_kernels() -> None:
    """Triton kernels compare CORRELATION and MODE with numbers, which tiling.py names."""
    assert (tiling.INDEPENDENT, tiling.MIXED, tiling.PROGRESSIVE) == (0, 1, 2)
    source = _source("vdiff_fast/ops/_common/triton/philox.py")
    assert {int(code) for code in re.findall(r"CORRELATION == (\d)", source)} <= {tiling.MIXED, tiling.PROGRESSIVE}
    modes = {tiling.FLAT, tiling.PLANES_OF_FOUR, tiling.PLANES}
    assert {int(code) for code in re.findall(r"MODE == (\d)", source)} <= modes


def test_one_minimum_of_torch() -> None:
    major, minor = MINIMUM_TORCH
    assert f'"torch>={major}.{minor}"' in _source("pyproject.toml")
    assert f"VDIFF_TORCH_TARGET 0x{major:02x}{minor:02x}000000000000" in _source("CMakeLists.txt")
    assert f"({major}, {minor})" in _source("tools/make_venv.py")
    assert f"torch {major}.{minor} or newer" in _source("README.md")


def test_the_stub_of_ops_lists_the_rooms() -> None:
    assert _source("vdiff_fast/ops/__init__.pyi") == stub()
    assert sorted(re.findall(r'"(\w+)"', stub())) == sorted(vf.ops.__all__)

"""The defects that tests/emulated/mutations.py plants fit the sources, and one of them is planted and found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vdiff_fast as vf
from tests.emulated import samples
from tests.emulated.cases import DTYPES, Case, spec_of
from tests.emulated.defects import DEFECTS, TRITON, Defect
from tests.emulated.mutations import ROOT, leg_of_emulator, planted


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_fits_its_file_once(defect: Defect) -> None:
    assert (ROOT / defect.file).read_text().count(defect.old) == 1
    assert defect.old != defect.new
    assert all((ROOT / test.partition("::")[0]).exists() for test in defect.host)


def test_the_cases_of_the_defects_exist() -> None:
    for case in {Case.parse(line) for defect in DEFECTS for line in defect.cases}:
        known = samples.samples(spec_of(vf, case.op), DTYPES[case.dtype], case.group)
        assert case.sample in {sample.name for sample in known}, case


def test_there_are_twenty_kinds_apart() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 20
    assert len({defect.kind for defect in DEFECTS}) >= 15


def test_a_defect_is_found(tmp_path: Path) -> None:
    """Only compiled code shows this one: the values are right, and lanes that should agree do not."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    (defect,) = (defect for defect in TRITON if defect.name == "square_is_fused_into_its_sum")
    assert leg_of_emulator(defect, planted(defect, tmp_path / "tree")) == "race"

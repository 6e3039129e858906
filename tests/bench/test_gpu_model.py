"""The GPU cost model: machine instructions are counted as often as they are issued, and times follow from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_model.counts import pipe, products, width
from benchmarks.gpu_model.report import RESULTS, page, table
from benchmarks.gpu_model.sass import parse

ROOT = Path(__file__).resolve().parents[2]
SASS = """
.section .text.other,"ax"
        /*0000*/                   IADD3 R1, R1, R2, RZ ;
.section .text.kernel,"ax"
//## File "kernel.ptx", line 12
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 FFMA R4, R4, R5, R6 ;
        /*0020*/                   NOP ;
//## File "kernel.ptx", line 14
        /*0030*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0040*/                   EXIT ;
.L_x_1:
        /*0050*/                   BRA `(.L_x_1);
$kernel$__internal_0_$__cuda_sm20_div_rn_f64_full:
        /*0060*/                   MUFU.RCP64H R7, R5 ;
"""


def test_instructions_have_the_line_that_they_were_made_from() -> None:
    found = [(i.opcode, i.line) for i in parse(SASS, "kernel")]
    assert found == [("LDG.E.128", 12), ("FFMA", 12), ("STG.E.64", 14), ("EXIT", 14)]


@pytest.mark.parametrize(
    ("opcode", "bytes_"), [("LDG.E.128", 16), ("STG.E.64", 8), ("LDG.E", 4), ("LDG.E.U16.CONSTANT", 2), ("STG.E.U8", 1)]
)
def test_widths(opcode: str, bytes_: int) -> None:
    assert width(opcode) == bytes_


def test_units() -> None:
    named = {
        "MUFU.EX2": "special", "IMAD.WIDE": "imad", "IMAD.MOV.U32": "other", "FFMA": "other", "LOP3.LUT": "alu",
        "LDS.128": "shared", "LDGSTS.E.BYPASS.128": "global", "DADD": "double", "HMMA.16816.F32.BF16": "tensor",
    }  # fmt: skip
    assert {opcode: pipe(opcode) for opcode in named} == named
    assert products("HMMA.16816.F32.BF16") == 2048


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """Forward and backward of one case, counted and predicted by the command in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_model",
        "--backend",
        "triton",
        "--case",
        "layer_norm_modulate/latte",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return {row["direction"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_is_carried_over_to_machine_code_is_what_was_issued(direction: str, rows: Any) -> None:
    """The machine's loads and stores are the emulator's requests: no loop is counted too often or too seldom."""
    (kernel,) = rows[direction]["kernels"]
    assert sum(kernel["accesses_by_width"].values()) == pytest.approx(kernel["requests"], rel=0.05)


def test_a_forward_reads_and_writes_each_element_once(rows: Any) -> None:
    row = rows["forward"]
    assert row["bytes_moved_of_least"] == pytest.approx(1.0, abs=0.02)
    assert row["predicted_us"] >= row["limit_us"]
    assert "latte_batch" in table([row])


def test_the_page_is_what_the_results_say() -> None:
    assert (RESULTS / "h200.json").exists()
    assert (ROOT / "docs" / "performance" / "gpu_model.md").read_text() == page()

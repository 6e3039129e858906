"""Machine instructions of a kernel, each with the line of the PTX that it was made from."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.binaries import Usage, cuobjdump, library_usage

_LINE = re.compile(r'//## File "kernel\.ptx", line (\d+)')
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
# Code after such a label is a function that the main path calls where an operand is denormal, infinite or the like.
_ENTRY = re.compile(r"(?:\.visible\s+|\.weak\s+)*\.entry\s+([\w$]+)")
_SLOW_PATH = re.compile(r"^\$\S*\$\S+:|^\.text\.\S*\$\S+:")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: "LDG.E.128", its operands, and its PTX line."""

    opcode: str
    operands: str
    line: int


@dataclass(frozen=True)
class Assembly:
    """A kernel's machine code without the functions that only special operands reach."""

    instructions: tuple[Instruction, ...]
    usage: Usage


def marked(ptx: str, kernel: str, lines: Collection[int]) -> str:
    """The PTX of one kernel with its line numbers as its source: ptxas then says where each instruction came from.

    Args:
        lines: those where an instruction begins, counted from 1 in the whole text.
    """
    found: list[str] = []
    skipping = False
    for number, line in enumerate(ptx.splitlines(), start=1):
        text = line.strip()
        if text.startswith(".section"):
            break
        if entry := _ENTRY.match(text):
            skipping = entry[1] != kernel
        if skipping:
            skipping = not line.startswith("}")
            continue
        if text.startswith((".loc", ".file")):
            continue
        if number in lines:
            found.append(f"\t.loc 1 {number} 0")
        found.append(line)
        if text.startswith(".address_size"):
            found.append('.file 1 "kernel.ptx"')
    return "\n".join(found) + "\n"


def parse(disassembly: str, kernel: str) -> tuple[Instruction, ...]:
    """The instructions of one kernel in nvdisasm's text."""
    found: list[Instruction] = []
    line, inside = 0, False
    for text in disassembly.splitlines():
        stripped = text.strip()
        if stripped.startswith(".section"):
            inside = re.match(rf"\.section\s+\.text\.{re.escape(kernel)}[,\s]", stripped) is not None
        elif not inside:
            continue
        elif _SLOW_PATH.match(stripped):
            inside = False
        elif mark := _LINE.search(text):
            line = int(mark[1])
        elif (instruction := _INSTRUCTION.search(text)) and not instruction[1].startswith("NOP"):
            found.append(Instruction(instruction[1], instruction[2], line))
    # Behind its end a kernel has one instruction that jumps to itself.
    while found and found[-1].opcode == "BRA":
        found.pop()
    return tuple(found)


def toolkit_ptxas() -> list[str]:
    """The command that compiles what nvcc made, without the architecture's option."""
    found = shutil.which("ptxas")
    if found is None:
        raise FileNotFoundError("ptxas is not on PATH: install a CUDA toolkit")
    return [found]


def triton_ptxas(architecture: int, fp_fusion: bool) -> list[str]:
    """The command that the installed Triton compiles its kernels with, without the architecture's option."""
    from triton.backends.nvidia import compiler

    newest = tuple(int(part) for part in version("triton").split(".")[:2]) >= (3, 9)
    return [
        compiler.get_ptxas(architecture).path,
        *([] if fp_fusion else ["--fmad=false"]),
        *(["--regAllocOptLevel=2"] if newest else []),
    ]


def assemble(ptx: str, kernel: str, lines: Collection[int], architecture: str, ptxas: Sequence[str]) -> Assembly:
    """Compile one kernel and disassemble it.

    Args:
        lines: of the PTX where an instruction begins.
        architecture: "90a".
        ptxas: the command, from toolkit_ptxas or triton_ptxas.

    Raises:
        subprocess.CalledProcessError: ptxas refuses the text.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(marked(ptx, kernel, lines))
        command = [*ptxas, f"-arch=sm_{architecture}", "-lineinfo", str(source), "-o", str(cubin)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        disassemble = [str(Path(cuobjdump()).with_name("nvdisasm")), "-g", "-c", str(cubin)]
        text = subprocess.run(disassemble, check=True, capture_output=True, text=True).stdout
        (usage,) = library_usage(cubin)
    return Assembly(parse(text, kernel), usage)

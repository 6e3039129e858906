"""Machine instructions that a call issues: the emulator's counts of the PTX, carried over to what ptxas made of it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.gpu_model.sass import Assembly, Instruction

# Instructions of the PTX that ptxas makes exactly one of, by the machine instruction: they tell how often a body of a
# loop stands in the machine code.
_ANCHORS = (
    (r"ld\.global", ("LDG",)),
    (r"st\.global", ("STG",)),
    (r"ld\.shared", ("LDS",)),
    (r"st\.shared", ("STS",)),
    (r"cp\.async\.c[ag]", ("LDGSTS",)),
    (r"shfl", ("SHFL",)),
    (r"bar\.sync|barrier\.sync", ("BAR",)),
    (r"(ex2|rcp|rsqrt|lg2|sin|cos|tanh)\.approx", ("MUFU",)),
    (r"mma\.sync", ("HMMA",)),
    (r"fma\.rn\.f32|mul(\.rn)?(\.ftz)?\.f32|add(\.rn)?(\.ftz)?\.f32", ("FFMA", "FMUL", "FADD")),
)
_WIDTH = re.compile(r"\.(?:(U8|S8)|(U16|S16)|(64)|(128))\b")
PIPES = (
    ("special", r"MUFU|F2I|I2F|F2F\.F64|F2F\.F32\.F64|FRND|POPC|FLO|BREV"),
    ("double", r"D(ADD|MUL|FMA|SETP|MNMX)"),
    ("tensor", r"HMMA|HGMMA|WGMMA"),
    ("shared", r"LDS|STS|LDSM|STSM|SHFL|MOVM|ATOMS|REDS"),
    ("global", r"LDG|STG|LDGSTS|RED|ATOMG|ATOM|LD|ST"),
    ("imad", r"IMAD(?!\.MOV|\.IADD|\.SHL|\.U32)"),
    ("alu", r"IADD3?|VIADD\w*|LOP3|LEA|ISETP|PRMT|SHF|SEL|FSEL|FMNMX|FSETP|IABS|PLOP3|P2R|R2P|V?IMNMX|F2FP|BMSK|SGXT"),
)  # fmt: skip


def pipe(opcode: str) -> str:
    """The unit that an instruction occupies beside the issue slot that each takes; "other" for all that have room."""
    return next((name for name, pattern in PIPES if re.match(rf"(?:{pattern})(?:\.|$)", opcode)), "other")


@dataclass
class Counts:
    """Warp instructions of one kernel over a call, on the path that was taken.

    Attributes:
        issued: all.
        by_pipe: by `pipe`.
        accesses: global loads and stores by their bytes a lane.
        in_flight: bytes that a thread has asked for before it needs the first of them, where it loads most.
    """

    issued: float = 0
    by_pipe: Counter[str] = field(default_factory=Counter)
    accesses: Counter[int] = field(default_factory=Counter)
    in_flight: int = 0
    tensor_fma: float = 0


def products(opcode: str) -> int:
    """Products and additions of one matrix instruction: HMMA.16816.F32.BF16, HGMMA.64x32x16.F32."""
    if match := re.match(r"HMMA\.16816", opcode):
        return 16 * 8 * 16
    if match := re.match(r"HMMA\.1688", opcode):
        return 16 * 8 * 8
    if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", opcode):
        return int(match[1]) * int(match[2]) * int(match[3]) // 4  # by four warps together
    return 0


def width(opcode: str) -> int:
    """Bytes a lane of LDG.E.128 and its like."""
    match = _WIDTH.search(opcode)
    if match is None:
        return 4
    return next(size for size, found in zip((1, 2, 8, 16), match.groups()) if found)


def _blocks(ptx: Sequence[str], lines: Sequence[int]) -> Iterator[list[int]]:
    """Lines of instructions that are executed together: broken by labels and branches."""
    block: list[int] = []
    previous = 0
    for line in sorted(lines):
        passed = ptx[previous : line - 1] if previous else []
        if block and any(text.strip().endswith(":") for text in passed):
            yield block
            block = []
        block.append(line)
        previous = line
        if re.search(r"\bbra\b|\bret\b", ptx[line - 1]):
            yield block
            block = []
    if block:
        yield block


def _copies(ptx: Sequence[str], block: Sequence[int], made: Mapping[int, Sequence[Instruction]]) -> float:
    """How often a block of the PTX stands in the machine code: more than once where ptxas unrolled its loop."""
    ratios = []
    for line in block:
        kind = next((machine for pattern, machine in _ANCHORS if re.search(pattern, ptx[line - 1])), None)
        if kind is None:
            continue
        found = sum(i.opcode.split(".")[0] in kind for i in made.get(line, ()))
        if found:
            ratios.append(found)
    if not ratios:
        return 1.0
    ratios.sort()
    return float(ratios[len(ratios) // 2])


def count(ptx: str, assembly: Assembly, issued: Mapping[int, int]) -> Counts:
    """What the machine issues where the emulator issued `issued` (line of the PTX -> warp instructions)."""
    text = ptx.splitlines()
    made: dict[int, list[Instruction]] = defaultdict(list)
    for instruction in assembly.instructions:
        made[instruction.line].append(instruction)
    total = Counts()
    weights: dict[int, float] = {}
    for block in _blocks(text, list(issued)):
        copies = _copies(text, block, made)
        for line in block:
            weights[line] = issued[line] / copies
    for line, instructions in made.items():
        weight = weights.get(line, 0.0)
        for instruction in instructions:
            total.issued += weight
            total.by_pipe[pipe(instruction.opcode)] += weight
            total.tensor_fma += weight * products(instruction.opcode)
            if pipe(instruction.opcode) == "global":
                total.accesses[width(instruction.opcode)] += weight
    total.in_flight = _in_flight(assembly.instructions, weights)
    return total


def _in_flight(instructions: Sequence[Instruction], weights: Mapping[int, float]) -> int:
    """The most bytes of a thread's loads that are on their way at once, in the order of the code.

    Loads arrive in order: whoever needs one has all that were asked for before it. Copies to shared memory come in
    groups, and a wait says how many groups may still be on their way. Only loads that are issued at least half as often
    as the most issued one count.
    """
    loads = [weights.get(i.line, 0.0) for i in instructions if i.opcode.startswith("LDG")]
    often = max(loads, default=0.0) / 2
    most = group = largest_group = groups_left = 0
    waiting: list[tuple[range, int]] = []  # the registers of each load, and its bytes
    for instruction in instructions:
        registers = [int(name) for name in re.findall(r"\bR(\d+)\b", instruction.operands)]
        if instruction.opcode.startswith("LDGDEPBAR"):
            group = 0
        elif instruction.opcode.startswith("LDG"):
            if weights.get(instruction.line, 0.0) < often or not registers:
                continue
            size = width(instruction.opcode)
            if instruction.opcode.startswith("LDGSTS"):
                group += size
                largest_group = max(largest_group, group)
                continue
            first = registers[0]
            waiting.append((range(first, first + max(1, size // 4)), size))
            most = max(most, sum(size for _, size in waiting))
        elif instruction.opcode.startswith("DEPBAR"):
            left = re.search(r"0x([0-9a-f]+)", instruction.operands)
            groups_left = max(groups_left, int(left[1], 16) if left else 0)
        else:
            used = [at for at, (held, _) in enumerate(waiting) if any(r in held for r in registers)]
            if used:
                waiting = waiting[used[-1] + 1 :]
    return max(most, largest_group * (groups_left + 1))

"""Registers, stack and shared memory of the kernels in a compiled file."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes; local is stack plus local memory."""

    kernel: str
    arch: int
    registers: int
    local: int
    shared: int


def cuobjdump() -> str:
    """The tool that Triton carries, or the toolkit's.

    Raises:
        FileNotFoundError: there is neither.
    """
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else found
    if found is None:
        raise FileNotFoundError("cuobjdump is neither in Triton's package nor on PATH")
    return found


def _demangled(names: list[str]) -> list[str]:
    filter_ = shutil.which("c++filt")
    if filter_ is None or not names:
        return names
    out = subprocess.run([filter_], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    # Also the type of an enumeration's value, whose parenthesis is not that of the parameters.
    noise = r"\(anonymous namespace\)::|^void |\([\w:]+\)(?=\d)|\(bool\)"
    return [re.sub(noise, "", name).split("(")[0] for name in out.splitlines()]


def library_usage(path: Path) -> list[Usage]:
    """Every kernel of a shared library or cubin, in every architecture it was built for."""
    command = [cuobjdump(), "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, arch = [], 0
    for match in re.finditer(r"arch = sm_(\d+)|Function (\S+):\s*\n\s*(REG:.*)", text):
        if match[1]:
            arch = int(match[1])
            continue
        numbers = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", match[3])}
        found.append((match[2], arch, numbers))
    names = _demangled([name for name, _, _ in found])
    return [
        Usage(name, arch, n["REG"], n["STACK"] + n["LOCAL"], n["SHARED"]) for name, (_, arch, n) in zip(names, found)
    ]

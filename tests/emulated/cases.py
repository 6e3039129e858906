"""A case: one sample of an op, in one dtype, on one emulated device; and the lists of cases that are run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tests.emulated import samples

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = {"cuda": ("h200", "a100", "small", "small80", "plain"), "triton": ("sm_90", "sm_80")}


@dataclass(frozen=True)
class Case:
    """One line of a list: `cuda h200 float32 group_norm_silu contract rank_6`."""

    backend: str
    device: str
    dtype: str
    op: str
    group: str
    sample: str

    def __str__(self) -> str:
        return " ".join((self.backend, self.device, self.dtype, self.op, self.group, self.sample))

    @classmethod
    def parse(cls, line: str) -> Case:
        return cls(*line.split())

    @property
    def architecture(self) -> int:
        """80 or 90: of the PTX that runs."""
        if self.backend == "triton":
            return int(self.device.removeprefix("sm_"))
        return 90 if self.device in ("h200", "small") else 80


def spec_of(vf: ModuleType, op: str) -> Any:
    return next(spec for spec in vf.ops.specs() if spec.name == op)


def sample_of(vf: ModuleType, case: Case) -> Any:
    """The case's sample.

    Raises:
        LookupError: the op has none of this name: the list is older than the op.
    """
    for sample in samples.samples(spec_of(vf, case.op), DTYPES[case.dtype], case.group):
        if sample.name == case.sample:
            return sample
    raise LookupError(f"{case}: there is no such sample; `python -m tests.emulated {case.backend} --select` lists anew")


def _dtypes(spec: Any, backend: str) -> Iterator[tuple[str, torch.dtype]]:
    known = spec.dtypes.get(backend, tuple(DTYPES.values()))
    return ((name, dtype) for name, dtype in DTYPES.items() if dtype in known)


def enumerate_cases(vf: ModuleType, options: argparse.Namespace) -> Iterator[Case]:
    """Every case that the options leave; the devices of one sample follow each other, so that its references serve
    them all."""
    for spec in vf.ops.specs():
        if options.backend not in spec.predicates or (options.ops and spec.name not in options.ops):
            continue
        for name, dtype in _dtypes(spec, options.backend):
            if name not in options.dtypes:
                continue
            for group in options.groups:
                for sample in samples.samples(spec, dtype, group):
                    for device in options.devices if options.sample in sample.name else ():
                        yield Case(options.backend, device, name, spec.name, group, sample.name)


def quick_list(backend: str) -> Path:
    return Path(__file__).with_name(f"quick_{backend}.txt")


def read_cases(path: Path) -> list[Case]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [Case.parse(line) for line in lines if line and not line.startswith("#")]

"""Describe an op once: contract tests, AOT tests, benchmarks and the support table all loop over OpSpecs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vdiff_fast._dispatch import GENERIC_PREDICATES, Predicate


@dataclass(frozen=True)
class Sample:
    """One call of an op. Floating tensors with requires_grad are differentiated."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """The same call with every tensor argument replaced, those in tuples too."""

        def convert(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(convert(v) for v in value)
            return function(value) if isinstance(value, Tensor) else value

        return replace(
            self,
            args=tuple(convert(a) for a in self.args),
            kwargs={k: convert(v) for k, v in self.kwargs.items()},
        )

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map_tensors(keep)
        return found

    def differentiable(self) -> list[Tensor]:
        return [t for t in self.tensors() if t.requires_grad]


@dataclass(frozen=True)
class Invalid:
    """A call that must raise: the error's type and a pattern that its message must match."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class AotCase:
    """One Triton kernel to compile without a GPU.

    Attributes:
        kernel: name of the @triton.jit function in the room's triton.py.
        signature: argument name -> Triton type ("*bf16", "i32", "fp32", ...); constexprs are named in `constants`.
        constants: constexpr arguments.
        divisible: names of arguments known to be divisible by 16.
        num_warps, num_stages: the launch options.
        max_spills: bytes of spill allowed; anything above 0 needs its reason beside it.
    """

    name: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: Sequence[str] = ()
    num_warps: int = 4
    num_stages: int = 3
    max_spills: int = 0
    enable_fp_fusion: bool = True


@dataclass(frozen=True)
class BenchCase:
    """One benchmark shape: a layer of a real model.

    Attributes:
        bytes_forward, bytes_backward: minimum traffic in float32; other dtypes move in proportion to their size.
        tags: "gpu" where the shape is too large for a CPU.
        cpu_dtypes: what is measured on a CPU where no dtypes are asked for; on a GPU it is bfloat16 and float32.
    """

    name: str
    sample: Callable[[torch.device, torch.dtype], Sample]
    bytes_forward: int | None = None
    bytes_backward: int | None = None
    tags: tuple[str, ...] = ()
    cpu_dtypes: tuple[torch.dtype, ...] = (torch.float32,)


@dataclass(frozen=True)
class OpSpec:
    """Everything the generic tests and benchmarks need to know about an op.

    Attributes:
        function: the public function.
        reference: the same signature in plain torch, exact in float64; it is also eager's own implementation.
        samples: (device, dtype) -> calls for the contract tests.
        predicates: why_not predicate per backend the op has.
        dtypes: backend -> the dtypes it takes, where they are not all of float32, bfloat16, float16.
        error_multiple: a fused result may be this many times as far from float64 as eager is, in the same dtype.
        error_reason: why, where error_multiple is above 1.1.
        exact: outputs are bit-equal on all backends (counter-based noise).
        peers: name -> the same call in another implementation, with the copies it needs.
        random_peers: names of peers that draw other numbers than ours, so that their values cannot be checked.
        module: the room's package, where `triton` and `native` lie.
    """

    name: str
    module: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    samples: Callable[[torch.device, torch.dtype], Iterator[Sample]]
    predicates: Mapping[str, Predicate] = field(default_factory=lambda: dict(GENERIC_PREDICATES))
    invalid: Callable[[], Iterator[Invalid]] = lambda: iter(())
    aot: Callable[[], Iterator[AotCase]] = lambda: iter(())
    bench: Callable[[], Iterator[BenchCase]] = lambda: iter(())
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    random_peers: tuple[str, ...] = ()
    dtypes: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    error_multiple: float = 1.1
    error_reason: str = ""
    exact: bool = False
    gradcheck: bool = True
    summary: str = ""


def randn(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype, *, seed: int = 0, grad: bool = True
) -> Tensor:
    """Seeded normal test data, the same values on every device, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return values.to(device=device, dtype=dtype).requires_grad_(grad)

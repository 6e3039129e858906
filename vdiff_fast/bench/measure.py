"""Time several implementations of one call, interleaved in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff_fast import _library

Call = Callable[[], object]
# About 1 ms of an H100.
SLEEP_CYCLES = 2_000_000


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one implementation: median, 10 % and 90 % quantiles, number of runs."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[last // 10], ordered[last - last // 10], len(ordered))


class _CpuClock:
    """Wall time of one call in milliseconds."""

    def time(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3


class _CudaClock:
    """Device time of one call by events, its inputs pushed out of the L2 by a buffer written between."""

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.flush = torch.empty(max(2 * l2_bytes, 1 << 26), dtype=torch.int8, device="cuda")

    def time(self, call: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        # The device waits here until Python has issued the call: else a small op is timed as its launches.
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def interleaved(
    calls: Mapping[str, Call], *, device: torch.device, seconds: float = 1.0, min_runs: int = 7, max_runs: int = 200
) -> dict[str, Timing]:
    """Run every implementation in turn, A B C A B C ..., so a drift of the machine meets all of them alike.

    Args:
        calls: name -> a call without arguments. Each is run twice before timing.
        seconds: how long the whole measurement should take; min_runs rounds are made even if it takes longer.
    """
    clock = _CudaClock() if device.type == "cuda" else _CpuClock()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    started = time.perf_counter()
    for done in range(max_runs):
        if done >= min_runs and time.perf_counter() - started > seconds:
            break
        for name, call in calls.items():
            samples[name].append(clock.time(call))
    return {name: Timing.of(values) for name, values in samples.items()}


def graph_replay(call: Call) -> Call | None:
    """The call captured in a CUDA graph, or None where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            call()
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except Exception:  # peers refuse a capture with errors of many types
        torch.cuda.synchronize()
        return None
    return graph.replay


def device_is_lost(device: torch.device) -> bool:
    """Whether a kernel's fault ended the CUDA context: no later call of this process can succeed."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def host_microseconds(call: Call, *, device: torch.device, calls: int = 50) -> float:
    """Host time to issue one call, in microseconds: on a GPU without waiting for it."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - start
    if device.type == "cuda":
        torch.cuda.synchronize()
    return elapsed / calls * 1e6


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most memory that one call adds to what is held before it; on the CPU through torch's allocator alone."""
    if device.type != "cuda":
        return _host_peak_bytes(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def _host_peak_bytes(call: Call) -> int:
    """The profiler's records of the CPU allocator, added up in their order: kernels in C++ allocate through it too."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    profiler = torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True)
    with _library.torch_memory(), profiler as profile:
        result = call()
    del result
    records = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = most = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in records if e.name() == "[memory]"):
        held += size
        most = max(most, held)
    return most


def copy_bandwidth(device: torch.device, megabytes: int | None = None) -> float:
    """Bytes read plus written per second by a copy of tensors larger than any cache, in GB/s."""
    count = (megabytes or (1024 if device.type == "cuda" else 256)) * 2**20 // 4
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, device=device, seconds=0.5)["copy"]
    return 2 * 4 * count / (timing.median * 1e-3) / 1e9


def saved_bytes(call: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward of one call, each storage counted once; parameters are not counted."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, torch.nn.Parameter):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(storages.values())

"""Interleaved timing: contenders take turns, so that changes of the machine's speed affect all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# A CPU sample lasts at least this long, so that the cost of reading the clock is negligible.
SHORTEST_SAMPLE_S = 200e-6
# Larger than the L2 cache of any GPU.
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Time:
    """Seconds per call: the fastest sample and the median."""

    minimum: float
    median: float
    samples: int


def time_contenders(contenders: dict[str, Callable[[], Any]], device: torch.device, seconds: float) -> dict[str, Time]:
    """Times the contenders in turns, for about `seconds` in total, after a warm-up.

    Args:
        contenders: name -> a function that does the work once.
        device: where they run; on a GPU, events measure the time, and the L2 cache is flushed before every call.
        seconds: total time for all contenders.
    """
    for call in contenders.values():
        for _ in range(3):
            call()
    sample = _gpu_sampler(device) if device.type == "cuda" else _cpu_sample
    repeats = {name: _repeats(call) if device.type == "cpu" else 1 for name, call in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, taken.values())) < 5:
        for name, call in contenders.items():
            taken[name].append(sample(call, repeats[name]))
    return {name: Time(min(times), statistics.median(times), len(times)) for name, times in taken.items()}


def _cpu_sample(call: Callable[[], Any], repeats: int) -> float:
    call()  # in real use a step follows another: fill the caches with this contender's code and data
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Callable[[], Any]) -> int:
    return max(1, int(SHORTEST_SAMPLE_S / max(_cpu_sample(call, 1), 1e-7)))


def _gpu_sampler(device: torch.device) -> Callable[[Callable[[], Any], int], float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(call: Callable[[], Any], _: int) -> float:
        flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return sample


@dataclass(frozen=True)
class Peak:
    """The measured peaks of this device: bytes per second of a copy, operations per second of a matrix product."""

    bytes_per_second: float
    flops_per_second: float


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Measures the speed of a copy and of PyTorch's matrix product on this device."""
    gpu = device.type == "cuda"
    elements = (1 << 28 if gpu else 1 << 25) // dtype.itemsize
    source = torch.zeros(elements, device=device, dtype=dtype)
    target = torch.empty_like(source)
    size = 8192 if gpu else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = time_contenders({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, device, 1.0)
    return Peak(2 * source.numel() * dtype.itemsize / times["copy"].minimum, 2 * size**3 / times["product"].minimum)

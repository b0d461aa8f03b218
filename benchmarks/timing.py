"""Interleaved timing: contenders take turns, so that changes of the machine's speed affect all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# A CPU sample lasts at least this long, so that the cost of reading the clock is negligible.
SHORTEST_SAMPLE_S = 200e-6
# Larger than the L2 cache of any GPU and the last-level cache of most CPUs.
FLUSH_BYTES = 256 << 20
FEWEST_TURNS = 7  # six are the fewest whose extremes are a 95 % interval of the median


@dataclass(frozen=True)
class Interval:
    """The median of samples, and the order statistics that enclose the true median with a probability of 95 %."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Time(Interval):
    """Seconds per call: the median with its interval, and the fastest sample."""

    minimum: float
    samples: int


@dataclass(frozen=True)
class Comparison:
    """Times by contender, and the ratios of the first contender's time to each other one's.

    A ratio is the median over the turns, within which both have the same machine.
    """

    times: dict[str, Time]
    ratios: dict[str, Interval]


def interval(samples: Sequence[float]) -> Interval:
    """Returns the median and its 95 % interval, which assumes nothing about the samples' distribution."""
    ordered = sorted(samples)
    n = len(ordered)
    # The median lies below sample j + 1 of the ordered ones with the probability that at most j of n coins show heads.
    if n > 200:
        j = math.floor(n / 2 - 0.98 * n**0.5) - 1
    else:
        j, heads = -1, 0
        while heads + math.comb(n, j + 1) <= 0.025 * 2**n:
            j += 1
            heads += math.comb(n, j)
    j = max(j, 0)
    return Interval(statistics.median(ordered), ordered[j], ordered[n - 1 - j])


def time_contenders(
    contenders: dict[str, Callable[[], Any]], device: torch.device, seconds: float, cold: bool = False
) -> Comparison:
    """Times the contenders in turns, for about `seconds` in total, after a warm-up.

    Args:
        contenders: name -> a function that does the work once. Ratios are those of the first.
        device: where they run; on a GPU, events measure the time.
        seconds: total time for all contenders.
        cold: whether to overwrite the caches before every call.
    """
    for call in contenders.values():
        for _ in range(3):
            call()
    sample = _gpu_sampler(device, cold) if device.type == "cuda" else _cpu_sampler(cold)
    repeats = {name: 1 if cold or device.type == "cuda" else _repeats(call) for name, call in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, taken.values())) < FEWEST_TURNS:
        for name, call in contenders.items():
            taken[name].append(sample(call, repeats[name]))
    first = next(iter(taken))
    ratios = {
        name: interval([ours / theirs for ours, theirs in zip(taken[first], times, strict=True)])
        for name, times in taken.items()
        if name != first
    }
    return Comparison({name: _as_time(times) for name, times in taken.items()}, ratios)


def _as_time(samples: list[float]) -> Time:
    middle = interval(samples)
    return Time(middle.median, middle.low, middle.high, min(samples), len(samples))


Sampler = Callable[[Callable[[], Any], int], float]


def _cpu_sampler(cold: bool) -> Sampler:
    flush = torch.empty(FLUSH_BYTES if cold else 0, dtype=torch.int8)

    def sample(call: Callable[[], Any], repeats: int) -> float:
        if cold:
            flush.add_(1)
        else:
            call()  # in real use a step follows another: fill the caches with this contender's code and data
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    return sample


def _repeats(call: Callable[[], Any]) -> int:
    return max(1, int(SHORTEST_SAMPLE_S / max(_cpu_sampler(False)(call, 1), 1e-7)))


def _gpu_sampler(device: torch.device, cold: bool) -> Sampler:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(call: Callable[[], Any], _: int) -> float:
        flush.zero_()  # while the GPU is busy with this, the host prepares the call: its launches follow closely
        if not cold:
            call()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return sample

"""One measured case, and what follows from its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .case import OURS
from .peak import Peak
from .timing import Interval, Time

Verdict = Literal["win", "tie", "loss"]


def verdict(ratio: Interval) -> Verdict:
    """Returns "win" or "loss" only if the whole 95 % interval of the ratio of times is on that side of 1."""
    return "win" if ratio.high < 1 else "loss" if ratio.low > 1 else "tie"


@dataclass(frozen=True)
class Row:
    """One case, measured with one dtype, number of threads and state of the caches.

    Attributes:
        column, name, size, samples, family, flops, least_flops, bytes: of the case.
        cache: "warm", or "cold" if the caches were overwritten before every call.
        error: largest difference to the others' results, relative to the largest value; None if not comparable.
        times: seconds per call by contender.
        ratios: tinynet's time over each other contender's.
        first_calls: seconds of each contender's first call, which compiles what no cache holds.
        memory: most bytes that PyTorch's allocator held for a call of each contender.
        peak: of the device.
    """

    column: str
    name: str
    size: str
    samples: int
    family: str | None
    dtype: str
    threads: int
    cache: str
    flops: int
    least_flops: int
    bytes: int
    error: float | None
    times: dict[str, Time]
    ratios: dict[str, Interval]
    first_calls: dict[str, float]
    memory: dict[str, int]
    peak: Peak

    @property
    def ours(self) -> Time:
        """tinynet's time."""
        return self.times[OURS]

    @property
    def baseline(self) -> str | None:
        """The fastest eager contender: PyTorch in its faster memory layout."""
        eager = {name: time.median for name, time in self.times.items() if name.startswith("eager")}
        return min(eager, key=eager.__getitem__) if eager else None

    @property
    def ratio(self) -> Interval | None:
        """tinynet's time over the baseline's; below 1, tinynet is faster."""
        return None if self.baseline is None else self.ratios[self.baseline]

    @property
    def verdict(self) -> Verdict | None:
        """Whether tinynet is faster than the baseline."""
        return None if self.ratio is None else verdict(self.ratio)

    @property
    def arithmetic_bound(self) -> float:
        """Seconds that the operations take at the device's peak."""
        return self.least_flops / self.peak.flops_per_second

    @property
    def memory_bound(self) -> float:
        """Seconds that the bytes take at the device's peak for so many of them."""
        return self.bytes / self.peak.bandwidth(self.bytes)

    @property
    def share_of_peak(self) -> float:
        """The least time that this device's measured peaks allow, over tinynet's time."""
        return max(self.arithmetic_bound, self.memory_bound) / self.ours.median

    @property
    def rate(self) -> tuple[float, str]:
        """What bounds the row: 1e9 operations, or bytes, per second, and the unit."""
        if self.arithmetic_bound > self.memory_bound:
            return self.flops * 1e-9 / self.ours.median, "GFLOP/s"
        return self.bytes * 1e-9 / self.ours.median, "GB/s"

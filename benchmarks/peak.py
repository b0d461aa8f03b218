"""What this device can do at most: bytes and operations per second, each the best of several kernels, ours included.

A row of a benchmark cannot be faster. Other work on the machine only ever slows a kernel down, so the fastest sample of
the fastest kernel counts, and peaks are measured before the rows and again after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tinynet import functional

from .timing import time_contenders

# Bytes that a kernel reads and writes: from what a first-level cache holds to what none holds.
WORKING_SETS = (64 << 10, 1 << 20, 16 << 20, 128 << 20)
PRODUCTS = {"cpu": (512, 1024), "cuda": (2048, 4096, 8192)}  # sizes of square matrices
IMAGES = {"cpu": 4, "cuda": 64}  # of a convolution
SECONDS = 0.05  # per kernel and size


@dataclass(frozen=True)
class Peak:
    """Measured peaks of a device, for a dtype and a number of threads.

    Attributes:
        flops_per_second: of matrix products and convolutions.
        bytes_per_second: of kernels that read and write this many bytes; smaller ones fit into faster caches.
    """

    flops_per_second: float
    bytes_per_second: Mapping[int, float]

    def bandwidth(self, working_set: int) -> float:
        """Returns the bytes per second that a kernel which moves `working_set` bytes cannot exceed.

        That is the best of all measured working sets from the next smaller one on: those below only have faster caches,
        and a larger one is faster where a call's own cost outweighs that.
        """
        smaller = [size for size in self.bytes_per_second if size <= working_set]
        least = max(smaller, default=0)
        return max(rate for size, rate in self.bytes_per_second.items() if size >= least)

    def or_better(self, other: Peak) -> Peak:
        """Returns the better of two measurements of the same device."""
        rates = {size: max(rate, other.bytes_per_second[size]) for size, rate in self.bytes_per_second.items()}
        return Peak(max(self.flops_per_second, other.flops_per_second), rates)


def measure_peak(device: torch.device, dtype: torch.dtype, cold: bool = False) -> Peak:
    """Measures the peaks with PyTorch's current number of threads."""
    bandwidth = {size: _best(_moving(device, size), device, cold) for size in WORKING_SETS}
    return Peak(_best(_computing(device, dtype), device, cold), bandwidth)


# Name -> how much a call does, and the call.
Kernels = dict[str, tuple[int, Callable[[], Any]]]


def _best(kernels: Kernels, device: torch.device, cold: bool) -> float:
    """Returns the highest rate of all kernels."""
    calls = {name: call for name, (_, call) in kernels.items()}
    with torch.no_grad():
        times = time_contenders(calls, device, SECONDS * len(calls), cold).times
    return max(amount / times[name].minimum for name, (amount, _) in kernels.items())


def _moving(device: torch.device, size: int) -> Kernels:
    """Kernels that read and write `size` bytes."""
    whole = torch.ones(size // 4, device=device)
    a, b = whole[: size // 8], whole[size // 8 :]
    third = size // 12
    x, y, z = whole[:third], whole[third : 2 * third], whole[2 * third : 3 * third]
    return {
        "copy": (size, lambda: a.copy_(b)),
        "fill": (size, lambda: whole.fill_(1.0)),
        "sum": (size, lambda: whole.sum()),
        "dot": (size, lambda: a.dot(b)),
        "add": (12 * third, lambda: torch.add(x, y, out=z)),
        "tinynet relu": (size, lambda: functional.relu(a)),
        "tinynet mse_loss": (size, lambda: functional.mse_loss(a, b)),
    }


def _computing(device: torch.device, dtype: torch.dtype) -> Kernels:
    """Matrix products and convolutions, none of which Winograd's algorithm serves."""
    kernels: Kernels = {}
    for size in PRODUCTS[device.type]:
        for kind in {dtype, torch.float32}:  # a CPU without 16-bit arithmetic computes 16-bit operands in fp32
            a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
            kernels[f"product {kind} {size}"] = 2 * size**3, lambda a=a, b=b: a @ b
            kernels[f"tinynet linear {kind} {size}"] = 2 * size**3, lambda a=a, b=b: functional.linear(a, b)
    N = IMAGES[device.type]
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight = torch.randn(N, 256, 28, 28, device=device).to(dtype), torch.randn(256, 256, 3, 3, device=device)
        x, weight = x.contiguous(memory_format=layout), weight.to(dtype).contiguous(memory_format=layout)
        flops = 2 * N * 14 * 14 * 256 * 256 * 9
        for name, conv in (("convolution", F.conv2d), ("tinynet conv2d", functional.conv2d)):
            kernels[f"{name} {layout}"] = flops, lambda conv=conv, x=x, w=weight: conv(x, w, stride=2, padding=1)
    return kernels

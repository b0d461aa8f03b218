# pyright: reportArgumentType=false
"""Large results lie in huge pages of memory, where Linux has them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from tinynet_engines.cpu import memory
from tinynet_kernels.launch import Problem

BLOCK = 1024
LARGE = 8 << 18  # numbers of fp32 that take 8 MB


@triton.jit
def copy_kernel(source_ptr, target_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target_ptr + at, tl.load(source_ptr + at, mask=at < count, other=0.0), mask=at < count)


def fresh(count: int) -> torch.Tensor:
    """fp32 numbers in a mapping of their own, which nothing has touched."""
    return torch.frombuffer(mmap.mmap(-1, 4 * count), dtype=torch.float32)


def is_advised(tensor: torch.Tensor) -> bool:
    """Whether huge pages were asked for in the middle of a tensor."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(each, 16) for each in first.split("-"))
            inside = start <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    return False


needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists() or not hasattr(mmap, "MADV_HUGEPAGE"),
    reason="this system has no transparent huge pages",
)


@needs_huge_pages
@pytest.mark.parametrize("planned", [True, False])
def test_large_results_are_in_huge_pages(planned: bool) -> None:
    count = LARGE - 3
    source, target = torch.randn(count), fresh(LARGE)[3:]
    grid = (triton.cdiv(count, BLOCK),)
    if planned:
        Problem(copy_kernel, grid, count, BLOCK=BLOCK).launch(source, target)
    else:
        copy_kernel[grid](source, target, count, BLOCK=BLOCK)
    assert torch.equal(source, target)
    assert is_advised(target)


@needs_huge_pages
def test_operands_and_small_results_stay_as_they_are() -> None:
    source, target = fresh(LARGE), fresh(1 << 18)
    Problem(copy_kernel, (triton.cdiv(LARGE, BLOCK),), 1 << 18, BLOCK=BLOCK).launch(source, target)
    assert not is_advised(source) and not is_advised(target)


def test_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_advice", lambda: None)
    source, target = torch.randn(LARGE), fresh(LARGE)
    Problem(copy_kernel, (triton.cdiv(LARGE, BLOCK),), LARGE, BLOCK=BLOCK).launch(source, target)
    assert torch.equal(source, target)
    assert not is_advised(target)

# pyright: reportArgumentType=false, reportCallIssue=false
"""Masks of the form `start + arange < n`, as foreign kernels write them, end loops instead of guarding elements."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def row_sum_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + place, mask=place < n, other=0.0)
        total += x * x
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + place, total, mask=place < n)


@pytest.mark.parametrize("n", [5, 1023, 1024, 1500, 4096])
def test_a_sum_over_rows_of_any_length(n: int) -> None:
    x, y = torch.randn(n), torch.full((max(n, 1024),), 7.0)
    row_sum_kernel[(1,)](x, y, n, BLOCK=1024)
    padded = torch.cat([x, torch.zeros(-n % 1024)]).double().square().view(-1, 1024).sum(0)
    expected = torch.where(torch.arange(1024) < n, padded.float(), 7.0)
    torch.testing.assert_close(y[:1024], expected)
    assert (y[1024:] == 7).all()


def test_no_element_is_guarded() -> None:
    x = torch.zeros(2048)
    text = row_sum_kernel.warmup(x, torch.empty(1024), 2048, BLOCK=1024, grid=(1,)).asm["c"].decode()
    fast = text.rpartition("#else")[2]
    loops = [line for line in fast.splitlines() if "? *" in line or line.startswith("if (")]
    assert loops and all("(1 ? *" in line or line.startswith("if (1)") for line in loops), loops


@triton.jit
def other_kernel(x_ptr, y_ptr, n, OTHER: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + place, mask=place < n, other=OTHER)
    tl.store(y_ptr + tl.arange(0, BLOCK), total)


@pytest.mark.parametrize("other", [0.0, 2.0])
def test_what_is_added_past_the_end(other: float) -> None:
    x, y = torch.randn(100), torch.empty(64)
    other_kernel[(1,)](x, y, 100, OTHER=other, BLOCK=64)
    expected = torch.cat([x, torch.full((28,), other)]).view(2, 64).sum(0)
    torch.testing.assert_close(y, expected)


@triton.jit
def loaded_start_kernel(x_ptr, start_ptr, y_ptr, n, BLOCK: tl.constexpr):
    index = tl.load(start_ptr) + tl.arange(0, BLOCK)
    tl.store(y_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + tl.arange(0, BLOCK)), mask=index < n)


def test_a_mask_of_loaded_indices_wraps() -> None:
    x, y = torch.randn(64), torch.zeros(64)
    loaded_start_kernel[(1,)](x, torch.tensor([2**31 - 32], dtype=torch.int32), y, 5, BLOCK=64)
    assert torch.equal(y, torch.where(torch.arange(64) < 32, 0.0, x))

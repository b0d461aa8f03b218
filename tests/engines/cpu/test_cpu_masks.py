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
    guarded = [line for line in fast.splitlines() if "? *" in line or line.startswith("if (")]
    assert "tinynet_kernel" in fast and not guarded, guarded


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


@triton.jit
def rows_kernel(x_ptr, w_ptr, y_ptr, most_ptr, n, rows, OTHER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = x * w - sum(x * w) / n and the largest x of each row, whose elements past the end are `OTHER`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < n)
    x = tl.load(x_ptr + row * n + column, mask=mask, other=OTHER).to(tl.float32)
    w = tl.load(w_ptr + column, mask=column < n, other=OTHER).to(tl.float32)
    total = tl.sum(x * w, axis=1) / n
    tl.store(y_ptr + row * n + column, x * w - total[:, None], mask=mask)
    most = tl.max(x, axis=1)
    tl.store(most_ptr + tl.program_id(0) * ROWS + tl.arange(0, ROWS), most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("other", [0.0, -3.0])
@pytest.mark.parametrize(("rows", "n", "block"), [(3, 1, 64), (3, 63, 64), (2, 64, 64), (3, 65, 128), (2, 100, 256)])
def test_rows_that_end_anywhere(rows: int, n: int, block: int, other: float, dtype: torch.dtype) -> None:
    x, w = torch.randn(rows, n).to(dtype), torch.randn(n).to(dtype)
    y, most = torch.full((rows, n), float("nan")), torch.full((4,), float("nan"))
    rows_kernel[(2,)](x, w, y, most, n, rows, OTHER=other, ROWS=2, BLOCK=block)
    padding = torch.full((4, block), other, dtype=torch.float64)
    padded_x, padded_w = padding.clone(), padding[0].clone()
    padded_x[:rows, :n], padded_w[:n] = x, w
    product = padded_x * padded_w
    expected = product - product.sum(1, keepdim=True) / n
    torch.testing.assert_close(y, expected[:rows, :n].float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(most, padded_x.amax(1).float(), atol=0, rtol=0)


@triton.jit
def shifted_kernel(x_ptr, y_ptr, total_ptr, n, BLOCK: tl.constexpr):
    """y = x - sum(x); then the sum of squares of x, as it was before y was stored."""
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < n, other=0.0)
    tl.store(y_ptr + place, x - tl.sum(x), mask=place < n)
    tl.store(total_ptr, tl.sum(x * x))


@pytest.mark.parametrize("shift", [None, -1, 0, 1])
def test_a_row_that_is_read_again_is_that_from_before_a_store(shift: int | None) -> None:
    memory, total = torch.randn(256), torch.empty(1)
    x = memory[8:208]
    y = torch.empty(200) if shift is None else memory[8 + shift : 208 + shift]
    before = x.clone()
    shifted_kernel[(1,)](x, y, total, 200, BLOCK=256)
    torch.testing.assert_close(total[0], before.square().sum())
    torch.testing.assert_close(y, before - before.sum())


def test_rows_are_read_again_instead_of_copied() -> None:
    x = torch.zeros(4000)
    text = shifted_kernel.warmup(x, torch.empty(4000), torch.empty(1), 4000, BLOCK=4096, grid=(1,)).asm["c"].decode()
    arena = [int(line.split()[-1][:-1]) for line in text.splitlines() if line.startswith("const int64_t tinynet_arena")]
    careful, disjoint = arena  # where x and y may overlap, and where they do not
    assert careful >= 4 * 4096 and disjoint < 4096


def test_totals_do_not_depend_on_the_size_of_a_tile() -> None:
    x, totals = torch.randn(200), []
    for block in (256, 512, 2048):
        total = torch.empty(1)
        shifted_kernel[(1,)](x, torch.empty(200), total, 200, BLOCK=block)
        totals.append(total)
    assert torch.equal(totals[0], totals[1]) and torch.equal(totals[0], totals[2])


@triton.jit
def shares_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < n, other=-float("inf"))
    share = tl.exp(x - tl.max(x))
    tl.store(y_ptr + place, share / tl.sum(share), mask=place < n)


def test_elements_past_the_end_are_computed_once() -> None:
    x, y = torch.randn(100), torch.empty(100)
    shares_kernel[(1,)](x, y, 100, BLOCK=256)
    torch.testing.assert_close(y, x.softmax(0))
    text = shares_kernel.warmup(x, y, 100, BLOCK=256, grid=(1,)).asm["c"].decode()
    fast = text.rpartition("#else")[2].splitlines()
    past_end = next(i for i, line in enumerate(fast) if line.startswith("for (int32_t") and "= cut" in line)
    body = fast[past_end + 1 : fast.index("}", past_end)]
    assert len(body) == 1 and "tn_expf" not in body[0], body


@triton.jit
def volatile_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < n, other=0.0, volatile=True)
    tl.store(y_ptr + place, x - tl.sum(x), mask=place < n)


def test_volatile_memory_is_read_once() -> None:
    x, y = torch.randn(100), torch.empty(100)
    volatile_kernel[(1,)](x, y, 100, BLOCK=128)
    torch.testing.assert_close(y, x - x.sum())
    text = volatile_kernel.warmup(x, y, 100, BLOCK=128, grid=(1,)).asm["c"].decode()
    fast = text.rpartition("#else")[2].splitlines()
    pointers = [line.split()[3] for line in fast if line.startswith("float * const e") and "(p0 +" in line]
    readers = [line for line in fast if any(f"*({pointer} +" in line for pointer in pointers)]
    assert len(readers) == 1, readers


@triton.jit
def neighbors_kernel(x_ptr, y_ptr, height, width, OTHER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = each row of x plus the rows above and below it, where there are any; an absent one is `OTHER`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < height) & (column < width)
    total = tl.load(x_ptr + row * width + column, mask=mask, other=0)
    for step in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
        near = row + (2 * step - 1)
        exists = mask & (near >= 0) & (near < height)
        total += tl.load(x_ptr + near * width + column, mask=exists, other=OTHER)
    tl.store(y_ptr + row * width + column, total, mask=mask)


@pytest.mark.parametrize("width", [64, 61, 5])
@pytest.mark.parametrize("other", [0, 3])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int8]
)
def test_rows_that_a_mask_leaves_out(dtype: torch.dtype, other: int, width: int) -> None:
    """The memory before and after x is NaN: a row that is left out is not read, whatever takes its place."""
    height, block = 11, 64
    memory = torch.full((3 * height, width), 99 if not dtype.is_floating_point else float("nan")).to(dtype)
    x, y = memory[height : 2 * height], torch.zeros(height, width, dtype=dtype)
    x.copy_(torch.randint(-9, 9, (height, width)).to(dtype))
    neighbors_kernel[(3,)](x, y, height, width, OTHER=other, ROWS=4, BLOCK=block)
    beyond = torch.full((1, width), other, dtype=dtype)
    padded = torch.cat([beyond, x, beyond])
    assert torch.equal(y, padded[:-2] + padded[1:-1] + padded[2:])


def test_rows_of_zeros_are_read_without_a_mask() -> None:
    x = torch.zeros(16, 64)
    arguments = (x, torch.empty_like(x), 16, 64)
    text = neighbors_kernel.warmup(*arguments, OTHER=0, ROWS=4, BLOCK=64, grid=(4,)).asm["c"].decode()
    fast = text.rpartition("#else")[2]
    assert "row_of_zeros" in fast and not [line for line in fast.splitlines() if "? *" in line]

# pyright: reportArgumentType=false, reportCallIssue=false
"""bf16 and fp16 in blocks: conversions to the bit, ends and masks of rows, and loops that carry several tensors."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

DTYPES = [torch.bfloat16, torch.float16]


@triton.jit
def convert_kernel(x_ptr, y_ptr, wide_ptr, SIZE: tl.constexpr):
    """Rounded to 16 bits, and the same value widened again with something computed on the way."""
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    y = tl.load(x_ptr + place).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + place, y)
    tl.debug_barrier()
    # Not -x, which Triton 3.6 computes as 0 - x: without the sign of a zero.
    tl.store(wide_ptr + place, tl.load(y_ptr + place).to(tl.float32) * -1.0)


def interesting_numbers() -> torch.Tensor:
    """Every exponent with every pattern of the bits that decide how a number is rounded, of both signs."""
    upper = torch.arange(2**16, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    return (upper[:, None] | lower).flatten().view(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversions_are_those_of_pytorch(dtype: torch.dtype) -> None:
    x = interesting_numbers()
    y, wide = torch.empty_like(x, dtype=dtype), torch.empty_like(x)
    convert_kernel[(x.numel() // 64,)](x, y, wide, SIZE=64)
    expected = x.to(dtype)
    is_number = ~expected.isnan()
    assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(wide.isnan(), expected.isnan())
    assert torch.equal(y.view(torch.int16)[is_number], expected.view(torch.int16)[is_number])
    assert torch.equal(wide.view(torch.int32)[is_number], (-expected.float()).view(torch.int32)[is_number])


@triton.jit
def scale_rows_kernel(x_ptr, keep_ptr, y_ptr, columns, other, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    kept = tl.load(keep_ptr + row) != 0
    inside = column < columns
    x = tl.load(x_ptr + row * columns + column, mask=kept & inside, other=other)
    tl.store(y_ptr + row * columns + column, (x.to(tl.float32) * 3.0).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + (ROWS + row) * columns + column, x, mask=kept & inside)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 40, 64])
def test_ends_and_masks_of_rows(dtype: torch.dtype, columns: int) -> None:
    x = torch.randn(8, columns).to(dtype)
    keep = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0], dtype=torch.int32)
    y = torch.full((16, columns), torch.nan, dtype=dtype)
    scale_rows_kernel[(1,)](x, keep, y, columns, 0.5, ROWS=8, COLUMNS=64)
    kept = keep[:, None] != 0
    scaled = (torch.where(kept, x, torch.tensor(0.5, dtype=dtype)).float() * 3).to(dtype)
    torch.testing.assert_close(y[:8], scaled, rtol=0, atol=0)
    torch.testing.assert_close(y[8:], torch.where(kept, x, torch.nan).to(dtype), rtol=0, atol=0, equal_nan=True)


@triton.jit
def mixed_kernel(x_ptr, flag_ptr, step, y_ptr, spread_ptr, SIZE: tl.constexpr):
    """Beside flags of one byte, at a step of more than one, and in place."""
    i = tl.arange(0, SIZE)
    x = tl.load(x_ptr + i).to(tl.float32)
    flag = tl.load(flag_ptr + i)
    tl.store(y_ptr + i, tl.where(flag != 0, x * 0.7, -x).to(y_ptr.dtype.element_ty))
    tl.store(flag_ptr + i, (x > 0).to(tl.int8))
    tl.store(spread_ptr + i * step, (x + 0.1).to(y_ptr.dtype.element_ty))
    tl.debug_barrier()
    tl.store(x_ptr + i, (x * 5.0).to(y_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 3])
def test_beside_small_integers_at_a_step_and_in_place(dtype: torch.dtype, step: int) -> None:
    x = torch.randn(64).to(dtype)
    flag = (torch.arange(64) % 3 == 0).to(torch.int8)
    y, spread, changed, sign = torch.empty_like(x), torch.zeros(64 * step, dtype=dtype), x.clone(), flag.clone()
    mixed_kernel[(1,)](changed, sign, step, y, spread, SIZE=64)
    wide = x.float()
    torch.testing.assert_close(y, torch.where(flag != 0, wide * 0.7, -wide).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(sign, (wide > 0).to(torch.int8), rtol=0, atol=0)
    torch.testing.assert_close(spread[::step], (wide + 0.1).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(changed, (wide * 5).to(dtype), rtol=0, atol=0)


@triton.jit
def carried_kernel(x_ptr, y_ptr, steps, SIZE: tl.constexpr):
    """Tensors that a loop carries from one to another, a half among them; one takes elements of its other places."""
    i = tl.arange(0, SIZE)
    first = tl.zeros((SIZE,), tl.float32)
    second = tl.full((SIZE,), 1.0, tl.float32)
    last = tl.zeros((SIZE,), x_ptr.dtype.element_ty)
    turned = i.to(tl.float32)
    for step in range(steps):
        x = tl.load(x_ptr + step * SIZE + i)
        turned = tl.reshape(tl.trans(tl.reshape(turned, (2, SIZE // 2))), (SIZE,)) + x.to(tl.float32)
        first, second, last = second, first + 2.0 * x.to(tl.float32), (last.to(tl.float32) * 0.5 + x).to(last.dtype)
    tl.store(y_ptr + i, first)
    tl.store(y_ptr + SIZE + i, second)
    tl.store(y_ptr + 2 * SIZE + i, last.to(tl.float32))
    tl.store(y_ptr + 3 * SIZE + i, turned)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_loop_carries_several_tensors(dtype: torch.dtype, steps: int) -> None:
    size = 64
    x, y = torch.randn(max(steps, 1), size).to(dtype), torch.empty(4, size)
    carried_kernel[(1,)](x, y, steps, SIZE=size)
    first, second, last, turned = (
        torch.zeros(size),
        torch.ones(size),
        torch.zeros(size, dtype=dtype),
        torch.arange(64.0),
    )
    for step in range(steps):
        wide = x[step].float()
        turned = turned.view(2, size // 2).t().flatten() + wide
        first, second, last = second, first + 2 * wide, (last.float() * 0.5 + wide).to(dtype)
    torch.testing.assert_close(y, torch.stack([first, second, last.float(), turned]))


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, rows, depth, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr, N: tl.constexpr):
    row, k, column = tl.arange(0, ROWS)[:, None], tl.arange(0, DEPTH), tl.arange(0, N)[None, :]
    total = tl.zeros((ROWS, N), tl.float32)
    for part in range(2):
        start = a_ptr + part * depth
        a = tl.load(start + row * stride + k[None, :], mask=(row < rows) & (k[None, :] < depth), other=0.0)
        b = tl.load(b_ptr + (part * depth + k[:, None]) * N + column, mask=k[:, None] < depth, other=0.0)
        total += tl.dot(a, b)
    tl.store(c_ptr + row * N + column, total, mask=row < rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("depth", "stride"), [(1, 2), (3, 6), (5, 13), (9, 20), (15, 31), (16, 32)])
@pytest.mark.parametrize("first", [0, 1])
def test_products_of_odd_rows_read_nothing_behind_them(dtype: torch.dtype, depth: int, stride: int, first: int) -> None:
    """Rows of A may begin at an odd place and have an odd length; what lies between them is NaN."""
    rows, columns = 29, 48
    memory = torch.full((rows * stride + first,), torch.nan, dtype=dtype)
    a = memory[first:].view(rows, stride)[:, : 2 * depth]
    a.copy_(torch.randn(rows, 2 * depth))
    b = torch.randn(2 * depth, columns).to(dtype)
    padded_b = torch.nn.functional.pad(b, (0, 64 - columns))
    c = torch.full((rows, 64), torch.nan)
    product_kernel[(1,)](memory[first:], padded_b, c, rows, depth, stride, ROWS=32, DEPTH=16, N=64)
    torch.testing.assert_close(c[:, :columns].double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    assert (c[:, columns:] == 0).all()

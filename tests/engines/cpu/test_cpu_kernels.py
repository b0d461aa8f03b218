# pyright: reportArgumentType=false, reportCallIssue=false
"""Compiled kernels against PyTorch: numerics, every kind of operation, and errors that once went unnoticed."""

from __future__ import annotations

import ctypes
import math
import mmap
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

ROOT = Path(__file__).resolve().parents[3]


@triton.jit
def functions_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offset, mask=offset < n, other=0.0)
    tl.store(y_ptr + offset, tl.exp(x), mask=offset < n)
    tl.store(y_ptr + n + offset, tl.exp2(x), mask=offset < n)
    tl.store(y_ptr + 2 * n + offset, tl.log(x), mask=offset < n)
    tl.store(y_ptr + 3 * n + offset, tl.erf(x), mask=offset < n)
    tl.store(y_ptr + 4 * n + offset, libdevice.tanh(x), mask=offset < n)
    tl.store(y_ptr + 5 * n + offset, tl.log2(x), mask=offset < n)


def test_functions_are_accurate_to_a_few_ulp() -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 1e-42, 3e38, -3e38])
    x = torch.cat(
        [torch.linspace(-110, 110, 20011), torch.linspace(-2, 2, 20011), torch.logspace(-44, 38, 5000), special]
    )
    n = x.numel()
    y = torch.full((6, n), math.nan)
    functions_kernel[(triton.cdiv(n, 1024),)](x, y, n, BLOCK=1024)
    wide = x.double()
    for row, exact in zip(y, (wide.exp(), wide.exp2(), wide.log(), wide.erf(), wide.tanh(), wide.log2()), strict=True):
        nearest = exact.float()
        finite = nearest.isfinite()
        assert torch.equal(row.isnan(), nearest.isnan())
        assert torch.equal(row[nearest.isinf()], nearest[nearest.isinf()])
        assert torch.equal(row.signbit()[nearest == 0], nearest.signbit()[nearest == 0])
        gap = (torch.nextafter(nearest, torch.tensor(math.inf)) - nearest).abs().double()
        assert ((row.double() - exact).abs()[finite] <= 2.5 * gap[finite]).all()


@triton.jit
def round_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offset, mask=offset < n, other=0.0)
    tl.store(y_ptr + offset, x.to(y_ptr.dtype.element_ty), mask=offset < n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn])
def test_small_floats_round_to_nearest_even_and_back(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16) if dtype.itemsize == 2 else None
    exact = bits.view(dtype) if bits is not None else torch.arange(-128, 128, dtype=torch.int8).view(dtype)
    halfway = exact.float()
    halfway = (halfway + halfway.roll(1)) / 2
    largest = torch.finfo(dtype).max
    x = torch.cat([exact.float(), halfway, torch.randn(5000), torch.randn(5000) * 1e-6])
    x = x[(x.abs() <= largest) | x.isnan()]  # larger values saturate differently in every library
    y = torch.empty(x.numel(), dtype=dtype)
    round_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), BLOCK=1024)
    assert torch.equal(y.float().nan_to_num(12345.0), x.to(dtype).float().nan_to_num(12345.0))
    back = torch.empty(x.numel())
    round_kernel[(triton.cdiv(x.numel(), 1024),)](y, back, x.numel(), BLOCK=1024)
    assert torch.equal(back.nan_to_num(12345.0), y.float().nan_to_num(12345.0))


@triton.jit
def wrap_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offset)
    tl.store(y_ptr + offset, ((x * 1103515245 + 12345) > x).to(tl.int32) + ((x + 2147483647) > x).to(tl.int32) * 2)
    tl.store(y_ptr + BLOCK + offset, (x * 1103515245 + 12345) >> 7)


def test_integers_wrap() -> None:
    """The prototype let the C compiler assume that they do not."""
    x = torch.randint(-(2**31), 2**31 - 1, (1024,)).to(torch.int32)
    y = torch.empty(2, 1024, dtype=torch.int32)
    wrap_kernel[(1,)](x, y, BLOCK=1024)
    hashed = (x.long() * 1103515245 + 12345 + 2**31) % 2**32 - 2**31
    moved = (x.long() + 2147483647 + 2**31) % 2**32 - 2**31
    assert torch.equal(y[0], ((hashed > x) + 2 * (moved > x).int()).int())
    assert torch.equal(y[1], (hashed >> 7).int())


@triton.jit
def copy_kernel(x_ptr, y_ptr, z_ptr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    a = tl.load(x_ptr + offset)
    tl.store(y_ptr + offset, a + 1.0)
    b = tl.load(x_ptr + offset)
    tl.store(z_ptr + offset, a * 10 + b)


@pytest.mark.parametrize("shift", [0, 1, 3, 64])
def test_overlapping_arguments(shift: int) -> None:
    """The prototype fused loads into a store loop that had already overwritten what they read."""
    memory = torch.arange(256.0)
    x, y, z = memory[:64], memory[shift : shift + 64], torch.empty(64)
    a = x.clone()
    copy_kernel[(1,)](x, y, z, BLOCK=64)
    expected = torch.arange(256.0)
    expected[shift : shift + 64] = a + 1
    assert torch.equal(memory, expected)
    assert torch.equal(z, a * 10 + expected[:64])


@triton.jit
def table_kernel(table_ptr, n, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    mask = offset < n
    x_ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32)) + offset
    y_ptr = tl.load(table_ptr + 1).to(tl.pointer_type(tl.float32)) + offset
    x, y = tl.load(x_ptr, mask=mask, other=0.0), tl.load(y_ptr, mask=mask, other=0.0)
    tl.debug_barrier()
    tl.store(x_ptr, x + 10 * y, mask=mask)
    tl.store(y_ptr, x - y, mask=mask)


@pytest.mark.parametrize("shift", [-64, -63, -5, -1, 1, 17, 63, 64, 100])
def test_overlapping_memory_behind_a_table_of_addresses(shift: int) -> None:
    """The program runs both stores in one loop, and restarts in its careful variant if that would be wrong."""
    memory = torch.arange(256.0)
    x, y = memory[64:128], memory[64 + shift : 128 + shift]
    a, b, expected = x.clone(), y.clone(), memory.clone()
    expected[64:128] = a + 10 * b
    expected[64 + shift : 128 + shift] = a - b
    table_kernel[(1,)](torch.tensor([x.data_ptr(), y.data_ptr()]), 64, BLOCK=64)
    assert torch.equal(memory, expected)


@triton.jit
def bounded_kernel(x_ptr, y_ptr, z_ptr, rows, columns, shift, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    in_rows, in_columns = index < rows, index < columns
    offset = index[:, None] * BLOCK + index[None, :]
    mask = in_rows[:, None] & in_columns[None, :]
    # The condition on rows, applied to columns, must not end the loop over columns.
    value = tl.where(in_rows[None, :], tl.load(x_ptr + offset), -1.0)
    tl.store(y_ptr + offset, value, mask=mask)
    wrapped = index + shift < rows  # true again where the sum overflows
    tl.store(z_ptr + offset, value, mask=wrapped[:, None] & in_columns[None, :])


@pytest.mark.parametrize("rows", [0, 1, 5, 16, 40, -3])
def test_masks_that_end_loops(rows: int) -> None:
    x = torch.randn(16, 16)
    index = torch.arange(16)
    for columns, shift in ((16, 0), (7, 3), (9, 2**31 - 8), (0, 1)):
        y, z = torch.zeros(2, 16, 16)
        bounded_kernel[(1,)](x, y, z, rows, columns, shift, BLOCK=16)
        value = torch.where((index < rows)[None, :], x, -1.0)
        in_columns = (index < columns)[None, :]
        assert torch.equal(y, torch.where((index < rows)[:, None] & in_columns, value, 0.0))
        wrapped = (
            (index.int() + shift).int() < rows if shift < 2**30 else (index + shift + 2**31) % 2**32 - 2**31 < rows
        )
        assert torch.equal(z, torch.where(wrapped[:, None] & in_columns, value, 0.0))


@triton.jit
def divide_kernel(a_ptr, b_ptr, y_ptr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    a, b = tl.load(a_ptr + offset), tl.load(b_ptr + offset)
    tl.store(y_ptr + offset, a // b)
    tl.store(y_ptr + BLOCK + offset, a % b)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
def test_integer_division_truncates_and_survives_zero(dtype: torch.dtype) -> None:
    least = torch.iinfo(dtype).min
    a = torch.tensor([7, -7, 7, -7, least, least, 5, 0] * 2, dtype=dtype)
    b = torch.tensor([2, 2, -2, -2, -1, 3, 0, 0] * 2, dtype=dtype)
    y = torch.zeros(2, 16, dtype=dtype)
    divide_kernel[(1,)](a, b, y, BLOCK=16)
    used = (b != 0) & ~((a == least) & (b == -1))
    assert torch.equal(y[0][used], torch.div(a, b.where(used, b.new_ones(())), rounding_mode="trunc")[used])
    assert torch.equal(y[1][used], torch.fmod(a, b.where(used, b.new_ones(())))[used])


@triton.jit
def divide_by_one_kernel(a_ptr, y_ptr, n, divisor, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + offset, mask=offset < n, other=0)
    tl.store(y_ptr + offset, a // divisor, mask=offset < n)
    tl.store(y_ptr + n + offset, a % divisor, mask=offset < n)
    tl.store(y_ptr + 2 * n + offset, a // 7, mask=offset < n)


def test_division_of_many_by_one_is_exact() -> None:
    """It multiplies with the inverse: quotients next to whole numbers show whether that is exact."""
    for divisor in (1, 2, 3, 7, 49, 641, 65535, 65536, 2**30 - 1, 2**31 - 1, -1, -3, -(2**31)):
        near = torch.randint(-(2**31), 2**31, (3000,)) // divisor * divisor
        a = torch.cat([near - 1, near, near + 1, torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)])])
        a = a.clamp(-(2**31), 2**31 - 1).int()
        y = torch.zeros(3, a.numel(), dtype=torch.int32)
        divide_by_one_kernel[(triton.cdiv(a.numel(), 256),)](a, y, a.numel(), divisor, BLOCK=256)
        wide = a.long()
        quotient = torch.div(wide, divisor, rounding_mode="trunc")
        assert torch.equal(y[0], quotient.int()), divisor
        assert torch.equal(y[1], (wide - quotient * divisor).int()), divisor
        assert torch.equal(y[2], torch.div(wide, 7, rounding_mode="trunc").int())


@triton.jit
def take_kernel(x_ptr, index_ptr, y_ptr, n, size, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    index = tl.load(index_ptr + offset, mask=offset < n, other=0)
    x = tl.load(x_ptr + index, mask=(offset < n) & (index < size), other=3.0)
    tl.store(y_ptr + offset, x, mask=offset < n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int16])
@pytest.mark.parametrize("start", [0, 2])
def test_16_bit_values_at_any_places(start: int, dtype: torch.dtype) -> None:
    """A vector load reads the aligned words around the values: none is in the next page or the one before."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    libc, address = ctypes.CDLL(None), ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for locked in (address, address + 2 * page):
        assert libc.mprotect(ctypes.c_void_p(locked), ctypes.c_size_t(page), 0) == 0
    x = torch.frombuffer(memory, dtype=dtype, count=(page - start) // 2, offset=page + start)
    count = torch.arange(len(x))
    x.copy_((count - 999) / 8 if dtype.is_floating_point else count * 37 - 99)
    index = torch.randint(0, len(x), (100,))
    index[:3] = torch.tensor([len(x) - 1, 0, len(x)])
    y = torch.empty(100, dtype=dtype)
    take_kernel[(1,)](x, index, y, 100, len(x), BLOCK=128)
    index[2] = 0
    expected = x[index]
    expected[2] = 3
    assert torch.equal(y, expected)
    for locked in (address, address + 2 * page):
        assert libc.mprotect(ctypes.c_void_p(locked), ctypes.c_size_t(page), 3) == 0


def test_16_bit_values_at_odd_addresses_are_right_or_refused() -> None:
    x = torch.frombuffer(bytearray(2 * 100 + 1), dtype=torch.bfloat16, offset=1)
    x.copy_(torch.arange(100.0))
    y = torch.empty(100, dtype=torch.bfloat16)
    round_kernel[(1,)](x, y, 100, BLOCK=128)
    assert torch.equal(y, x.clone())
    with pytest.raises(RuntimeError, match="x_ptr: got an odd address"):
        take_kernel[(1,)](x, torch.arange(100), y, 100, 100, BLOCK=128)


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn,
    WRAP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """WRAP: offsets past the edge wrap around, so that only K is masked; else pointers advance under masks."""
    row_start, column_start = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    row, column, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if WRAP:
        a_offset = (row % (M - row_start))[:, None] * stride_am + k[None, :] * stride_ak
        b_offset = k[:, None] * stride_bk + (column % (N - column_start))[None, :] * stride_bn
        a_base, b_base = a_ptr + row_start * stride_am, b_ptr + column_start * stride_bn
        for start in range(0, K, BLOCK_K):
            a = tl.load(a_base + a_offset, mask=(k < K - start)[None, :], other=0.0)
            b = tl.load(b_base + b_offset, mask=(k < K - start)[:, None], other=0.0)
            acc = tl.dot(a, b, acc, input_precision="ieee")
            a_base += BLOCK_K * stride_ak
            b_base += BLOCK_K * stride_bk
    else:
        a_at = a_ptr + (row_start + row)[:, None] * stride_am + k[None, :] * stride_ak
        b_at = b_ptr + k[:, None] * stride_bk + (column_start + column)[None, :] * stride_bn
        for start in range(0, K, BLOCK_K):
            a = tl.load(a_at, mask=(row_start + row < M)[:, None] & (k + start < K)[None, :], other=0.0)
            b = tl.load(b_at, mask=(k + start < K)[:, None] & (column_start + column < N)[None, :], other=0.0)
            acc += tl.dot(a, b, input_precision="ieee")
            a_at += BLOCK_K * stride_ak
            b_at += BLOCK_K * stride_bk
    mask = (row < M - row_start)[:, None] & (column < N - column_start)[None, :]
    c_at = c_ptr + (row_start + row)[:, None] * N + (column_start + column)[None, :]
    tl.store(c_at, acc.to(c_ptr.dtype.element_ty), mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_matmul(dtype: torch.dtype, wrap: bool, layout: str) -> None:
    for M, N, K in ((70, 45, 131), (64, 128, 64), (1, 17, 1), (40, 48, 611)):  # the last fills a queue twice
        a = torch.randn(M, K).to(dtype) if layout[0] == "n" else torch.randn(K, M).to(dtype).T
        b = torch.randn(K, N).to(dtype) if layout[1] == "n" else torch.randn(N, K).to(dtype).T
        c = torch.full((M, N), math.nan)
        grid = (triton.cdiv(M, 64), triton.cdiv(N, 32))
        matmul_kernel[grid](a, b, c, M, N, K, *a.stride(), *b.stride(), WRAP=wrap, BLOCK_M=64, BLOCK_N=32, BLOCK_K=32)
        exact = a.double() @ b.double()
        assert ((c - exact).abs() <= 1e-5 * math.sqrt(K) + 1e-5 * exact.abs()).all()


@triton.jit
def groups_kernel(
    a_ptr, b_ptr, c_ptr, rows, groups, STEPS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    """c[g] = 1 + sum over steps of a[step, :, g] b[step, g]: products in groups that lie side by side in rows of a.

    COPIED: of a and b as computed, not as they lie in memory.
    """
    g, row, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    in_groups = (g < groups)[:, None, None]
    a_offset = row[None, :, None] * (groups * WIDTH) + (g[:, None, None] * WIDTH + d[None, None, :])
    b_offset = (g[:, None, None] * WIDTH + d[None, :, None]) * WIDTH + d[None, None, :]
    c = tl.zeros((BLOCK_G, BLOCK_M, WIDTH), tl.float32) + 1
    for step in range(STEPS):
        mask = tl.broadcast_to((row < rows)[None, :, None], (BLOCK_G, BLOCK_M, WIDTH))
        mask = mask & tl.broadcast_to((row >= step)[None, :, None], (BLOCK_G, BLOCK_M, WIDTH))
        mask = mask & tl.broadcast_to(in_groups, (BLOCK_G, BLOCK_M, WIDTH))
        a = tl.load(a_ptr + step * rows * groups * WIDTH + a_offset, mask=mask, other=0.0)
        b = tl.load(b_ptr + step * groups * WIDTH * WIDTH + b_offset, mask=in_groups, other=0.0)
        if COPIED:
            a = -a
            b = -b
        c = tl.dot(a, b, c, input_precision="ieee")
    in_lines = (
        tl.reshape(tl.trans(c, (1, 0, 2)), (BLOCK_M, BLOCK_G * WIDTH)) + tl.sum(tl.sum(c, axis=1), axis=0).sum() * 0
    )
    column = tl.arange(0, BLOCK_G * WIDTH)
    mask = (row < rows)[:, None] & (column < groups * WIDTH)[None, :]
    tl.store(c_ptr + row[:, None] * (groups * WIDTH) + column[None, :], in_lines, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [2, 4, 8, 16])
@pytest.mark.parametrize("copied", [False, True])
def test_products_of_groups(width: int, copied: bool, dtype: torch.dtype) -> None:
    """More steps than a queue holds, rows of zeros, rows past the end, and groups that end within a vector."""
    rows, groups, steps = 29, 32 // width + 1, 19
    a = torch.randn(steps, rows, groups, width).to(dtype)
    b = torch.randn(steps, groups, width, width).to(dtype)
    c = torch.full((rows + 1, groups, width), math.nan)
    options = {"BLOCK_G": 64 // width, "BLOCK_M": 32, "WIDTH": width, "COPIED": copied}
    groups_kernel[(1,)](a, b, c, rows, groups, STEPS=steps, **options)
    in_step = (torch.arange(rows) >= torch.arange(steps)[:, None])[:, :, None, None]
    exact = 1 + torch.einsum("smgd,sgdj->mgj", (a * in_step).double(), b.double())
    assert ((c[:rows] - exact).abs() <= 1e-4).all()
    assert c[rows].isnan().all()


@triton.jit
def sums_of_groups_kernel(
    a_ptr, b_ptr, c_ptr, rows, groups,
    BLOCK_G: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    """c[g] = a[:, g]^T b[:, g]: sums over rows in groups that lie side by side. COPIED: of a as computed."""
    g, d = tl.arange(0, BLOCK_G)[:, None, None], tl.arange(0, WIDTH)
    channels = g * WIDTH + d[None, None, :]
    c = tl.zeros((BLOCK_G, WIDTH, WIDTH), tl.float32)
    for start in range(0, rows, BLOCK_M):
        row = tl.arange(0, BLOCK_M)[None, :, None]
        mask = tl.broadcast_to(row < rows - start, (BLOCK_G, BLOCK_M, WIDTH))
        mask = mask & tl.broadcast_to(g < groups, (BLOCK_G, BLOCK_M, WIDTH))
        odd = mask & tl.broadcast_to(row % 2 == 1, (BLOCK_G, BLOCK_M, WIDTH))
        a = tl.load(a_ptr + (start + row) * groups * WIDTH + channels, mask=odd, other=0.0)
        b = tl.load(b_ptr + (start + row) * groups * WIDTH + channels, mask=mask, other=0.0)
        if COPIED:
            a = a + a
        c = tl.dot(tl.trans(a, (0, 2, 1)), b, c, input_precision="ieee")
    offset = (g * WIDTH + d[None, :, None]) * WIDTH + d[None, None, :]
    tl.store(c_ptr + offset, c, mask=tl.broadcast_to(g < groups, (BLOCK_G, WIDTH, WIDTH)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [2, 4, 8, 16])
@pytest.mark.parametrize("copied", [False, True])
def test_sums_over_rows_of_groups(width: int, copied: bool, dtype: torch.dtype) -> None:
    rows, groups = 77, 32 // width + 1
    a, b = torch.randn(2, rows, groups, width).to(dtype)
    c = torch.full((groups + 1, width, width), math.nan)
    options = {"BLOCK_G": 64 // width, "BLOCK_M": 32, "WIDTH": width, "COPIED": copied}
    sums_of_groups_kernel[(1,)](a, b, c, rows, groups, **options)
    exact = (2 if copied else 1) * torch.einsum("mgd,mgj->gdj", a[1::2].double(), b[1::2].double())
    assert ((c[:groups] - exact).abs() <= 1e-4).all()
    assert c[groups].isnan().all()


@triton.jit
def shifted_rows_kernel(
    a_ptr, x_ptr, c_ptr, M, rows, shifts,
    WIDTH: tl.constexpr, SHIFTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """c[shift] = a x[shift:], adjacent in one tile: rows of B have SHIFTS segments, of which `shifts` are stored."""
    row, k, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K), tl.arange(0, SHIFTS * WIDTH)
    shift = column // WIDTH
    end = shifts * WIDTH
    acc = tl.zeros((BLOCK_M, SHIFTS * WIDTH), tl.float32)
    for start in range(0, rows, BLOCK_K):
        a = tl.load(a_ptr + row[:, None] + (start + k)[None, :] * M, mask=(row < M)[:, None], other=0.0)
        inside = (start + k)[:, None] + shift[None, :] < rows
        b_offset = ((start + k) * WIDTH)[:, None] + (shift * WIDTH + column % WIDTH)[None, :]
        b = tl.load(x_ptr + b_offset, mask=(k < rows - start)[:, None] & inside, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    c_offset = row[:, None] * WIDTH + (shift * M * WIDTH + column % WIDTH)[None, :]
    tl.store(c_ptr + c_offset, acc, mask=(row < M)[:, None] & (column < end)[None, :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_products_with_rows_of_several_segments(width: int, dtype: torch.dtype) -> None:
    M, rows, shifts = 33, 192, 5
    a, x = torch.randn(rows, M).to(dtype), torch.randn(rows, width).to(dtype)
    c = torch.full((shifts + 1, M, width), math.nan)
    shifted_rows_kernel[(1,)](a, x, c, M, rows, shifts, WIDTH=width, SHIFTS=8, BLOCK_M=64, BLOCK_K=64)
    for shift in range(shifts):
        exact = a[: rows - shift].double().T @ x[shift:].double()
        assert ((c[shift] - exact).abs() <= 2e-4).all(), shift
    assert c[shifts].isnan().all()


@triton.jit
def batched_product_kernel(a_ptr, b_ptr, c_ptr, DTYPE: tl.constexpr):
    offset = tl.arange(0, 2)[:, None, None] * 256 + tl.arange(0, 16)[None, :, None] * 16 + tl.arange(0, 16)
    a, b = tl.load(a_ptr + offset), tl.load(b_ptr + offset)
    tl.store(c_ptr + offset, tl.dot(a, b, out_dtype=DTYPE))


@pytest.mark.parametrize(("dtype", "result"), [(torch.int8, torch.int32), (torch.float64, torch.float64)])
def test_products_in_a_batch_of_integers_and_doubles(dtype: torch.dtype, result: torch.dtype) -> None:
    a, b = (torch.randint(-128, 128, (2, 16, 16)).to(dtype) for _ in range(2))
    c = torch.empty(2, 16, 16, dtype=result)
    batched_product_kernel[(1,)](a, b, c, tl.int32 if dtype is torch.int8 else tl.float64)
    assert torch.equal(c, a.to(result) @ b.to(result))


@triton.jit
def attention_kernel(q_ptr, k_ptr, v_ptr, o_ptr, n, SCALE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    row, lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    q = tl.load(q_ptr + row[:, None] * D + lane[None, :], mask=row[:, None] < n, other=0.0)
    acc = tl.zeros((BLOCK, D), tl.float32)
    peak = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        k = tl.load(k_ptr + column[None, :] * D + lane[:, None], mask=column[None, :] < n, other=0.0)
        score = tl.where(column[None, :] < n, tl.dot(q, k, input_precision="ieee") * SCALE, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        p, decay = tl.exp(score - new_peak[:, None]), tl.exp(peak - new_peak)
        total = total * decay + tl.sum(p, 1)
        v = tl.load(v_ptr + column[:, None] * D + lane[None, :], mask=column[:, None] < n, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak
    tl.store(o_ptr + row[:, None] * D + lane[None, :], acc / total[:, None], mask=row[:, None] < n)


def test_attention() -> None:
    q, k, v = torch.randn(3, 100, 32)
    o = torch.full((100, 32), math.nan)
    attention_kernel[(4,)](q, k, v, o, 100, SCALE=32**-0.5, D=32, BLOCK=32)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(o, expected, rtol=1e-4, atol=1e-5)


@triton.jit
def mixed_kernel(x_ptr, i_ptr, y_ptr, z_ptr, n, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    x = tl.load(x_ptr + lane)
    index = tl.load(i_ptr + lane)
    value, place = tl.max(x, 0, return_indices=True)
    steps = 0
    rest = value
    while rest > 0.5:
        rest = rest * 0.5
        steps += 1
    if n > 3:
        x = x * 2.0
    elif n < -3:
        x = x * 3.0
    left, right = tl.split(tl.reshape(x, (SIZE // 2, 2)))
    y = tl.reshape(tl.trans(tl.join(right, left)), (SIZE,))
    y = y + tl.gather(x, index, 0) + tl.cumsum(x, 0) + tl.sort(x)
    tl.store(y_ptr + lane, y)
    tl.store(z_ptr + tl.arange(0, 16), tl.histogram(index, 16))
    tl.atomic_add(z_ptr + 16 + index % 4, 1)
    if tl.program_id(0) == 1:
        return
    tl.store(z_ptr + 20, place)
    tl.store(z_ptr + 21, steps)


@pytest.mark.parametrize("n", [5, 0, -9])
def test_control_flow_and_views(n: int) -> None:
    x = torch.randn(32)
    x[7] = 9.0
    index = torch.randint(0, 16, (32,), dtype=torch.int32)
    y, z = torch.full((32,), math.nan), torch.zeros(22, dtype=torch.int32)
    mixed_kernel[(1,)](x, index, y, z, n, SIZE=32)
    scaled = x * (2 if n > 3 else 3 if n < -3 else 1)
    pairs = scaled.view(16, 2)
    expected = torch.stack([pairs[:, 1], pairs[:, 0]]).reshape(-1)
    expected = expected + scaled[index.long()] + scaled.cumsum(0) + scaled.sort().values
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert z[:16].tolist() == torch.bincount(index, minlength=16).tolist()
    assert z[16:20].tolist() == torch.bincount(index % 4, minlength=4).tolist()
    assert z[20:].tolist() == [7, 5]


@triton.jit
def joined_kernel(x_ptr, y_ptr, n, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    x = tl.load(x_ptr + lane, mask=lane < n, other=0.0)
    a, b = tl.exp(x), tl.exp(-x)
    pairs = tl.join(a + b, a - b)
    y = tl.join(pairs, tl.join(a * a, b * b))
    tl.store(y_ptr + tl.arange(0, 4 * SIZE), tl.reshape(y, (4 * SIZE,)))
    tl.store(y_ptr + 4 * SIZE + lane, tl.sum(pairs, 1))
    mixed = tl.reshape(tl.join(pairs, y.to(tl.float32).sum(2)), (4 * SIZE,))
    tl.store(y_ptr + 5 * SIZE + tl.arange(0, 4 * SIZE), mixed)


@pytest.mark.parametrize("size", [32, 2])
def test_joins_of_joins(size: int) -> None:
    """Also where another root needs one of the parts, or only one half is a join."""
    x, y, n = torch.randn(size), torch.full((9, size), math.nan), size - 1
    joined_kernel[(1,)](x, y, n, SIZE=size)
    x[n:] = 0
    a, b = x.double().exp(), (-x.double()).exp()
    pairs = torch.stack([a + b, a - b], 1)
    joined = torch.stack([pairs, torch.stack([a * a, b * b], 1)], 2)
    mixed = torch.stack([pairs, joined.sum(2)], 2)
    expected = torch.cat([joined.flatten(), pairs.sum(1), mixed.flatten()]).view(9, size)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@triton.jit
def wrapped_product_kernel(a_ptr, b_ptr, c_ptr, M, N, first_row, first_column, K: tl.constexpr, SIZE: tl.constexpr):
    lane, depth = tl.arange(0, SIZE), tl.arange(0, K)
    row, column = (first_row + lane) % M, (first_column + lane) % N
    a = tl.load(a_ptr + row[:, None] * K + depth[None, :])
    b = tl.load(b_ptr + depth[:, None] * N + column[None, :], mask=(depth < K * N)[:, None], other=0.0)
    tl.store(c_ptr + lane[:, None] * SIZE + lane[None, :], tl.dot(a, b))


def test_a_remainder_by_zero_of_masked_elements() -> None:
    c = torch.full((32, 32), math.nan)
    wrapped_product_kernel[(1,)](torch.randn(32, 32), torch.randn(1), c, 32, 0, 0, 5, K=32, SIZE=32)
    assert torch.equal(c, torch.zeros(32, 32))


@pytest.mark.parametrize("first", [0, 7, 40, 95, 200, -9, -40, -120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_rows_and_columns_that_wrap_around(dtype: torch.dtype, first: int) -> None:
    """As Triton's tutorial on products; a remainder has the sign of what is divided, as in C."""
    M, N, K, size = 48, 100, 32, 32
    a, b = torch.randn(3 * M, K).to(dtype), torch.randn(K + 2, N).to(dtype)  # with room before and after
    c = torch.full((size, size), math.nan)
    wrapped_product_kernel[(1,)](a[M:], b[1:], c, M, N, first - 2, first, K=K, SIZE=size)
    rows = [math.fmod(first - 2 + i, M) + M for i in range(size)]
    columns = [math.fmod(first + i, N) + N for i in range(size)]
    right = torch.stack([b.flatten()[torch.tensor(columns).long() + k * N] for k in range(K)])
    expected = a[torch.tensor(rows).long()].double() @ right.double()
    torch.testing.assert_close(c.double(), expected, rtol=1e-4, atol=1e-4)


@triton.jit
def unknown_kernel(x_ptr):
    x = tl.load(x_ptr + tl.arange(0, 16))
    y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(x_ptr + tl.arange(0, 16), y)


def test_an_unknown_operation_is_named_with_its_source_line() -> None:
    with pytest.raises(Exception, match=r"tt\.elementwise_inline_asm[\s\S]*test_cpu_kernels\.py:\d+"):
        unknown_kernel[(1,)](torch.zeros(16, dtype=torch.int32))


@triton.jit
def checked_kernel(x_ptr, n):
    value = tl.load(x_ptr + tl.program_id(0))
    tl.device_assert(value < n, "value too large")
    tl.device_print("value", value)


@triton.jit
def steps_of_collatz(number, LIMIT: tl.constexpr):
    if number < 1:
        return number - 1, number
    if number == 1:
        return 0, number
    steps = 0
    while number != 1 and steps < LIMIT:
        number = 3 * number + 1 if number % 2 == 1 else number // 2
        steps += 1
    if steps == LIMIT:
        return -LIMIT, number
    return steps, number


@triton.jit
def early_returns_kernel(steps_ptr, last_ptr, first, count):
    for i in range(count):
        steps, last = steps_of_collatz(first + i, 100)
        tl.store(steps_ptr + i, steps)
        tl.store(last_ptr + i, last)


def test_early_returns_of_a_function_that_is_called_in_a_loop() -> None:
    steps, last = (torch.full((30,), -7, dtype=torch.int32) for _ in range(2))
    early_returns_kernel[(1,)](steps, last, -1, 30)
    expected = []
    for number in range(-1, 29):
        count = 0
        while number > 1 and count < 100:
            number = 3 * number + 1 if number % 2 else number // 2
            count += 1
        expected.append((number - 1 if number < 1 else -100 if count == 100 else count, number))
    assert list(zip(steps.tolist(), last.tolist(), strict=True)) == expected


def test_too_few_arguments_of_a_compiled_kernel_are_counted() -> None:
    x = torch.rand(64)
    for _ in range(2):
        compiled = functions_kernel.warmup(x, torch.empty(6, 64), 64, BLOCK=64, grid=(1,))
        with pytest.raises(TypeError, match="functions_kernel: got 2 arguments, expected 3"):
            compiled[(1, 1, 1)](x, torch.empty(6, 64))
    y = torch.empty(6, 64)
    compiled[(1, 1, 1)](x, y, 64)
    torch.testing.assert_close(y[0], x.exp())


def test_device_assert_and_print(capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.tensor([1, 2, 3], dtype=torch.int32)
    checked_kernel[(3,)](x, 10, debug=True)
    assert sorted(line.split("value")[1].strip(": ") for line in capfd.readouterr().out.splitlines()) == ["1", "2", "3"]
    with pytest.raises(RuntimeError, match=r"value too large.*test_cpu_kernels\.py"):
        checked_kernel[(3,)](x, 2, debug=True)


@triton.jit
def count_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(x_ptr, 1)


def test_grids_from_nothing_to_many_programs() -> None:
    x = torch.zeros(1, dtype=torch.int64)
    for grid, expected in (((0,), 0), ((5, 0, 3), 0), ((3, 2, 4), 24), ((70000, 3), 210000)):
        x.zero_()
        count_kernel[grid](x, BLOCK=1)
        assert x.item() == expected


def test_misaligned_pointers() -> None:
    memory = torch.zeros(4 * 300 + 1, dtype=torch.uint8)
    x = memory[1 : 1 + 4 * 256]
    odd = torch.frombuffer(memory.numpy().data, dtype=torch.float32, count=256, offset=1)
    odd.copy_(torch.arange(256.0))
    y = torch.empty(256)
    round_kernel[(1,)](odd, y, 256, BLOCK=256)
    assert torch.equal(y, torch.arange(256.0)) and x.data_ptr() % 4 == 1


def test_callers_in_several_threads() -> None:
    errors: list[str] = []

    def call(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, 96, 96, generator=generator)
        for _ in range(10):
            c = torch.full((96, 96), math.nan)
            matmul_kernel[(2, 3)](a, b, c, 96, 96, 96, 96, 1, 96, 1, WRAP=True, BLOCK_M=64, BLOCK_N=32, BLOCK_K=32)
            if not torch.allclose(c, a @ b, atol=1e-3):
                errors.append(f"thread {seed}")

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


FORKED = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from tinynet_engines import cpu
cpu.activate()
from test_cpu_kernels import count_kernel
torch.set_num_threads(2)
x = torch.zeros(1, dtype=torch.int64)
count_kernel[(100,)](x, BLOCK=1)
child = os.fork()
if child == 0:
    count_kernel[(100,)](x, BLOCK=1)
    os._exit(0 if x.item() == 200 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_runs_kernels() -> None:
    """OpenMP's threads do not survive a fork; a DataLoader's workers fork."""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    command = [sys.executable, "-c", FORKED, str(Path(__file__).parent)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr


@triton.jit
def transposed_product_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_a, SKIPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """c [M, N] = a^T b of a [K, M] and b [K, N]; with SKIPS without every third row of a."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    step = tl.arange(0, 32)
    c = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, 32):
        k = start + step
        exists = k < K
        if SKIPS:
            exists = exists & (k % 3 != 1)
        a = tl.load(a_ptr + k[None, :] * stride_a + row[:, None], mask=exists[None, :] & (row < M)[:, None], other=0.0)
        b = tl.load(b_ptr + k[:, None] * N + column[None, :], mask=(k < K)[:, None] & (column < N)[None, :], other=0.0)
        c = tl.dot(a, b, c, input_precision="ieee")
    mask = (row < M)[:, None] & (column < N)[None, :]
    tl.store(c_ptr + row[:, None] * N + column[None, :], c, mask=mask)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("k", [1, 37, 400])
@pytest.mark.parametrize(("m", "n"), [(256, 512), (255, 500), (141, 257), (131, 300)])
def test_columns_packed_in_strips(m: int, n: int, k: int, skips: bool) -> None:
    """Strips of every height, and a last panel narrower than a vector; the memory between the rows of a is NaN."""
    memory = torch.full((k, m + 5), float("nan"))
    a, b, c = memory[:, :m], torch.randn(k, n), torch.full((m, n), float("nan"))
    a.copy_(torch.randn(k, m))
    transposed_product_kernel[(1,)](a, b, c, m, n, k, a.stride(0), SKIPS=skips, ROWS=256, COLUMNS=512)
    taken = torch.arange(k) % 3 != 1 if skips else torch.ones(k, dtype=torch.bool)
    torch.testing.assert_close(c.double(), a[taken].double().T @ b[taken].double(), rtol=1e-5, atol=1e-4)

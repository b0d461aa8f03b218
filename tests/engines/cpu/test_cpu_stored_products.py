# pyright: reportArgumentType=false, reportCallIssue=false
"""Sums of products that a store alone reads: the run-time library writes them from registers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIRECT = "services->finish_into"


@triton.jit
def product_kernel(
    a_ptr, b_ptr, bias_ptr, y_ptr, M, N, K, stored_rows, a_stride, a_step, y_stride, y_step,
    RECTIFIED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = rectify(a b + bias), of which the first ``stored_rows`` rows are stored."""
    row, column, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        inside = start + k < K
        a = a_ptr + row[:, None] * a_stride + (start + k) * a_step
        a = tl.load(a, mask=(row < M)[:, None] & inside[None, :], other=0.0)
        b = tl.load(b_ptr + (start + k)[:, None] * N + column, mask=inside[:, None] & (column < N)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    if RECTIFIED:
        total = tl.where(total <= 0, 0.0, total)
    place = y_ptr + row[:, None] * y_stride + column[None, :] * y_step
    tl.store(place, total.to(y_ptr.dtype.element_ty), mask=(row < stored_rows)[:, None] & (column < N)[None, :])


def launch(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    y: Tensor,
    rectified: bool = False,
    rows: int | None = None,
    columns: int = 64,
) -> str:
    """Runs the kernel and returns the C text that it was compiled from."""
    (M, K), N = a.shape, b.shape[1]
    arguments = (a, b, bias, y, M, N, K, M if rows is None else rows, *a.stride(), *y.stride())
    options = {"RECTIFIED": rectified, "BM": 32, "BN": columns, "BK": 16}
    kernel: Any = product_kernel[(triton.cdiv(M, 32),)](*arguments, **options)
    return kernel.asm["c"].decode()


def expected(a: Tensor, b: Tensor, bias: Tensor | None, rectified: bool) -> Tensor:
    y = a.double() @ b.double() + (0 if bias is None else bias.double())
    return torch.where(y <= 0, 0.0, y) if rectified else y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(32, 64, 16), (45, 40, 50), (12, 16, 7), (33, 1, 300), (70, 23, 0)])
def test_products_with_bias_and_rectifier(
    dtype: torch.dtype, rectified: bool, with_bias: bool, M: int, N: int, K: int
) -> None:
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    bias = torch.randn(N).to(dtype) if with_bias else None
    y = torch.full((M, N), torch.nan, dtype=dtype)
    assert DIRECT in launch(a, b, bias, y, rectified)
    reference = expected(a, b, bias, rectified)
    # A sum that cancels to nearly 0 keeps the rounding errors of its terms.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(y.double(), reference, rtol=tolerance, atol=max(1, K) ** 0.5 * 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 70, 140])
@pytest.mark.parametrize(("width", "columns"), [(256, 256), (192, 256), (144, 256), (1040, 256), (1040, 16)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_few_rows(dtype: torch.dtype, rows: int, width: int, columns: int, transposed: bool) -> None:
    """Up to three rows are multiplied by long pieces of rows of b, which may be pages apart."""
    a = torch.randn(37, rows).T if transposed else torch.randn(rows, 37)
    b, bias = torch.randn(37, width), torch.randn(width)
    stored = min(width, columns)
    y = torch.full((rows, width), torch.nan, dtype=dtype)
    launch(a, b, bias, y, rectified=True, columns=columns)
    reference = expected(a, b, bias, True)[:, :stored]
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(y[:, :stored].double(), reference, rtol=tolerance, atol=1e-5)
    assert bool(y[:, stored:].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 32, 40])
def test_nothing_beside_the_stored_elements_changes(dtype: torch.dtype, columns: int) -> None:
    """Fewer rows than were multiplied, in the middle of a larger tensor."""
    a, b = torch.randn(40, 24).to(dtype), torch.randn(24, columns).to(dtype)
    memory = torch.full((44, 80), 7.0, dtype=dtype)
    y = memory[2:42, 8 : 8 + columns]
    launch(a, b, None, y, rows=37)
    torch.testing.assert_close(y[:37].double(), expected(a, b, None, False)[:37], rtol=2**-8, atol=1e-5)
    y[:37] = 7
    assert torch.all(memory == 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_infinity_and_denormals_are_stored(dtype: torch.dtype) -> None:
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1e-39, -1e-39, 3e-41, 1.5])
    a, b = torch.eye(16).repeat(2, 1).to(dtype), torch.zeros(16, 32)
    b[:, 0] = 1.0  # which the factor 0 of others would make NaN
    bias = special.repeat(4)
    for rectified in (False, True):
        y = torch.empty(32, 32, dtype=dtype)
        launch(a, b.to(dtype), bias, y, rectified)
        z = (a.float() @ b) + bias
        reference = torch.where(z <= 0, 0.0, z) if rectified else z
        torch.testing.assert_close(y, reference.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("source", ["a", "b"])
def test_the_result_may_replace_an_operand(source: str) -> None:
    """The first columns are not written while the last ones still read what lies there."""
    a, b = torch.randn(32, 32), torch.randn(32, 64)
    reference = expected(a, b, None, False).float()
    if source == "a":
        memory = torch.empty(32 * 64)
        a, y = memory[: 32 * 32].view(32, 32).copy_(a), memory.view(32, 64)
    else:
        y = b
    launch(a, b, None, y)
    torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-5)


def test_a_result_along_the_other_dimension_is_stored_as_before() -> None:
    a, b, y = torch.randn(40, 20), torch.randn(20, 48), torch.empty(48, 40)
    launch(a, b, torch.ones(48), y.t(), True)
    torch.testing.assert_close(y.t().double(), expected(a, b, torch.ones(48), True), rtol=1e-5, atol=1e-5)


@triton.jit
def used_twice_kernel(a_ptr, b_ptr, y_ptr, sum_ptr, K, SIZE: tl.constexpr, WRITES: tl.constexpr):
    """Something else reads the sum, or writes memory between the sum and its store."""
    i = tl.arange(0, SIZE)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, K, SIZE):
        a = tl.load(a_ptr + i[:, None] * K + start + i[None, :])
        b = tl.load(b_ptr + (start + i)[:, None] * SIZE + i[None, :])
        total = tl.dot(a, b, total, input_precision="ieee")
    if WRITES:
        tl.store(a_ptr + i, 0.0 * i)
    else:
        tl.store(sum_ptr + i, tl.sum(total, 1))
    tl.store(y_ptr + i[:, None] * SIZE + i[None, :], total)


@pytest.mark.parametrize("writes", [False, True])
def test_a_sum_that_must_be_in_memory_is_not_stored_directly(writes: bool) -> None:
    a, b, y, sums = torch.randn(16, 48), torch.randn(48, 16), torch.empty(16, 16), torch.empty(16)
    reference = a @ b
    kernel: Any = used_twice_kernel[(1,)](a, b, y, sums, 48, SIZE=16, WRITES=writes)
    text = kernel.asm["c"].decode()
    assert DIRECT not in text
    torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-5)
    if not writes:
        torch.testing.assert_close(sums, reference.sum(1), rtol=1e-5, atol=1e-5)


@triton.jit
def batch_kernel(
    a_ptr, b_ptr, y_ptr, K, y_row, y_column, GROUPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """y[g] = sum over k of a[k, g] b[k, g]: a product in each group, stored as it is."""
    group, row = tl.arange(0, GROUPS)[:, None, None], tl.arange(0, ROWS)[None, :, None]
    inner, column = tl.arange(0, WIDTH)[None, :, None], tl.arange(0, WIDTH)[None, None, :]
    total = tl.zeros((GROUPS, ROWS, WIDTH), tl.float32)
    for k in range(K):
        a = tl.load(a_ptr + ((k * GROUPS + group) * ROWS + row) * WIDTH + column)
        b = tl.load(b_ptr + ((k * GROUPS + group) * WIDTH + inner) * WIDTH + column)
        total = tl.dot(a, b, total, input_precision="ieee")
    tl.store(y_ptr + group * ROWS * WIDTH + row * y_row + column * y_column, total)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_groups_are_stored_as_before(transposed: bool) -> None:
    a, b = torch.randn(3, 4, 32, 16), torch.randn(3, 4, 16, 16)
    y = torch.empty(4, 16, 32).mT if transposed else torch.empty(4, 32, 16)
    batch_kernel[(1,)](a, b, y, 3, *y.stride()[1:], GROUPS=4, ROWS=32, WIDTH=16)
    torch.testing.assert_close(y.double(), (a.double() @ b.double()).sum(0), rtol=1e-5, atol=1e-5)


@triton.jit
def groups_kernel(
    a_ptr, b_ptr, bias_ptr, y_ptr, rows, groups, STEPS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y[:, g] = rectify(bias[g] + sum over steps of a[step, :, g] b[step, g]), groups side by side in rows."""
    COLUMNS: tl.constexpr = BLOCK_G * WIDTH
    g, row, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    a_offset = row[None, :, None] * (groups * WIDTH) + (g[:, None, None] * WIDTH + d[None, None, :])
    b_offset = (g[:, None, None] * WIDTH + d[None, :, None]) * WIDTH + d[None, None, :]
    in_groups = (g < groups)[:, None, None]
    mask = tl.broadcast_to((row < rows)[None, :, None], (BLOCK_G, BLOCK_M, WIDTH))
    mask = mask & tl.broadcast_to(in_groups, (BLOCK_G, BLOCK_M, WIDTH))
    total = tl.zeros((BLOCK_G, BLOCK_M, WIDTH), tl.float32)
    for step in range(STEPS):
        a = tl.load(a_ptr + step * rows * groups * WIDTH + a_offset, mask=mask, other=0.0)
        b = tl.load(b_ptr + step * groups * WIDTH * WIDTH + b_offset, mask=in_groups, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    in_lines = tl.reshape(tl.trans(total, (1, 0, 2)), (BLOCK_M, COLUMNS))
    column = tl.arange(0, COLUMNS)
    in_lines += tl.load(bias_ptr + column, mask=column < groups * WIDTH, other=0.0)[None, :]
    in_lines = tl.where(in_lines <= 0, 0.0, in_lines)
    place = row[:, None] * (groups * WIDTH) + column[None, :]
    mask = (row < rows)[:, None] & (column < groups * WIDTH)[None, :]
    tl.store(y_ptr + place, in_lines.to(y_ptr.dtype.element_ty), mask=mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 4, 8, 16])
@pytest.mark.parametrize(("rows", "channels", "steps"), [(53, 64, 9), (31, 48, 2), (7, 80, 40), (64, 16, 3)])
def test_products_of_groups(dtype: torch.dtype, width: int, rows: int, channels: int, steps: int) -> None:
    """Strips of all heights, one and two vectors of columns, and more steps than a queue holds."""
    groups = channels // width + (width < 16)  # narrow ones end within a vector
    a = torch.randn(steps, rows, groups, width).to(dtype)
    b = torch.randn(steps, groups, width, width).to(dtype)
    bias = torch.randn(groups * width)
    y = torch.full((rows + 1, groups, width), torch.nan, dtype=dtype)
    options = {"BLOCK_G": 128 // width, "BLOCK_M": 64, "WIDTH": width}
    kernel: Any = groups_kernel[(1,)](a, b, bias, y, rows, groups, STEPS=steps, **options)
    assert DIRECT in kernel.asm["c"].decode()
    exact = (torch.einsum("smgd,sgdj->mgj", a.double(), b.double()) + bias.view(groups, width)).clamp(0)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(y[:rows].double(), exact, rtol=tolerance, atol=1e-4)
    assert y[rows].isnan().all()

# pyright: reportArgumentType=false, reportCallIssue=false
"""Reductions and scans: of 16-bit values, of NaN and equal values, with combinations of one's own."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

SMALL = [torch.bfloat16, torch.float16]


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def keep_sum_and_largest(a, b, c, d):
    return a + c, tl.maximum(b, d)


@triton.jit
def step_of_recurrence(factor, state, next_factor, value):
    return factor * next_factor, next_factor * state + value


@triton.jit
def sums_kernel(
    x_ptr, factor_ptr, running_ptr, reversed_ptr, product_ptr, custom_ptr, total_ptr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * COLUMNS
    column = tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + row + column)
    tl.store(running_ptr + row + column, tl.cumsum(x, 0))
    tl.store(reversed_ptr + row + column, tl.cumsum(x, 0, reverse=True))
    tl.store(product_ptr + row + column, tl.cumprod(tl.load(factor_ptr + row + column), 0))
    tl.store(custom_ptr + row + column, tl.associative_scan(x, 0, add))
    tl.store(total_ptr + tl.program_id(0), tl.reduce(x, 0, add))


@pytest.mark.parametrize("dtype", SMALL)
def test_sums_of_small_floats_are_rounded_once(dtype: torch.dtype) -> None:
    x, factor = torch.rand(3, 1024).to(dtype), (0.99 + 0.02 * torch.rand(3, 1024)).to(dtype)
    running, backwards, product, custom = (torch.empty_like(x) for _ in range(4))
    total = torch.empty(3, dtype=dtype)
    sums_kernel[(3,)](x, factor, running, backwards, product, custom, total, COLUMNS=1024)
    exact = x.double().cumsum(1)
    expected = {
        "running": (running, exact),
        "backwards": (backwards, x.double().flip(1).cumsum(1).flip(1)),
        "product": (product, factor.double().cumprod(1)),
        "custom": (custom, exact),
        "total": (total, exact[:, -1]),
    }
    for name, (ours, reference) in expected.items():
        spacing = torch.finfo(dtype).eps * reference.abs()
        assert ((ours.double() - reference).abs() <= 0.51 * spacing).all(), name


@triton.jit
def recurrence_kernel(factor_ptr, value_ptr, y_ptr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    factor, value = tl.load(factor_ptr + column), tl.load(value_ptr + column)
    _, y = tl.associative_scan((factor, value), 0, step_of_recurrence)
    tl.store(y_ptr + column, y)


@pytest.mark.parametrize("dtype", SMALL)
def test_a_recurrence_of_small_floats_is_rounded_once(dtype: torch.dtype) -> None:
    factor, value = (0.9 + 0.2 * torch.rand(256)).to(dtype), torch.randn(256).to(dtype)
    y = torch.empty_like(value)
    recurrence_kernel[(1,)](factor, value, y, COLUMNS=256)
    state, states = 0.0, []
    for a, b in zip(factor.double().tolist(), value.double().tolist(), strict=True):
        state = a * state + b
        states.append(state)
    expected = torch.tensor(states, dtype=torch.float64)
    error = (y.double() - expected).abs()
    assert (error <= torch.finfo(dtype).eps * expected.abs() + 1e-5 * expected.abs().max()).all()


@triton.jit
def extrema_kernel(x_ptr, largest_ptr, smallest_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    place = tl.arange(0, COLUMNS if AXIS == 0 else ROWS)
    tl.store(largest_ptr + place, tl.argmax(x, AXIS))
    tl.store(smallest_ptr + place, tl.argmin(x, AXIS))


def extrema(x: torch.Tensor, axis: int = 1) -> tuple[list[int], list[int]]:
    largest, smallest = (torch.full((x.shape[1 - axis],), -1, dtype=torch.int32) for _ in range(2))
    extrema_kernel[(1,)](x, largest, smallest, *x.shape, AXIS=axis)
    return largest.tolist(), smallest.tolist()


def in_halves(values: list[float], sign: int) -> int:
    """The place of the largest (-1: smallest), the first half combined with the second until one is left."""
    pairs = list(enumerate(values))
    while len(pairs) > 1:
        half = len(pairs) // 2
        pairs = [
            a if sign * a[1] > sign * b[1] or (a[1] == b[1] and a[0] < b[0]) else b
            for a, b in zip(pairs[:half], pairs[half:], strict=True)
        ]
    return pairs[0][0]


def test_nan_is_met_in_the_order_of_a_gpus_lanes() -> None:
    assert extrema(torch.tensor([[3.0, 5.0, math.nan, -math.inf]])) == ([1], [3])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_places_of_extrema_with_equal_values_and_nan(dtype: torch.dtype, axis: int) -> None:
    x = torch.randint(-3, 4, (16, 32)).to(dtype)
    if dtype.is_floating_point:
        x[torch.rand(16, 32) < 0.1] = math.nan
    lines = x.double().T if axis == 0 else x.double()
    expected = tuple([in_halves(line, sign) for line in lines.tolist()] for sign in (1, -1))
    assert extrema(x, axis) == expected


@triton.jit
def pairs_kernel(x_ptr, sum_ptr, largest_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    total, largest = tl.reduce((x, x), 0, keep_sum_and_largest)
    tl.store(sum_ptr + tl.arange(0, COLUMNS), total)
    tl.store(largest_ptr + tl.arange(0, COLUMNS), largest)


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_a_combination_of_several_values(rows: int) -> None:
    x = torch.randn(rows, 8)
    total, largest = torch.empty(8), torch.empty(8)
    pairs_kernel[(1,)](x, total, largest, rows, 8)
    torch.testing.assert_close(total, x.sum(0))
    assert torch.equal(largest, x.amax(0))

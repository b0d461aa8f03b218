"""bfloat16 in the interpreter, against PyTorch, one class of operation at a time."""

# Triton types a kernel's constexpr parameters as constexpr, and takes plain values for them.
# pyright: reportArgumentType=false

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

import triton
import triton.language as tl

from tinynet_engines import interpreter as interpreter_engine

interpreter_engine.install()

SIZE = 1024
BFLOAT16_EPSILON = 2.0**-8
INFINITY, NAN = float("inf"), float("nan")
SPECIAL = [0.0, -0.0, INFINITY, -INFINITY, NAN, 1e-40, -1e-40, 3.4e38, -3.4e38, 1.00390625, 1.01171875]


def random_values(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """[SIZE] values over many magnitudes, including the special ones."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-20, 20, (SIZE,), generator=generator)
    values = torch.randn(SIZE, generator=generator) * 2.0**exponents
    values[: len(SPECIAL)] = torch.tensor(SPECIAL)
    return values.to(dtype)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bit for bit, NaN equal to NaN."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@triton.jit
def binary_kernel(x_ptr, y_ptr, out_ptr, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    if OPERATION == "add":
        value = x + y
    elif OPERATION == "sub":
        value = x - y
    elif OPERATION == "mul":
        value = x * y
    elif OPERATION == "div":
        value = x / y
    elif OPERATION == "maximum":
        value = tl.maximum(x, y)
    elif OPERATION == "minimum":
        value = tl.minimum(x, y)
    elif OPERATION == "where":
        value = tl.where(x < y, x, y)
    elif OPERATION == "less":
        value = ((x < y) & (x != y)).to(tl.bfloat16)
    elif OPERATION == "fma":
        value = tl.fma(x, y, x)
    elif OPERATION == "chain":
        value = (x * 1.5 + y) * 0.3 - 2
    tl.store(out_ptr + offsets, value)


def fused_multiply_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.double() * y.double() + x.double()).to(torch.bfloat16)


BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.fmax,
    "minimum": torch.fmin,
    "where": lambda x, y: torch.where(x < y, x, y),
    "less": lambda x, y: (x < y).to(torch.bfloat16),
    "fma": fused_multiply_add,
    # Triton rounds a constant to the tensor's dtype; PyTorch does not.
    "chain": lambda x, y: (x * 1.5 + y) * torch.tensor(0.3, dtype=torch.bfloat16) - 2,
}


@pytest.mark.parametrize("operation", BINARY)
def test_binary_operation_equals_pytorch(operation: str) -> None:
    x, y = random_values(), random_values(seed=1)
    out = torch.full_like(x, float("nan"))
    binary_kernel[(1,)](x, y, out, OPERATION=operation, SIZE=SIZE)
    assert_same(out, BINARY[operation](x, y))


@triton.jit
def unary_kernel(x_ptr, out_ptr, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offsets)
    if OPERATION == "neg":
        value = -x
    elif OPERATION == "abs":
        value = tl.abs(x)
    elif OPERATION == "exp":
        value = tl.exp(x.to(tl.float32)).to(tl.bfloat16)
    elif OPERATION == "log":
        value = tl.log(tl.abs(x).to(tl.float32)).to(tl.bfloat16)
    elif OPERATION == "sigmoid":
        value = tl.sigmoid(x.to(tl.float32)).to(tl.bfloat16)
    elif OPERATION == "clamp":
        value = tl.clamp(x, -1.0, 1.0)
    elif OPERATION == "full":
        value = x + tl.full([SIZE], 1.5, tl.bfloat16)
    tl.store(out_ptr + offsets, value)


UNARY = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": lambda x: x.abs().log(),
    "sigmoid": torch.sigmoid,
    "full": lambda x: x + 1.5,
}


@pytest.mark.parametrize("operation", UNARY)
def test_unary_operation_equals_pytorch(operation: str) -> None:
    x = random_values()
    out = torch.full_like(x, float("nan"))
    unary_kernel[(1,)](x, out, OPERATION=operation, SIZE=SIZE)
    # numpy's and PyTorch's exp differ by a unit of float32, which may fall on the other side of a tie.
    torch.testing.assert_close(out, UNARY[operation](x), rtol=BFLOAT16_EPSILON, atol=0, equal_nan=True)


def test_clamp_equals_pytorch() -> None:
    x = random_values().nan_to_num()
    out = torch.full_like(x, float("nan"))
    unary_kernel[(1,)](x, out, OPERATION="clamp", SIZE=SIZE)
    assert_same(out, x.clamp(-1, 1))


@triton.jit
def cast_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_cast_from_and_to_float(dtype: torch.dtype) -> None:
    wide = random_values(dtype)
    out = torch.full((SIZE,), float("nan"), dtype=torch.bfloat16)
    cast_kernel[(1,)](wide, out, SIZE=SIZE)
    assert_same(out, wide.to(torch.bfloat16))
    back = torch.full((SIZE,), float("nan"), dtype=dtype)
    cast_kernel[(1,)](out, back, SIZE=SIZE)
    assert_same(back, out.to(dtype))


INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_cast_from_and_to_integer(dtype: torch.dtype) -> None:
    integers = torch.randint(0, 2**31 if dtype in (torch.int32, torch.int64) else 2, (SIZE,)).to(dtype)
    out = torch.full((SIZE,), float("nan"), dtype=torch.bfloat16)
    cast_kernel[(1,)](integers, out, SIZE=SIZE)
    assert_same(out, integers.to(torch.bfloat16))
    small = torch.randn(SIZE).mul(3).clamp(0, 100).to(torch.bfloat16)
    back = torch.zeros(SIZE, dtype=dtype)
    cast_kernel[(1,)](small, back, SIZE=SIZE)
    assert torch.equal(back, small.to(dtype))


def test_cast_rounds_ties_to_even() -> None:
    ties = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, -(1 + 2.0**-8)])
    out = torch.zeros(4, dtype=torch.bfloat16)
    cast_kernel[(1,)](ties, out, SIZE=4)
    assert_same(out, ties.to(torch.bfloat16))
    assert out[0] == 1.0 and out[1] == 1 + 2.0**-6


def test_cast_keeps_every_nan_a_nan() -> None:
    bits = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32)  # rounding up or truncation would lose them
    out = torch.zeros(2, dtype=torch.bfloat16)
    cast_kernel[(1,)](bits.view(torch.float32), out, SIZE=2)
    assert out.isnan().all()


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    acc = tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets), acc)
    acc += tl.dot(tl.load(a_ptr + offsets), tl.trans(tl.load(b_ptr + offsets)))
    tl.store(out_ptr + offsets, acc)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot_accumulates_in_float32(dtype: torch.dtype) -> None:
    a, b = torch.randn(32, 32).to(dtype), torch.randn(32, 32).to(dtype)
    out = torch.full((32, 32), float("nan"))
    dot_kernel[(1,)](a, b, out, BLOCK=32)
    expected = a.double() @ b.double() + a.double() @ b.double().t()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)


@triton.jit
def largest(left, right):
    return tl.where(left > right, left, right)


@triton.jit
def add(left, right):
    return left + right


@triton.jit
def product(left, right):
    return left * right


@triton.jit
def keep_larger(left, left_index, right, right_index):
    take_left = left >= right
    return tl.where(take_left, left, right), tl.where(take_left, left_index, right_index)


@triton.jit
def reduce_kernel(x_ptr, out_ptr, index_ptr, OPERATION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.arange(0, ROWS)
    x = tl.load(x_ptr + row[:, None] * COLS + tl.arange(0, COLS)[None, :])
    if OPERATION == "sum":
        value = tl.sum(x, axis=1)
    elif OPERATION == "max":
        value = tl.max(x, axis=1)
    elif OPERATION == "min":
        value = tl.min(x, axis=1)
    elif OPERATION == "argmax":
        value = tl.max(x, axis=1)
        tl.store(index_ptr + row, tl.argmax(x, axis=1))
    elif OPERATION == "argmin":
        value, index = tl.min(x, axis=1, return_indices=True)
        tl.store(index_ptr + row, index)
    elif OPERATION == "custom_max":
        value = tl.reduce(x, 1, largest)
    elif OPERATION == "custom_pair":
        index = tl.broadcast_to(tl.arange(0, COLS)[None, :], [ROWS, COLS])
        value, index = tl.reduce((x, index), 1, keep_larger)
        tl.store(index_ptr + row, index)
    elif OPERATION == "library_pair":
        index = tl.broadcast_to(tl.arange(0, COLS)[None, :], [ROWS, COLS])
        value, index = tl.reduce((x, index), 1, tl.standard._argmin_combine_tie_break_left)
        tl.store(index_ptr + row, index)
    tl.store(out_ptr + row, value)


REDUCTIONS = {
    "sum": lambda x: (x.double().sum(1), None),
    "max": lambda x: (x.amax(1), None),
    "min": lambda x: (x.amin(1), None),
    "argmax": lambda x: (x.amax(1), x.argmax(1)),
    "argmin": lambda x: (x.amin(1), x.argmin(1)),
    "custom_max": lambda x: (x.amax(1), None),
    "custom_pair": lambda x: (x.amax(1), x.argmax(1)),
    "library_pair": lambda x: (x.amin(1), x.argmin(1)),
}


@pytest.mark.parametrize("operation", REDUCTIONS)
def test_reduction_equals_pytorch(operation: str) -> None:
    rows, cols = 4, 16
    x = torch.randn(rows, cols).to(torch.bfloat16)
    x += 0.01 * torch.arange(cols)  # no two are equal, so that an index is unambiguous
    out = torch.full((rows,), float("nan"), dtype=torch.bfloat16)
    index = torch.full((rows,), -1, dtype=torch.int32)
    reduce_kernel[(1,)](x, out, index, OPERATION=operation, ROWS=rows, COLS=cols)
    value, expected_index = REDUCTIONS[operation](x)
    tolerance = BFLOAT16_EPSILON if operation == "sum" else 0
    torch.testing.assert_close(out, value.to(torch.bfloat16), rtol=tolerance, atol=tolerance)
    if expected_index is not None:
        assert torch.equal(x.gather(1, index.long()[:, None])[:, 0], value)


@triton.jit
def reduce_to_scalar_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.store(out_ptr, tl.reduce(x, 0, add))
    tl.store(out_ptr + 1, tl.max(x, axis=0))
    tl.store(out_ptr + 2, tl.sum(x, axis=0))


def test_reduction_to_a_scalar() -> None:
    x = torch.randint(-4, 5, (64,)).to(torch.bfloat16)
    out = torch.full((3,), float("nan"), dtype=torch.bfloat16)
    reduce_to_scalar_kernel[(1,)](x, out, SIZE=64)
    assert_same(out, torch.stack([x.sum(), x.amax(), x.sum()]))


@triton.jit
def scan_kernel(x_ptr, out_ptr, OPERATION: tl.constexpr, REVERSE: tl.constexpr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offsets)
    if OPERATION == "cumsum":
        value = tl.cumsum(x, axis=0, reverse=REVERSE)
    elif OPERATION == "cumprod":
        value = tl.cumprod(x, axis=0, reverse=REVERSE)
    elif OPERATION == "custom_sum":
        value = tl.associative_scan(x, 0, add, reverse=REVERSE)
    elif OPERATION == "custom_product":
        value = tl.associative_scan(x, 0, product, reverse=REVERSE)
    tl.store(out_ptr + offsets, value)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("operation", ["cumsum", "cumprod", "custom_sum", "custom_product"])
def test_scan_equals_pytorch(operation: str, reverse: bool) -> None:
    exact_sums, exact_products = torch.randint(-4, 5, (16,)), 2.0 ** torch.randint(-2, 3, (16,))
    is_sum = operation.endswith("sum")
    x = (exact_sums if is_sum else exact_products).to(torch.bfloat16)
    out = torch.full_like(x, float("nan"))
    scan_kernel[(1,)](x, out, OPERATION=operation, REVERSE=reverse, SIZE=16)
    ordered = x.flip(0) if reverse else x
    expected = ordered.cumsum(0) if is_sum else ordered.cumprod(0)
    assert_same(out, expected.flip(0) if reverse else expected)


@triton.jit
def atomic_add_kernel(x_ptr, out_ptr, before_ptr, number_of_bins, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    before = tl.atomic_add(out_ptr + offsets % number_of_bins, x, mask=inside)
    tl.store(before_ptr + offsets, before, mask=inside)


def test_atomic_add_with_colliding_lanes() -> None:
    x = torch.randint(-3, 4, (50,)).to(torch.bfloat16)
    out = torch.tensor([100.0, 0.0, 0.5, 0.0]).to(torch.bfloat16)
    expected = out.clone()
    before = torch.full_like(x, float("nan"))
    expected_before = torch.empty_like(x)
    for lane in range(50):
        expected_before[lane] = expected[lane % 4]
        expected[lane % 4] += x[lane]
    atomic_add_kernel[(2,)](x, out, before, 4, 50, BLOCK=32)
    assert_same(out, expected)
    assert_same(before, expected_before)


@triton.jit
def move_kernel(x_ptr, out_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
    x = tl.load(x_ptr + row[:, None] * COLS + col[None, :])
    flat = tl.reshape(tl.trans(x), [ROWS * COLS])
    bits = flat.to(tl.int16, bitcast=True)
    flat = bits.to(tl.bfloat16, bitcast=True)
    tl.store(out_ptr + tl.arange(0, ROWS * COLS), flat)


def test_moving_operations_keep_the_bits() -> None:
    x = random_values()[:64].reshape(4, 16)
    out = torch.zeros(64, dtype=torch.bfloat16)
    move_kernel[(1,)](x, out, ROWS=4, COLS=16)
    assert_same(out, x.t().reshape(-1))


def test_install_twice_changes_nothing() -> None:
    from triton.runtime import interpreter

    before = dict(vars(interpreter.InterpreterBuilder))
    interpreter_engine.install()
    assert dict(vars(interpreter.InterpreterBuilder)) == before

"""Kernels of the launch report's tests: a matrix product with options, and small ones with one fault each."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language as tl


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel; its signature has `tl.constexpr` where a plain number is passed."""
    kernel[grid](*arguments, **constants)


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """y = x, with 64-bit offsets of the program."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < n - start
    tl.store(y_ptr + start + offset, tl.load(x_ptr + start + offset, mask=mask, other=0.0), mask=mask)


@triton.jit
def narrow_copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """y = x with 32-bit offsets, which overflow at 2^31 elements."""
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    tl.store(y_ptr + offset, tl.load(x_ptr + offset, mask=mask, other=0.0), mask=mask)


@triton.jit
def narrow_row_copy_kernel(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    """One row per program, addressed by row * columns in 32 bits."""
    row = tl.program_id(0)
    offset = tl.arange(0, BLOCK)
    mask = offset < columns
    x = tl.load(x_ptr + row * columns + offset, mask=mask, other=0.0)
    tl.store(y_ptr + row * columns + offset, x, mask=mask)


@triton.jit
def y_grid_copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """y = x, one program of the grid's second dimension per block."""
    start = tl.program_id(1).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < n - start
    tl.store(y_ptr + start + offset, tl.load(x_ptr + start + offset, mask=mask, other=0.0), mask=mask)


@triton.jit
def strided_gather_kernel(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    """y[i] = x[i * stride]: no two elements are neighbors."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    tl.store(y_ptr + offset, tl.load(x_ptr + offset * stride, mask=mask, other=0.0), mask=mask)


@triton.jit
def product_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """c [M, N] = a [M, K] b [K, N]; K is a multiple of BLOCK_K."""
    row_start = tl.program_id(0) * BLOCK_M
    column_start = tl.program_id(1) * BLOCK_N
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    a_block = a_ptr + row_start.to(tl.int64) * stride_am + row[:, None] * stride_am + step[None, :] * stride_ak
    b_block = b_ptr + column_start.to(tl.int64) * stride_bn + step[:, None] * stride_bk + column[None, :] * stride_bn
    row_mask = row[:, None] < M - row_start
    column_mask = column[None, :] < N - column_start
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, K, BLOCK_K):
        a = tl.load(a_block, mask=row_mask, other=0.0)
        b = tl.load(b_block, mask=column_mask, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=INPUT_PRECISION)
        a_block += BLOCK_K * stride_ak
        b_block += BLOCK_K * stride_bk
    base = row_start.to(tl.int64) * N + column_start
    c = acc.to(c_ptr.dtype.element_ty)
    tl.store(c_ptr + base + row[:, None] * N + column[None, :], c, mask=row_mask & column_mask)


@triton.jit
def atomic_sum_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """y += x, by atomics; for bf16 on chips without the instruction a compare-and-swap loop."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    tl.atomic_add(y_ptr + offset % 128, tl.load(x_ptr + offset, mask=mask, other=0.0), mask=mask)


@triton.jit
def pointer_table_kernel(table_ptr, y_ptr, BLOCK: tl.constexpr):
    """y = the tensor whose address is in a table: its size can't be derived from the arguments."""
    x_ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
    offset = tl.arange(0, BLOCK)
    tl.store(y_ptr + offset, tl.load(x_ptr + offset))  # in bounds: every tensor of the table holds BLOCK elements


@triton.jit
def tuple_copy_kernel(tensors, n, BLOCK: tl.constexpr):
    """tensors[1] = tensors[0], passed as one tuple."""
    offset = tl.arange(0, BLOCK)
    mask = offset < n
    tl.store(tensors[1] + offset, tl.load(tensors[0] + offset, mask=mask, other=0.0), mask=mask)


@triton.jit
def mismatched_product_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    """Doesn't compile: a product of vectors."""
    offset = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offset)  # in bounds: it never runs
    tl.store(y_ptr + offset, tl.dot(x, x))


@triton.autotune(
    configs=[
        triton.Config({"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 128}, num_warps=8, num_stages=4),
        triton.Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, num_warps=4, num_stages=2),
        triton.Config({"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=4, num_stages=2),
    ],
    key=["M", "N", "K"],
)
@triton.jit
def tuned_product_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """One tile of c = a b; the first configuration exceeds every chip's shared memory."""
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        a_mask = (row[:, None] < M) & (step[None, :] < K - start)
        b_mask = (step[:, None] < K - start) & (column[None, :] < N)
        a = tl.load(a_ptr + row[:, None] * K + start + step[None, :], mask=a_mask, other=0.0)
        b = tl.load(b_ptr + (start + step[:, None]) * N + column[None, :], mask=b_mask, other=0.0)
        acc = tl.dot(a, b, acc)
    mask = (row[:, None] < M) & (column[None, :] < N)
    tl.store(c_ptr + row[:, None] * N + column[None, :], acc.to(c_ptr.dtype.element_ty), mask=mask)


@triton.jit
def carried_offset_kernel(x_ptr, y_ptr, steps, stride, BLOCK: tl.constexpr):
    """y = sum of blocks of x at a distance of `stride`; the offset is carried in 32 bits through a loop."""
    offset = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(steps):
        acc += tl.load(x_ptr + offset)  # in bounds: x holds steps * stride elements
        offset += stride
    tl.store(y_ptr + tl.arange(0, BLOCK), acc)


@triton.jit
def rescaled_product_kernel(a_ptr, b_ptr, c_ptr, K, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """One tile of c = a b whose accumulator is scaled in every iteration: each product waits for the previous one."""
    row = tl.arange(0, BLOCK)
    step = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_ptr + row[:, None] * K + start + step[None, :])  # in bounds: a is [BLOCK, K]
        b = tl.load(b_ptr + row[None, :] * K + start + step[:, None])  # in bounds: b is [BLOCK, K]
        acc = tl.dot(a, b, acc) * 0.5
    tl.store(c_ptr + row[:, None] * BLOCK + row[None, :], acc)


@triton.jit
def described_copy_kernel(x_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr):
    """y = x through tensor descriptors created on the device, which need scratch memory."""
    x = tl.make_tensor_descriptor(x_ptr, [rows, columns], [columns, 1], [BLOCK, BLOCK])
    y = tl.make_tensor_descriptor(y_ptr, [rows, columns], [columns, 1], [BLOCK, BLOCK])
    y.store([tl.program_id(0) * BLOCK, 0], x.load([tl.program_id(0) * BLOCK, 0]))


@triton.jit
def reused_name_kernel(x_ptr, y_ptr, steps, BLOCK: tl.constexpr):
    """Doesn't compile: a name from a static loop is reused in a run-time loop with another type."""
    offset = tl.arange(0, BLOCK)
    x = 0.0
    for step in tl.static_range(2):
        x = tl.load(x_ptr + offset + step)  # in bounds: it never runs
    for _ in range(steps):
        x = tl.sum(x)
    tl.store(y_ptr + offset, x)


@triton.jit
def split_product_kernel(a_ptr, b_ptr, partial_ptr, K, share, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """partial[p] [BLOCK, BLOCK] = a b over the program's share of K; the last program's may be shorter."""
    row = tl.arange(0, BLOCK)
    step = tl.arange(0, BLOCK_K)
    first = tl.program_id(0) * share
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(first, tl.minimum(first + share, K), BLOCK_K):
        a = tl.load(a_ptr + row[:, None] * K + start + step[None, :])  # in bounds: K and share are multiples of BLOCK_K
        b = tl.load(b_ptr + row[None, :] * K + start + step[:, None])  # in bounds: as above
        acc = tl.dot(a, b, acc)
    place = partial_ptr + tl.program_id(0) * BLOCK * BLOCK
    tl.store(place + row[:, None] * BLOCK + row[None, :], acc)


@triton.jit
def data_dependent_kernel(x_ptr, count_ptr, y_ptr, BLOCK: tl.constexpr):
    """y = sum of as many blocks of x as a number in memory says."""
    offset = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for block in range(tl.load(count_ptr)):
        acc += tl.load(x_ptr + block * BLOCK + offset)  # in bounds: x holds *count_ptr blocks
    tl.store(y_ptr + offset, acc)


@triton.jit
def nested_loop_kernel(x_ptr, y_ptr, rows, columns, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    """y = sum over rows and blocks of columns; one more block where there are more than LIMIT rows."""
    offset = tl.arange(0, BLOCK)
    blocks = tl.cdiv(columns, BLOCK)
    if rows > LIMIT:
        blocks += 1
    acc = tl.zeros((BLOCK,), tl.float32)
    for row in range(rows):
        for block in range(blocks):
            acc += tl.load(x_ptr + row * columns + block * BLOCK + offset)  # in bounds: x ends with a block of zeros
    tl.store(y_ptr + offset, acc)

"""Small kernels with the faults that `test_planted_faults.py` lists for the guard; FAULT "none" is correct."""

# Triton types a kernel's constexpr parameters as constexpr, and takes plain values for them.
# pyright: reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS, COLS, BLOCK = 20, 24, 32


@triton.jit
def row_softmax_kernel(x_ptr, y_ptr, rows, cols, stride_x, stride_y, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """y[r, :] = softmax(x[r, :]), one program per row."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < cols
    if FAULT == "mask one too wide":
        inside = col <= cols
    if FAULT == "negative offset":
        col = col - 1
    if FAULT == "removed load mask":
        x = tl.load(x_ptr + row * stride_x + col)
        x = tl.where(inside, x, -float("inf"))
    elif FAULT == "missing other":
        x = tl.load(x_ptr + row * stride_x + col, mask=inside)
    elif FAULT == "swapped strides":
        x = tl.load(x_ptr + row + col * stride_x, mask=inside, other=-float("inf"))
    elif FAULT == "stride of the wrong tensor":
        x = tl.load(x_ptr + row * stride_y + col, mask=inside, other=-float("inf"))
    elif FAULT == "bytes instead of elements":
        x = tl.load(x_ptr + 4 * (row * stride_x + col), mask=inside, other=-float("inf"))
    else:
        x = tl.load(x_ptr + row * stride_x + col, mask=inside, other=-float("inf"))
    numerator = tl.exp(x - tl.max(x, axis=0))
    y = numerator / tl.sum(numerator, axis=0)
    if FAULT == "removed store mask":
        tl.store(y_ptr + row * stride_y + col, y)
    elif FAULT == "row forgotten in the store":
        tl.store(y_ptr + col, y, mask=inside)
    elif FAULT == "lanes folded onto each other":
        tl.store(y_ptr + row * stride_y + col // 2, y, mask=inside)
    elif FAULT == "two rows overlap":
        tl.store(y_ptr + row * (stride_y - 1) + col, y, mask=inside)
    elif FAULT == "misaligned pointer":
        byte_ptr = y_ptr.to(tl.pointer_type(tl.int8)) + row * stride_y * 4 + 2
        tl.store(byte_ptr.to(tl.pointer_type(tl.float32)) + col, y, mask=inside & (col < cols - 1))
    else:
        tl.store(y_ptr + row * stride_y + col, y, mask=inside)


def softmax(fault: str) -> None:
    wide = torch.randn(ROWS, COLS + 8)
    x = wide[:, :COLS]
    y = torch.full((ROWS, COLS), float("nan"))
    rows = ROWS + 1 if fault == "grid one too long" else ROWS
    row_softmax_kernel[(rows,)](x, y, ROWS, COLS, x.stride(0), y.stride(0), FAULT=fault, BLOCK=BLOCK)
    if fault == "none":
        torch.testing.assert_close(y, x.softmax(1))


@triton.jit
def column_sum_kernel(x_ptr, partial_ptr, y_ptr, rows, cols, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """y = x.sum(0), one program per four rows; partial: [programs, cols], summed by a second launch."""
    program = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    inside = col < cols
    acc = tl.zeros([BLOCK], tl.float32)
    for step in range(4):
        row = program * 4 + step
        load_mask = inside & (row < rows)
        if FAULT == "row bound forgotten":
            load_mask = inside
        acc += tl.load(x_ptr + row * cols + col, mask=load_mask, other=0.0)
    if FAULT == "sum without atomics":
        tl.store(y_ptr + col, tl.load(y_ptr + col, mask=inside, other=0.0) + acc, mask=inside)
    elif FAULT == "atomic and plain store":
        if program == 0:
            tl.store(y_ptr + col, acc, mask=inside)
        else:
            tl.atomic_add(y_ptr + col, acc, mask=inside)
    elif FAULT == "reads its neighbor's partial sum":
        tl.store(partial_ptr + program * cols + col, acc, mask=inside)
        before = tl.load(partial_ptr + (program - 1) * cols + col, mask=inside & (program > 0), other=0.0)
        tl.store(y_ptr + col, acc + before, mask=inside & (program == tl.num_programs(0) - 1))
    elif FAULT == "atomic result read too early":
        tl.atomic_add(y_ptr + col, acc, mask=inside)
        if program == tl.num_programs(0) - 1:
            tl.store(partial_ptr + col, tl.load(y_ptr + col, mask=inside, other=0.0), mask=inside)
    else:
        tl.atomic_add(y_ptr + col, acc, mask=inside)


def column_sum(fault: str) -> None:
    rows = 18
    x, y = torch.randn(rows, COLS), torch.zeros(COLS)
    programs = triton.cdiv(rows, 4)
    partial = torch.zeros(programs, COLS)
    column_sum_kernel[(programs,)](x, partial, y, rows, COLS, FAULT=fault, BLOCK=BLOCK)
    if fault == "none":
        torch.testing.assert_close(y, x.sum(0))


@triton.jit
def shift_in_place_kernel(x_ptr, size, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """x += 1 in place; the fault reads the element to the right, which another program may have changed."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    if FAULT == "in place over what others read":
        x = tl.load(x_ptr + offsets + 1, mask=offsets + 1 < size, other=0.0)
    elif FAULT == "writes what all programs read":
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0) + tl.load(x_ptr + size - 1)
    else:
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    tl.store(x_ptr + offsets, x + 1, mask=inside)


def shift_in_place(fault: str) -> None:
    shift_in_place_kernel[(3,)](torch.randn(80), 80, FAULT=fault, BLOCK=32)


@triton.jit
def large_offset_kernel(x_ptr, y_ptr, stride, FAULT: tl.constexpr):
    """y[p] = x[p, 0] of an x with more than 2^31 elements."""
    row = tl.program_id(0)
    if FAULT != "int32 offset past 2^31":
        row = row.to(tl.int64)
    tl.store(y_ptr + tl.program_id(0), tl.load(x_ptr + row * stride))


def large_offset(fault: str) -> None:
    x = torch.empty(3, 1 << 30, dtype=torch.int8)  # three rows, of which only three bytes are touched
    x[:, 0] = torch.tensor([1, 2, 3], dtype=torch.int8)
    y = torch.zeros(3, dtype=torch.int8)
    large_offset_kernel[(3,)](x, y, 1 << 30, FAULT=fault)
    if fault == "none":
        assert y.tolist() == [1, 2, 3]


@triton.jit
def gather_kernel(index_ptr, table_ptr, y_ptr, size, rows, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """y[i] = table[index[i]], 0 for an index out of range."""
    offsets = tl.arange(0, BLOCK)
    inside = offsets < size
    if FAULT == "poisoned index":
        index = tl.load(index_ptr + offsets, mask=inside)
        value = tl.load(table_ptr + index)
    else:
        index = tl.load(index_ptr + offsets, mask=inside, other=0)
        valid = (index >= 0) & (index < rows)
        if FAULT == "label out of range":
            valid = inside
        value = tl.load(table_ptr + index, mask=valid, other=0.0)
    if FAULT == "failed device_assert":
        tl.device_assert(index < rows, "index out of range")
    tl.store(y_ptr + offsets, value, mask=inside)


def gather(fault: str) -> None:
    index = torch.tensor([3, 1, 0, 7, 5])
    if fault in ("label out of range", "failed device_assert"):
        index[2] = 8
    gather_kernel[(1,)](index, torch.randn(8), torch.zeros(5), 5, 8, FAULT=fault, BLOCK=16)

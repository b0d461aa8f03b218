"""Softmax and its logarithm over one axis; for one line x [D], with s = 1, or -1 for softmin:

    m = max s x_d                                     e_d = exp(s x_d - m), E = sum_d e_d
    softmax, softmin: y_d = e_d / E                   dx_d = s y_d (dy_d - sum_d dy_d y_d)
    log_softmax:      y_d = x_d - m - log E           dx_d = dy_d - exp(y_d) sum_d dy_d

x is [outer, D, inner]. A tile holds several lines: rows of a matrix where inner is 1, else columns of one image. Lines
that fit a tile are read once; longer ones twice, with a running maximum (online softmax: Milakov and Gimelshein 2018).
A line that holds only -infinity gives NaN. Saved is y.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least


class SoftmaxSpec(NamedTuple):
    """Which function, the axis of a tile along which lines lie (1: rows), and whether offsets are int64."""

    function: str
    axis: int
    wide: bool


class SoftmaxTile(NamedTuple):
    """The tile of one program, and whether it holds whole lines."""

    block_lines: int
    block_length: int
    whole: bool


class Lines(NamedTuple):
    """A program's lines within a kernel: those of `image`, int64, from `first` on; which of them exist."""

    image: Any
    first: Any
    line: Any
    inside: Any


@triton.jit
def lines_of_program(outer, inner, SPEC: constexpr, TILE: constexpr):
    """This program's `Lines`: rows of the one image there is, or columns of one of `outer` images."""
    line = tl.arange(0, TILE.block_lines)
    if SPEC.axis == 1:
        image = tl.program_id(0).to(tl.int64) * 0
        first = tl.program_id(0).to(tl.int64) * TILE.block_lines
        return Lines(image, first, line, line < outer - first)
    else:
        tiles = tl.cdiv(inner, TILE.block_lines)
        image = (tl.program_id(0) // tiles).to(tl.int64)
        first = (tl.program_id(0) % tiles).to(tl.int64) * TILE.block_lines
        return Lines(image, first, line, line < inner - first)


@triton.jit
def pointers(ptr, at, start, stride_outer, stride_length, stride_inner, SPEC: constexpr, TILE: constexpr):
    """Addresses of the tile that begins at element `start` of each line."""
    element = tl.arange(0, TILE.block_length)
    stride_line = stride_outer if SPEC.axis == 1 else stride_inner
    base = ptr + at.image * stride_outer + at.first * stride_line + tl.cast(start, tl.int64) * stride_length
    along = element * widened(stride_length, SPEC.wide)
    across = at.line * widened(stride_line, SPEC.wide)
    return base + (tl.expand_dims(across, SPEC.axis) + tl.expand_dims(along, 1 - SPEC.axis))


@triton.jit
def tile_mask(at, start, length, SPEC: constexpr, TILE: constexpr):
    """Which elements of that tile exist."""
    within = tl.arange(0, TILE.block_length) < length - start
    return tl.expand_dims(at.inside, SPEC.axis) & tl.expand_dims(within, 1 - SPEC.axis)


@triton.jit
def load_scores(x_ptr, at, start, length, strides, SPEC: constexpr, TILE: constexpr):
    """s x of a tile in fp32, -infinity where there is nothing."""
    mask = tile_mask(at, start, length, SPEC, TILE)
    x = tl.load(pointers(x_ptr, at, start, strides[0], strides[1], strides[2], SPEC, TILE), mask=mask, other=0.0).to(
        tl.float32
    )
    if SPEC.function == "softmin":
        x = -x
    return tl.where(mask, x, -float("inf"))


@triton.jit
def load_dense(ptr, at, start, length, inner, SPEC: constexpr, TILE: constexpr):
    """The tile of a contiguous tensor in fp32, 0 where there is nothing."""
    mask = tile_mask(at, start, length, SPEC, TILE)
    outer_stride = tl.cast(length, tl.int64) * inner
    return tl.load(pointers(ptr, at, start, outer_stride, inner, 1, SPEC, TILE), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_dense(ptr, values, at, start, length, inner, SPEC: constexpr, TILE: constexpr):
    """Stores the tile of a contiguous tensor."""
    mask = tile_mask(at, start, length, SPEC, TILE)
    outer_stride = tl.cast(length, tl.int64) * inner
    target = pointers(ptr, at, start, outer_stride, inner, 1, SPEC, TILE)
    tl.store(target, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def finite_or_zero(maximum):
    """The maximum to subtract: 0 for -infinity, so that exp gives 0 there, not NaN."""
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def softmax_forward_kernel(
    x_ptr, y_ptr, outer, length, inner, stride_outer, stride_length, stride_inner, SPEC: constexpr, TILE: constexpr
):
    """y of block_lines lines."""
    AXIS: constexpr = SPEC.axis
    at = lines_of_program(outer, inner, SPEC, TILE)
    strides = stride_outer, stride_length, stride_inner
    length = widened(length, SPEC.wide)
    inner = widened(inner, SPEC.wide)
    if TILE.whole:
        x = load_scores(x_ptr, at, 0, length, strides, SPEC, TILE)
        x -= tl.expand_dims(tl.max(x, axis=AXIS), AXIS)
        e = tl.exp(x)
        total = tl.expand_dims(tl.sum(e, axis=AXIS), AXIS)
        y = x - tl.log(total) if SPEC.function == "log_softmax" else e * (1.0 / total)
        store_dense(y_ptr, y, at, 0, length, inner, SPEC, TILE)
    else:
        maximum = tl.full((TILE.block_lines,), -float("inf"), tl.float32)
        total = tl.full((TILE.block_lines,), 0.0, tl.float32)
        for start in range(0, length, TILE.block_length):
            block = load_scores(x_ptr, at, start, length, strides, SPEC, TILE)
            higher = tl.maximum(maximum, tl.max(block, axis=AXIS))
            shift = finite_or_zero(higher)
            block_total = tl.sum(tl.exp(block - tl.expand_dims(shift, AXIS)), axis=AXIS)
            total = total * tl.exp(maximum - shift) + block_total
            maximum = higher
        maximum = tl.expand_dims(maximum, AXIS)
        total = tl.expand_dims(total, AXIS)
        total = tl.log(total) if SPEC.function == "log_softmax" else 1.0 / total
        for start in range(0, length, TILE.block_length):
            block = load_scores(x_ptr, at, start, length, strides, SPEC, TILE) - maximum
            values = block - total if SPEC.function == "log_softmax" else tl.exp(block) * total
            store_dense(y_ptr, values, at, start, length, inner, SPEC, TILE)


@triton.jit
def line_term(grad, y, SPEC: constexpr):
    """What a line's sum in the backward adds for an element."""
    return grad if SPEC.function == "log_softmax" else grad * y


@triton.jit
def input_gradient(grad, y, total, SPEC: constexpr):
    """dx of a tile, given the lines' sums."""
    if SPEC.function == "log_softmax":
        return grad - tl.exp(y) * total
    elif SPEC.function == "softmin":
        return y * (total - grad)
    else:
        return y * (grad - total)


@triton.jit
def softmax_backward_kernel(grad_ptr, y_ptr, dx_ptr, outer, length, inner, SPEC: constexpr, TILE: constexpr):
    """dx of block_lines lines; all three tensors are contiguous."""
    AXIS: constexpr = SPEC.axis
    at = lines_of_program(outer, inner, SPEC, TILE)
    length = widened(length, SPEC.wide)
    inner = widened(inner, SPEC.wide)
    if TILE.whole:
        grad = load_dense(grad_ptr, at, 0, length, inner, SPEC, TILE)
        y = load_dense(y_ptr, at, 0, length, inner, SPEC, TILE)
        total = tl.expand_dims(tl.sum(line_term(grad, y, SPEC), axis=AXIS), AXIS)
        store_dense(dx_ptr, input_gradient(grad, y, total, SPEC), at, 0, length, inner, SPEC, TILE)
    else:
        sums = tl.full((TILE.block_lines,), 0.0, tl.float32)
        for start in range(0, length, TILE.block_length):
            block_grad = load_dense(grad_ptr, at, start, length, inner, SPEC, TILE)
            if SPEC.function == "log_softmax":
                sums += tl.sum(block_grad, axis=AXIS)
            else:
                block_y = load_dense(y_ptr, at, start, length, inner, SPEC, TILE)
                sums += tl.sum(block_grad * block_y, axis=AXIS)
        sums = tl.expand_dims(sums, AXIS)
        for start in range(0, length, TILE.block_length):
            grad_values = load_dense(grad_ptr, at, start, length, inner, SPEC, TILE)
            y_values = load_dense(y_ptr, at, start, length, inner, SPEC, TILE)
            dx = input_gradient(grad_values, y_values, sums, SPEC)
            store_dense(dx_ptr, dx, at, start, length, inner, SPEC, TILE)


@costs(softmax_forward_kernel)
@costs(softmax_backward_kernel)
def softmax_cost(y_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is read or written once; five operations for each element."""
    return Cost(5 * y_ptr.numel(), size_in_bytes(y_ptr, *others.values()))


# The longest block of a line (of a row, of a column), elements of a tile of rows, lines of a tile of columns.
_LIMITS = {"interpreter": ((1 << 12, 512), 1 << 14, 1 << 10), "cpu": ((1 << 16, 4), 1024, 256)}


@lru_cache(maxsize=4096)
def softmax_tile(lines: int, length: int, axis: int, target: Target) -> SoftmaxTile:
    """Whole lines where a program has registers for them.

    Args:
        lines: of the matrix (axis 1), or of one image (axis 0).
        length: of a line.
        axis: as in `SoftmaxSpec`.
        target: where it runs.
    """
    longest, elements, widest = _LIMITS.get(target.kind, ((8192, 128), 1024, 128))
    if axis == 0:
        elements *= 4
    block_length = min(power_of_2_at_least(length), longest[1 - axis])
    block_lines = min(max(1, elements // block_length), power_of_2_at_least(lines))
    if axis == 0:
        block_lines = min(block_lines, widest)
    return SoftmaxTile(block_lines, block_length, length <= block_length)


def softmax_forward(x: torch.Tensor, function: str) -> torch.Tensor:
    """softmax, log_softmax or softmin of x [outer, D, inner], any strides, along D; contiguous."""
    y = x.new_empty(x.shape)
    _problem(tuple(x.shape), x.stride(), function, current_target()).launch(x, y)
    return y


def softmax_backward(grad: torch.Tensor, y: torch.Tensor, function: str) -> torch.Tensor:
    """dx of the upstream gradient and y, both contiguous [outer, D, inner]."""
    dx = torch.empty_like(y)
    _problem(tuple(y.shape), None, function, current_target()).launch(grad, y, dx)
    return dx


@lru_cache(maxsize=4096)
def _problem(shape: tuple[int, ...], strides: tuple[int, ...] | None, function: str, target: Target) -> Problem:
    """A forward for the strides of x, a backward without them."""
    outer, length, inner = shape
    axis = 1 if inner == 1 else 0
    lines = outer if axis == 1 else inner
    tile = softmax_tile(lines, length, axis, target)
    line_strides = (length, inner, 1) if strides is None else tuple(map(max, strides, (length * inner, inner, 1)))
    line_stride = line_strides[0] if axis == 1 else line_strides[2]
    reach = ((min(tile.block_lines, lines), line_stride), (min(tile.block_length, length), line_strides[1]))
    tiles = ceil_div(lines, tile.block_lines)
    return Problem(
        softmax_forward_kernel if strides is not None else softmax_backward_kernel,
        (tiles if axis == 1 else outer * tiles,),
        *shape,
        *(strides or ()),
        SPEC=SoftmaxSpec(function, axis, exceed_int32(reach, ((length + tile.block_length, 1),))),
        TILE=tile,
        num_warps=min(16, max(4, tile.block_lines * tile.block_length // 512)),
    )

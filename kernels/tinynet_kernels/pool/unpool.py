"""Unpooling: puts each element of an image at the index that max-pooling returned for it, and zeros elsewhere.

    y[n, c, index[n, c, i]] = x[n, c, i]        dx[n, c, i] = dY[n, c, index[n, c, i]]

with all axes of an image flattened to one. Tiling: one program moves a tile [block_lines, block_inner] of x. Its inner
axis is contiguous: the channels in channels_last, where a line is an element of any image, else the elements of a
plane. An index outside y is skipped, and gives no gradient.

Source: torch.nn.functional.max_unpool2d.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.pool.window import empty_images, pool_tile
from tinynet_kernels.tiles import Target, ceil_div, current_target


class UnpoolTile(NamedTuple):
    """The tile of one program, and the layout of all tensors."""

    block_lines: int
    block_inner: int
    channels_last: bool


@triton.jit
def unpool_offsets(index_ptr, lines, inner, per_image, size, TILE: constexpr):
    """Of a program's tile: offsets in x, offsets in y, which elements exist, and whose index lies in y."""
    inner_blocks = tl.cdiv(inner, TILE.block_inner)
    start = (tl.program_id(0) // inner_blocks).to(tl.int64) * TILE.block_lines
    first = (tl.program_id(0) % inner_blocks) * TILE.block_inner
    line = tl.arange(0, TILE.block_lines)
    across = tl.arange(0, TILE.block_inner)
    mask = (line < lines - start)[:, None] & (across < inner - first)[None, :]
    line = (start + line)[:, None]
    across = (first + across)[None, :]
    offset = line * inner + across
    index = tl.load(index_ptr + offset, mask=mask, other=-1)
    target = (line // per_image * size + index) * inner + across if TILE.channels_last else line * size + index
    return offset, target, mask, mask & (index >= 0) & (index < size)


@triton.jit
def unpool_forward_kernel(x_ptr, index_ptr, y_ptr, lines, inner, per_image, size, TILE: constexpr):
    """y[index] = x; y holds zeros before."""
    offset, target, _, is_inside = unpool_offsets(index_ptr, lines, inner, per_image, size, TILE)
    tl.store(y_ptr + target, tl.load(x_ptr + offset, mask=is_inside, other=0.0), mask=is_inside)


@triton.jit
def unpool_backward_kernel(grad_ptr, index_ptr, dx_ptr, lines, inner, per_image, size, TILE: constexpr):
    """dx = dY[index]."""
    offset, target, mask, is_inside = unpool_offsets(index_ptr, lines, inner, per_image, size, TILE)
    tl.store(dx_ptr + offset, tl.load(grad_ptr + target, mask=is_inside, other=0.0), mask=mask)


@costs(unpool_forward_kernel)
@costs(unpool_backward_kernel)
def unpool_cost(index_ptr: torch.Tensor, **others: Any) -> Cost:
    """Indices and what they point to are read once, the result is written."""
    return Cost(0, size_in_bytes(index_ptr, *others.values()))


def unpool_forward(x: torch.Tensor, index: torch.Tensor, size: tuple[int, ...], *, channels_last: bool) -> torch.Tensor:
    """y [N, C, *size].

    Args:
        x: [N, C, ...] with one to three further axes, dense.
        index: into the flattened `size`, int64 in x's shape and layout.
        size: of y's axes.
        channels_last: the layout of all tensors.
    """
    y = empty_images(x, size, x.dtype, channels_last).zero_()
    _problem(True, x.shape, math.prod(size), channels_last, current_target()).launch(x, index, y)
    return y


def unpool_backward(grad: torch.Tensor, index: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """dx in the shape of `index`.

    Args:
        grad: dY [N, C, *size], dense.
        index: the forward's.
        channels_last: the layout of all tensors.
    """
    dx = empty_images(index, index.shape[2:], grad.dtype, channels_last)
    problem = _problem(False, index.shape, math.prod(grad.shape[2:]), channels_last, current_target())
    problem.launch(grad, index, dx)
    return dx


@lru_cache(maxsize=4096)
def _problem(forward: bool, shape: tuple[int, ...], size: int, channels_last: bool, target: Target) -> Problem:
    N, C, *axes = shape
    area = math.prod(axes)
    lines, inner = (N * area, C) if channels_last else (N * C, area)
    block_lines, block_inner, num_warps = pool_tile(lines, inner, channels_last, target)
    kernel = unpool_forward_kernel if forward else unpool_backward_kernel
    grid = (ceil_div(lines, block_lines) * ceil_div(inner, block_inner),)
    tile = UnpoolTile(block_lines, block_inner, channels_last)
    return Problem(kernel, grid, lines, inner, area, size, TILE=tile, num_warps=num_warps)

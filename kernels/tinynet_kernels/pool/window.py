"""What pooling kernels share: windows along three axes, the tile of a program, and where taps are.

Images are [N, C, D, H, W]; those of fewer axes have a depth, or a depth and a height, of 1, which the compiler folds.
Along an axis, window o starts at

    strided:    o stride - padding
    adaptive:   floor(o size / out_size), and ends before ceil((o + 1) size / out_size)
    fractional: floor((o + u) a) - floor(u a) with a = (size - kernel) / (out_size - 1) and a random u; the last at
                size - kernel

Tiling: one program computes a tile [block_lines, block_inner] of y or dx. Its inner axis is contiguous: the channels in
channels_last, where a line is a pixel of any image; else the columns, where a line is a row of any plane. What depends
on lines alone is [block_lines, 1], what depends on the inner axis alone [1, block_inner].

Source: PyTorch's window and output-size rules (torch.nn.functional); B. Graham, "Fractional Max-Pooling", 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Problem
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.pool.spec import POINT, Axis, Window, reach
from tinynet_kernels.tiles import Target, ceil_div, every_register, power_of_2_at_least

MOST_LINES = 1 << 16  # of a tile


class PoolTile(NamedTuple):
    """The tile of one program, and how it is walked.

    Attributes:
        block_lines, block_inner: its sides.
        channels_last: the layout of the dense tensors.
        wide: whether sizes and strides are taken as int64.
        always_inside: whether every tap of every window lies in the image; only strided windows ask.
        replaces: whether a mean reads, where there is no element, the nearest one and drops it, instead of masking the
            load: a CPU takes masked elements one by one, unless the mask is one of whole lines.
        loop_depth, loop_rows, loop_columns: the taps of a window in the forward, the windows that may hold one element
            in the backward.
        unroll: how many of them are loaded at once.
    """

    block_lines: int
    block_inner: int
    channels_last: bool
    wide: bool
    always_inside: bool
    replaces: bool
    loop_depth: int
    loop_rows: int
    loop_columns: int
    unroll: int


class Elements(NamedTuple):
    """The elements of a program's tile, within a kernel: their indices, and a mask of those that exist.

    `group` (int64) is the image in channels_last, else the plane n C + c.
    """

    group: Any
    image: Any
    channel: Any
    depth: Any
    row: Any
    column: Any
    mask: Any


class Place(NamedTuple):
    """A point along the three axes, within a kernel: an element, a window, a window's first tap or its end."""

    depth: Any
    row: Any
    column: Any


@triton.jit
def elements_of_program(lines, inner, C, D, H, W, TILE: constexpr):
    """`Elements` of images of [D, H, W]; indices are int32, which divides faster, or int64 where wide."""
    BLOCK_LINES: constexpr = TILE.block_lines
    BLOCK_INNER: constexpr = TILE.block_inner
    inner_blocks = tl.cdiv(inner, BLOCK_INNER)
    start = (tl.program_id(0) // inner_blocks).to(tl.int64) * BLOCK_LINES
    first_inner = (tl.program_id(0) % inner_blocks) * BLOCK_INNER
    in_lines = tl.arange(0, BLOCK_LINES) < lines - start
    in_inner = tl.arange(0, BLOCK_INNER) < inner - first_inner
    mask = in_lines[:, None] & in_inner[None, :]
    across = widened(first_inner, TILE.wide) + tl.arange(0, BLOCK_INNER)[None, :]
    group_lines = widened(D, TILE.wide) * H
    if TILE.channels_last:
        group_lines = group_lines * W
    first_line = start % group_lines  # of the tile's first image or plane
    line = (first_line if TILE.wide else first_line.to(tl.int32)) + tl.arange(0, BLOCK_LINES)[:, None]
    rows = line // W if TILE.channels_last else line
    planes = rows // H
    group = start // group_lines + planes // D
    if TILE.channels_last:
        return Elements(group, group, across, planes % D, rows % H, line % W, mask)
    else:
        return Elements(group, group // C, group % C, planes % D, rows % H, across, mask)


@triton.jit
def dense_offset(at, place, C, D, H, W, TILE: constexpr):
    """Where `place` of the tile's images and channels lies in a dense tensor [N, C, D, H, W]."""
    row = (at.group * D + place.depth) * H + place.row
    if TILE.channels_last:
        return (row * W + place.column) * C + at.channel
    else:
        return row * W + place.column


@triton.jit
def strided_offset(at, place, stride_n, stride_c, stride_d, stride_h, stride_w):
    """The same in a tensor of any strides; a place outside the image is for the caller to mask."""
    image = at.image.to(tl.int64) * stride_n + at.channel.to(tl.int64) * stride_c
    row = place.depth.to(tl.int64) * stride_d + place.row.to(tl.int64) * stride_h
    return image + row + place.column.to(tl.int64) * stride_w


@triton.jit
def loop_place(step, HEIGHT: constexpr, WIDTH: constexpr):
    """The `Place` of one step of a loop over three axes, the last two of HEIGHT and WIDTH."""
    return Place(step // (HEIGHT * WIDTH), step // WIDTH % HEIGHT, step % WIDTH)


@triton.constexpr_function
def is_point(axis, window):
    """Whether each window along an axis is the element of its own number. Fractional ones are at random places."""
    return axis.kernel == axis.stride == 1 and axis.padding == 0 and not window.fractional


@triton.jit
def first_tap(o, size, out_size, sample, AXIS: constexpr, WINDOW: constexpr):
    """The first tap of window o along one axis, of its random sample where fractional."""
    if is_point(AXIS, WINDOW):
        return o
    elif WINDOW.adaptive:
        return (o * size) // out_size
    elif WINDOW.fractional:
        free = size - AXIS.kernel
        step = tl.div_rn(tl.cast(free, tl.float32), tl.maximum(tl.cast(out_size - 1, tl.float32), 1.0))
        start = ((o + sample) * step).to(tl.int32) - (sample * step).to(tl.int32)
        return tl.where(o == out_size - 1, free, start)
    else:
        return o * AXIS.stride - AXIS.padding


@triton.jit
def first_taps(at, o, sample_ptr, C, D, H, W, OD, OH, OW, WINDOW: constexpr):
    """`first_tap` of window o (a `Place`) along the three axes; `sample_ptr` is [N, C, 3], or None."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    samples = Place(0.0, 0.0, 0.0)
    if sample_ptr is not None:
        plane = tl.broadcast_to((at.image.to(tl.int64) * C + at.channel) * 3, at.mask.shape)
        samples = Place(
            tl.load(sample_ptr + plane, mask=at.mask, other=0.0),
            tl.load(sample_ptr + plane + 1, mask=at.mask, other=0.0),
            tl.load(sample_ptr + plane + 2, mask=at.mask, other=0.0),
        )
    return Place(
        first_tap(o.depth, D, OD, samples.depth, DEPTH, WINDOW),
        first_tap(o.row, H, OH, samples.row, ROWS, WINDOW),
        first_tap(o.column, W, OW, samples.column, COLUMNS, WINDOW),
    )


@triton.jit
def end_of_taps(o, size, out_size, AXIS: constexpr, WINDOW: constexpr):
    """The element along one axis before which window o's taps end."""
    if is_point(AXIS, WINDOW):
        return o + 1
    elif WINDOW.adaptive:
        return ((o + 1) * size + out_size - 1) // out_size
    else:
        return size


@triton.jit
def ends_of_taps(o, D, H, W, OD, OH, OW, WINDOW: constexpr):
    """`end_of_taps` of window o (a `Place`) along the three axes."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    depth = end_of_taps(o.depth, D, OD, DEPTH, WINDOW)
    row = end_of_taps(o.row, H, OH, ROWS, WINDOW)
    return Place(depth, row, end_of_taps(o.column, W, OW, COLUMNS, WINDOW))


@triton.jit
def is_inside(tap, first, end, WINDOW: constexpr):
    """Whether the tap `tap` elements after `first`, both a `Place`, lies in the image and before `end`."""
    COLUMNS: constexpr = WINDOW.columns
    depth = first.depth + tap.depth
    row = first.row + tap.row
    column = first.column + tap.column
    in_rows = (depth >= 0) & (depth < end.depth) & (row >= 0) & (row < end.row)
    if is_point(COLUMNS, WINDOW):  # the mask is one of whole lines
        return in_rows
    else:
        return in_rows & ((column >= 0) & (column < end.column))


@triton.jit
def place_of_tap(k, WINDOW: constexpr):
    """How many elements after a window's first tap its tap k (both a `Place`) is."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    return Place(k.depth * DEPTH.dilation, k.row * ROWS.dilation, k.column * COLUMNS.dilation)


@triton.jit
def offset_of_tap(k, stride_d, stride_h, stride_w, WINDOW: constexpr):
    """The same in memory."""
    place = place_of_tap(k, WINDOW)
    return place.depth * stride_d + place.row * stride_h + place.column * stride_w


@triton.jit
def number_of_tap(k, WINDOW: constexpr):
    """The number in its window of tap k (a `Place`)."""
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    return (k.depth * ROWS.kernel + k.row) * COLUMNS.kernel + k.column


@triton.jit
def nearest_tap(k, first, end, AXIS: constexpr):
    """The tap nearest to tap k, along one axis, that lies in the image and before `end`."""
    if AXIS.kernel == 1:
        return k
    else:
        last = tl.minimum(k, (end - 1 - first) // AXIS.dilation)
        if AXIS.padding == 0:
            return last
        else:
            return tl.maximum(last, (AXIS.dilation - 1 - first) // AXIS.dilation)


@triton.jit
def nearest_taps(k, first, end, WINDOW: constexpr):
    """`nearest_tap` along the three axes, all a `Place`.

    A tap outside the image is replaced by one in it, which changes no maximum and, as taps stay in order, no argmax,
    and needs no mask.
    """
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    return Place(
        nearest_tap(k.depth, first.depth, end.depth, DEPTH),
        nearest_tap(k.row, first.row, end.row, ROWS),
        nearest_tap(k.column, first.column, end.column, COLUMNS),
    )


@triton.jit
def last_window(i, size, out_size, AXIS: constexpr, WINDOW: constexpr):
    """The last window along one axis that may hold element i."""
    if is_point(AXIS, WINDOW):
        return i
    elif WINDOW.adaptive:
        return ((i + 1) * out_size + size - 1) // size - 1
    elif WINDOW.fractional:
        last = (i + 1) * (out_size - 1) // tl.maximum(size - AXIS.kernel, 1)
        return tl.minimum(tl.where(size == AXIS.kernel, out_size, last), out_size - 1)
    else:
        return (i + AXIS.padding) // AXIS.stride


@triton.jit
def last_windows(at, D, H, W, OD, OH, OW, WINDOW: constexpr):
    """`last_window` of the tile's elements along the three axes."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    return Place(
        last_window(at.depth, D, OD, DEPTH, WINDOW),
        last_window(at.row, H, OH, ROWS, WINDOW),
        last_window(at.column, W, OW, COLUMNS, WINDOW),
    )


@triton.jit
def windows_exist(o, OD, OH, OW):
    """Whether window o (a `Place`) is one of [OD, OH, OW]."""
    in_rows = (o.depth >= 0) & (o.depth < OD) & (o.row >= 0) & (o.row < OH)
    return in_rows & ((o.column >= 0) & (o.column < OW))


@triton.jit
def nearest_window(o, out_size, AXIS: constexpr, WINDOW: constexpr):
    """The window along one axis, of `out_size`, that is nearest to window o."""
    if is_point(AXIS, WINDOW):
        return o
    else:
        return tl.minimum(tl.maximum(o, 0), out_size - 1)


@triton.jit
def nearest_windows(o, OD, OH, OW, WINDOW: constexpr):
    """`nearest_window` along the three axes, all a `Place`: what is read in place of windows that don't exist."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    depth = nearest_window(o.depth, OD, DEPTH, WINDOW)
    row = nearest_window(o.row, OH, ROWS, WINDOW)
    return Place(depth, row, nearest_window(o.column, OW, COLUMNS, WINDOW))


@triton.jit
def is_in_window(i, o, size, out_size, AXIS: constexpr, WINDOW: constexpr):
    """Whether window o exists along one axis and ends after element i; windows have no dilation."""
    if is_point(AXIS, WINDOW):
        return True
    elif WINDOW.adaptive:
        return (o >= 0) & (o < out_size) & (i < end_of_taps(o, size, out_size, AXIS, WINDOW))
    else:
        return (o >= 0) & (o < out_size) & (i - first_tap(o, size, out_size, 0.0, AXIS, WINDOW) < AXIS.kernel)


@triton.jit
def are_in_windows(at, o, D, H, W, OD, OH, OW, WINDOW: constexpr):
    """`is_in_window` of the tile's elements along the three axes."""
    DEPTH: constexpr = WINDOW.depth
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    in_depth = is_in_window(at.depth, o.depth, D, OD, DEPTH, WINDOW)
    in_rows = is_in_window(at.row, o.row, H, OH, ROWS, WINDOW)
    return in_depth & in_rows & is_in_window(at.column, o.column, W, OW, COLUMNS, WINDOW)


def empty_images(like: torch.Tensor, size: Sequence[int], dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    """An uninitialized [N, C, *size] with N and C of `like` [N, C, ...]."""
    shape = (*like.shape[:2], *size)
    if channels_last:
        memory_format = torch.channels_last if len(size) == 2 else torch.channels_last_3d
        return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)
    return torch.empty(shape, dtype=dtype, device=like.device)


@lru_cache(maxsize=4096)
def pool_tile(lines: int, inner: int, channels_last: bool, target: Target) -> tuple[int, int, int]:
    """(block_lines, block_inner, num_warps): long in the contiguous direction, 1,024 elements on a chip.

    Args:
        lines: pixels of all images where channels_last, else rows of all planes.
        inner: channels where channels_last, else columns.
        channels_last: whether neighboring channels are neighbors in memory; else neighboring columns are.
        target: where it runs.
    """
    elements = {"interpreter": MOST_LINES, "cpu": 4096}.get(target.kind, 1024)
    block_inner = min(128 if channels_last else 1024, power_of_2_at_least(inner))
    return min(elements // block_inner, power_of_2_at_least(lines)), block_inner, 4


def pool_problem(
    kernel: Any,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    window: Window,
    result_size: tuple[int, ...],
    channels_last: bool,
    target: Target,
    most_on_cpu: int = 4,
    long_on_cpu: int = 64,
    **constants: Any,
) -> Problem:
    """All of a launch but its tensors.

    Args:
        kernel: a pooling kernel.
        shape: of the operand, x [N, C, ...] in a forward and dY in a backward.
        stride: of x; () for dY, which is dense.
        window: of the pooling.
        result_size: (D, H, W) of y or dx, or the last of these.
        channels_last: the layout of the dense tensors.
        target: where it runs.
        most_on_cpu: the most steps that are unrolled on the CPU.
        long_on_cpu: the taps of a window from which on the CPU a program of a forward in channels_last has one.
        constants: further constants of the kernel.
    """
    N, C, *operand_size = shape
    absent = [1] * (3 - len(operand_size))
    operand_size, result_size = (*absent, *operand_size), (*absent, *result_size)
    strides = (*stride[:2], *[0] * len(absent), *stride[2:]) if stride else ()
    size, out_size = (operand_size, result_size) if stride else (result_size, operand_size)
    size, out_size, strides, window = _merged(size, out_size, strides, window)
    D, H, W = out_size if stride else size
    lines, inner = (N * D * H * W, C) if channels_last else (N * C * D * H, W)
    block_lines, block_inner, num_warps = pool_tile(lines, inner, channels_last, target)
    axes = list(zip(window[:3], size, out_size, strict=True))
    loop = [each[0].kernel for each in axes] if stride else [_windows_of_element(*each, window) for each in axes]
    steps = loop[0] * loop[1] * loop[2]
    unroll = 1 if window.fractional else _unrolled(steps, most_on_cpu, target)  # each has places of its own
    if target.kind == "cpu" and channels_last and stride and steps >= long_on_cpu:
        block_lines = 1  # pixel after pixel of one window, as memory has them
    tile = PoolTile(
        block_lines,
        block_inner,
        channels_last,
        wide=_is_wide(window, size, out_size, strides[2:]),
        always_inside=window.fractional or (not window.adaptive and all(_is_inside(*each) for each in axes)),
        replaces=target.kind == "cpu" and not channels_last,
        loop_depth=loop[0],
        loop_rows=loop[1],
        loop_columns=loop[2],
        unroll=unroll,
    )
    grid = (ceil_div(lines, block_lines) * ceil_div(inner, block_inner),)
    numbers = (lines, inner, C, *size, *out_size, *strides)
    if window.adaptive:  # windows of different sizes take registers
        constants |= every_register(block_lines, "ieee", target)
    return Problem(kernel, grid, *numbers, WINDOW=window, TILE=tile, num_warps=num_warps, **constants)


def _merged(size: Any, out_size: Any, strides: Any, window: Window) -> tuple[Any, Any, Any, Window]:
    """The problem with one axis in place of three where each image is one window, all of it, and dense."""
    whole = all(axis == Axis(length, axis.stride) for axis, length in zip(window[:3], size, strict=True))
    D, H, W = size
    if not whole or out_size != (1, 1, 1) or window.adaptive or window.fractional:
        return size, out_size, strides, window
    if strides and not ((H == 1 or strides[3] == W * strides[4]) and (D == 1 or strides[2] == H * W * strides[4])):
        return size, out_size, strides, window
    area = D * H * W
    return (1, 1, area), out_size, strides, Window(POINT, POINT, Axis(area, area))


def _unrolled(steps: int, most_on_cpu: int, target: Target) -> int:
    """How many steps of a loop are unrolled: on a chip their loads are under way at once."""
    if target.kind == "cpu" and steps > most_on_cpu:
        return 1  # masked loads of more steps in one loop are not vectorized
    return steps if steps <= 16 else 8


def _windows_of_element(axis: Axis, size: int, out_size: int, window: Window) -> int:
    """The most windows that may hold one element, along one axis."""
    if window.adaptive:
        one_more = out_size % size and size % out_size  # some windows end within elements, or begin within windows
        return ceil_div(out_size, size) + bool(one_more)
    if window.fractional:
        free = size - axis.kernel
        return min(out_size, ceil_div((axis.kernel + 1) * (out_size - 1), free) + 2) if free else out_size
    return ceil_div(reach(axis), axis.stride)


def _is_inside(axis: Axis, size: int, out_size: int) -> bool:
    """Whether every tap of every window lies in an image of `size`, along one axis."""
    return axis.padding == 0 and (out_size - 1) * axis.stride + reach(axis) <= size


def _is_wide(window: Window, size: Any, out_size: Any, stride: tuple[int, ...]) -> bool:
    """Whether kernels need int64: for a tap's offset, to count lines or, but for strides, to find a window's bounds.

    Args:
        window: of the pooling.
        size: (D, H, W).
        out_size: (OD, OH, OW).
        stride: of D, H and W where taps are read; () in a backward.
    """
    taps = tuple(zip([reach(axis) for axis in window[:3]], stride, strict=False))
    counts = [lengths[0] * lengths[1] * lengths[2] + MOST_LINES for lengths in (size, out_size)]
    if window.adaptive or window.fractional:
        counts += [(length + 1) * (out + 1) for length, out in zip(size, out_size, strict=True)]
    return exceed_int32(taps, *[((count, 1),) for count in counts])

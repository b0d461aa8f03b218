"""Pooling: the maximum or the mean of each window of an image.

    max_pool2d:          y[oh, ow] = max over taps x[oh stride - padding + kh dilation, ...]
    avg_pool2d:          y[oh, ow] = sum over the window / divisor
    adaptive_avg_pool2d: the mean over rows floor(oh H / OH) to ceil((oh + 1) H / OH), and columns alike

Tiling: one program computes a tile [block_positions, block_channels]. In channels_last a position is a pixel of any
image and a channel is a channel; in NCHW a position is a pixel and a channel is a plane, one of N C. Either way an
offset is the sum of one part per position and one per channel, and the contiguous direction is the longer one of the
tile. The forward walks the taps of each position's window.

Backward: without atomics. One program computes a tile of dx and gathers, for each element, from the windows that hold
it. The maximum saves which tap it was (argmax), in one byte where a window has fewer than 127 taps.

y, argmax and dx are dense, channels_last or NCHW; x has any strides.

Source: PyTorch's window and output-size rules (torch.nn.functional); NaN is larger than every number, and of equal taps
the first is taken.
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

MOST_POSITIONS = 1 << 16  # of a tile


class Axis(NamedTuple):
    """A window along one axis of the image.

    Attributes:
        kernel: its taps. Adaptive: the most that any window has.
        stride: from one window to the next. Adaptive: not read.
        padding: elements outside the image on each side, at most half a kernel.
        dilation: from one tap to the next; 1 for means.
    """

    kernel: int
    stride: int
    padding: int = 0
    dilation: int = 1


class Window(NamedTuple):
    """What a pooling kernel is compiled for, beside its tile.

    Attributes:
        rows, columns: the window along the two axes.
        adaptive: whether the windows divide the image among the outputs.
        count_include_pad: whether a mean's divisor counts the padding.
        divisor_override: a mean's divisor, or 0 for the number of elements.
    """

    rows: Axis
    columns: Axis
    adaptive: bool = False
    count_include_pad: bool = True
    divisor_override: int = 0


class PoolTile(NamedTuple):
    """The tile of one program, and how it is walked.

    Attributes:
        block_positions, block_channels: its sides.
        channels_last: the layout of the dense tensors.
        wide: whether sizes and strides are taken as int64.
        always_inside: whether every tap of every window lies in the image; known to the maximum alone.
        loop_rows, loop_columns: the taps of a window in the forward, the windows that hold one element in the backward.
        unroll: how many of them are loaded at once.
    """

    block_positions: int
    block_channels: int
    channels_last: bool
    wide: bool
    always_inside: bool
    loop_rows: int
    loop_columns: int
    unroll: int


class Positions(NamedTuple):
    """The elements of a program's tile, within a kernel.

    `image` (int64; 0 in NCHW, where it is part of the channel), `pixel` and its `row` and `column` are
    [block_positions], `channel` is [block_channels], and `mask` tells which of the tile's elements exist.
    """

    image: Any
    pixel: Any
    row: Any
    column: Any
    channel: Any
    mask: Any


class Span(NamedTuple):
    """A window along one axis, within a kernel: its bounds in the image, and its length with the padding."""

    start: Any
    end: Any
    length: Any


@triton.jit
def positions_of_program(height, width, positions, channels, TILE: constexpr):
    """`Positions` in images of [height, width]; pixels count in int32, which divides faster, or in int64 where wide."""
    BLOCK_POSITIONS: constexpr = TILE.block_positions
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    area = widened(height, TILE.wide) * width
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0) // channel_blocks
    first_channel = (tl.program_id(0) % channel_blocks) * BLOCK_CHANNELS
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    start = block.to(tl.int64) * BLOCK_POSITIONS
    position = tl.arange(0, BLOCK_POSITIONS)
    first_pixel = start % area if TILE.channels_last else start  # of the tile's first image
    pixel = (first_pixel if TILE.wide else first_pixel.to(tl.int32)) + position
    if TILE.channels_last:
        image = start // area + pixel // area
        pixel %= area
    else:
        image = tl.zeros((BLOCK_POSITIONS,), tl.int64)
    in_channels = tl.arange(0, BLOCK_CHANNELS) < channels - first_channel
    mask = (position < positions - start)[:, None] & in_channels[None, :]
    return Positions(image, pixel, pixel // width, pixel % width, channel, mask)


@triton.jit
def dense_offset(at, pixel, height, width, C, TILE: constexpr):
    """Where `pixel` of the tile's images and channels lies in a dense tensor [N, C, height, width]."""
    area = widened(height, TILE.wide) * width
    if TILE.channels_last:
        return ((at.image * area + pixel) * C)[:, None] + at.channel[None, :]
    else:
        return pixel[:, None] + (at.channel.to(tl.int64) * area)[None, :]


@triton.jit
def strided_offset(at, row, column, C, stride_n, stride_c, stride_h, stride_w, TILE: constexpr):
    """The same in a tensor of any strides; a row or column outside the image is for the caller to mask."""
    pixel_offset = row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    channel = at.channel.to(tl.int64)
    if TILE.channels_last:
        return (at.image * stride_n + pixel_offset)[:, None] + (channel * stride_c)[None, :]
    else:
        return pixel_offset[:, None] + ((channel // C) * stride_n + (channel % C) * stride_c)[None, :]


@triton.jit
def max_pool2d_forward_kernel(
    x_ptr,
    y_ptr,
    argmax_ptr,
    index_ptr,
    positions,
    channels,
    C,
    H,
    W,
    OH,
    OW,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """y = the largest tap, argmax = its number kh KERNEL_W + kw, index = its pixel ih W + iw; None is not stored."""
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_POSITIONS: constexpr = TILE.block_positions
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    UNROLL: constexpr = TILE.unroll
    at = positions_of_program(OH, OW, positions, channels, TILE)
    first_row = at.row * ROWS.stride - ROWS.padding
    first_column = at.column * COLUMNS.stride - COLUMNS.padding
    stride_xh = widened(stride_xh, TILE.wide)
    stride_xw = widened(stride_xw, TILE.wide)
    x_offset = strided_offset(at, first_row, first_column, C, stride_xn, stride_xc, stride_xh, stride_xw, TILE)
    y = tl.full((BLOCK_POSITIONS, BLOCK_CHANNELS), float("-inf"), tl.float32)
    argmax = tl.full((BLOCK_POSITIONS, BLOCK_CHANNELS), 0 if TILE.always_inside else -1, tl.int32)
    for tap in tl.range(0, ROWS.kernel * COLUMNS.kernel, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        down = (tap // COLUMNS.kernel) * ROWS.dilation
        right = (tap % COLUMNS.kernel) * COLUMNS.dilation
        tap_ptr = x_ptr + (down * stride_xh + right * stride_xw)
        if TILE.always_inside:
            x = tl.load(tap_ptr + x_offset, mask=at.mask, other=0.0).to(tl.float32)
            is_largest = (x > y) | (x != x)
        else:
            row = first_row + down
            column = first_column + right
            inside = ((row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None]
            x = tl.load(tap_ptr + x_offset, mask=at.mask & inside, other=0.0).to(tl.float32)
            is_largest = inside & ((x > y) | (x != x) | (argmax < 0))
        y = tl.where(is_largest, x, y)
        argmax = tl.where(is_largest, tap, argmax)
    offset = dense_offset(at, at.pixel, OH, OW, C, TILE)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=at.mask)
    if argmax_ptr is not None:
        tl.store(argmax_ptr + offset, argmax.to(argmax_ptr.dtype.element_ty), mask=at.mask)
    if index_ptr is not None:
        row = first_row[:, None] + (argmax // COLUMNS.kernel) * ROWS.dilation
        column = first_column[:, None] + (argmax % COLUMNS.kernel) * COLUMNS.dilation
        tl.store(index_ptr + offset, row.to(tl.int64) * W + column, mask=at.mask)


@triton.jit
def max_pool2d_backward_kernel(
    grad_ptr, argmax_ptr, dx_ptr, positions, channels, C, H, W, OH, OW, WINDOW: constexpr, TILE: constexpr
):
    """dx = the sum of dY over the windows whose maximum is x's element."""
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_POSITIONS: constexpr = TILE.block_positions
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    UNROLL: constexpr = TILE.unroll
    at = positions_of_program(H, W, positions, channels, TILE)
    row = at.row + ROWS.padding
    column = at.column + COLUMNS.padding
    dx = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    for window in tl.range(0, TILE.loop_rows * TILE.loop_columns, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        oh = row // ROWS.stride - window // TILE.loop_columns
        ow = column // COLUMNS.stride - window % TILE.loop_columns
        down = row - oh * ROWS.stride
        right = column - ow * COLUMNS.stride
        kh = down // ROWS.dilation
        kw = right // COLUMNS.dilation
        in_kernel = (kh < ROWS.kernel) & (kw < COLUMNS.kernel)
        is_tap = in_kernel & (kh * ROWS.dilation == down) & (kw * COLUMNS.dilation == right)
        holds = (is_tap & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW))[:, None]
        offset = dense_offset(at, oh * OW + ow, OH, OW, C, TILE)
        argmax = tl.load(argmax_ptr + offset, mask=at.mask & holds, other=-1).to(tl.int32)
        grad = tl.load(grad_ptr + offset, mask=at.mask & holds, other=0.0).to(tl.float32)
        dx += tl.where(argmax == (kh * COLUMNS.kernel + kw)[:, None], grad, 0.0)
    tl.store(dx_ptr + dense_offset(at, at.pixel, H, W, C, TILE), dx.to(dx_ptr.dtype.element_ty), mask=at.mask)


@triton.jit
def window_span(o, size, out_size, AXIS: constexpr, ADAPTIVE: constexpr):
    """The `Span` of window o."""
    if ADAPTIVE:
        start = (o * size) // out_size
        end = ((o + 1) * size + out_size - 1) // out_size
        return Span(start, end, end - start)
    else:
        padded_start = o * AXIS.stride - AXIS.padding
        padded_end = tl.minimum(padded_start + AXIS.kernel, size + AXIS.padding)
        return Span(tl.maximum(padded_start, 0), tl.minimum(padded_end, size), padded_end - padded_start)


@triton.jit
def last_window(i, size, out_size, AXIS: constexpr, ADAPTIVE: constexpr):
    """The last window along one axis that starts at or before element i."""
    if ADAPTIVE:
        return ((i + 1) * out_size + size - 1) // size - 1
    else:
        return (i + AXIS.padding) // AXIS.stride


@triton.jit
def mean_divisor(rows, columns, WINDOW: constexpr):
    """What the sum over a window is divided by, in fp32, of the window's two `Span`s."""
    if WINDOW.divisor_override != 0:
        return tl.full(rows.start.shape, WINDOW.divisor_override, tl.float32)
    elif WINDOW.count_include_pad:
        return (rows.length * columns.length).to(tl.float32)
    else:
        return ((rows.end - rows.start) * (columns.end - columns.start)).to(tl.float32)


@triton.jit
def avg_pool2d_forward_kernel(
    x_ptr,
    y_ptr,
    positions,
    channels,
    C,
    H,
    W,
    OH,
    OW,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """y = the sum over the window / divisor."""
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_POSITIONS: constexpr = TILE.block_positions
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    UNROLL: constexpr = TILE.unroll
    at = positions_of_program(OH, OW, positions, channels, TILE)
    rows = window_span(at.row, H, OH, ROWS, WINDOW.adaptive)
    columns = window_span(at.column, W, OW, COLUMNS, WINDOW.adaptive)
    stride_xh = widened(stride_xh, TILE.wide)
    stride_xw = widened(stride_xw, TILE.wide)
    x_offset = strided_offset(at, rows.start, columns.start, C, stride_xn, stride_xc, stride_xh, stride_xw, TILE)
    total = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    for tap in tl.range(0, ROWS.kernel * COLUMNS.kernel, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        kh = tap // COLUMNS.kernel
        kw = tap % COLUMNS.kernel
        inside = ((kh < rows.end - rows.start) & (kw < columns.end - columns.start))[:, None]
        tap_ptr = x_ptr + (kh * stride_xh + kw * stride_xw)
        total += tl.load(tap_ptr + x_offset, mask=at.mask & inside, other=0.0).to(tl.float32)
    y = total / mean_divisor(rows, columns, WINDOW)[:, None]
    tl.store(y_ptr + dense_offset(at, at.pixel, OH, OW, C, TILE), y.to(y_ptr.dtype.element_ty), mask=at.mask)


@triton.jit
def avg_pool2d_backward_kernel(
    grad_ptr, dx_ptr, positions, channels, C, H, W, OH, OW, WINDOW: constexpr, TILE: constexpr
):
    """dx = the sum of dY / divisor over the windows that hold x's element."""
    ROWS: constexpr = WINDOW.rows
    COLUMNS: constexpr = WINDOW.columns
    BLOCK_POSITIONS: constexpr = TILE.block_positions
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    UNROLL: constexpr = TILE.unroll
    at = positions_of_program(H, W, positions, channels, TILE)
    last_oh = last_window(at.row, H, OH, ROWS, WINDOW.adaptive)
    last_ow = last_window(at.column, W, OW, COLUMNS, WINDOW.adaptive)
    dx = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    for window in tl.range(0, TILE.loop_rows * TILE.loop_columns, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        oh = last_oh - window // TILE.loop_columns
        ow = last_ow - window % TILE.loop_columns
        rows = window_span(oh, H, OH, ROWS, WINDOW.adaptive)
        columns = window_span(ow, W, OW, COLUMNS, WINDOW.adaptive)
        exists = (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
        in_rows = (at.row >= rows.start) & (at.row < rows.end)
        holds = exists & in_rows & (at.column >= columns.start) & (at.column < columns.end)
        offset = dense_offset(at, oh * OW + ow, OH, OW, C, TILE)
        grad = tl.load(grad_ptr + offset, mask=at.mask & holds[:, None], other=0.0).to(tl.float32)
        dx += grad / tl.where(holds, mean_divisor(rows, columns, WINDOW), 1.0)[:, None]
    tl.store(dx_ptr + dense_offset(at, at.pixel, H, W, C, TILE), dx.to(dx_ptr.dtype.element_ty), mask=at.mask)


@costs(max_pool2d_forward_kernel)
@costs(avg_pool2d_forward_kernel)
def pool_forward_cost(y_ptr: torch.Tensor, WINDOW: Window, **others: Any) -> Cost:
    """One comparison or addition per tap; x is read once, the results are written."""
    taps = WINDOW.rows.kernel * WINDOW.columns.kernel
    return Cost(y_ptr.numel() * taps, size_in_bytes(y_ptr, *others.values()))


@costs(max_pool2d_backward_kernel)
def max_pool2d_backward_cost(grad_ptr: torch.Tensor, **others: Any) -> Cost:
    """One addition per window; dY and argmax are read once, dx is written."""
    return Cost(grad_ptr.numel(), size_in_bytes(grad_ptr, *others.values()))


@costs(avg_pool2d_backward_kernel)
def avg_pool2d_backward_cost(dx_ptr: torch.Tensor, TILE: PoolTile, **others: Any) -> Cost:
    """One addition per window that may hold an element; dY is read once, dx is written."""
    return Cost(dx_ptr.numel() * TILE.loop_rows * TILE.loop_columns, size_in_bytes(dx_ptr, *others.values()))


@lru_cache(maxsize=4096)
def pool_tile(positions: int, channels: int, channels_last: bool, target: Target) -> tuple[int, int, int]:
    """(block_positions, block_channels, num_warps): long in the contiguous direction, 1,024 elements on a chip.

    Args:
        positions: pixels; of all images where channels_last.
        channels: channels, or planes where not channels_last.
        channels_last: whether neighboring channels are neighbors in memory; else neighboring pixels are.
        target: where it runs.
    """
    elements = {"interpreter": MOST_POSITIONS, "cpu": 4096}.get(target.kind, 1024)
    if channels_last:
        block_channels = min(128, elements, power_of_2_at_least(channels))
        return min(elements // block_channels, power_of_2_at_least(positions)), block_channels, 4
    block_positions = min(elements, power_of_2_at_least(positions), 1024)
    return block_positions, min(elements // block_positions, power_of_2_at_least(channels)), 4


def max_pool2d_forward(
    x: torch.Tensor,
    window: Window,
    out_size: tuple[int, int],
    *,
    channels_last: bool,
    want_argmax: bool,
    want_index: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The maxima, the number of the tap that each is, and its pixel.

    Args:
        x: [N, C, H, W], any strides.
        window: not adaptive.
        out_size: (OH, OW).
        channels_last: the layout of the results.
        want_argmax: whether to compute argmax, for the backward.
        want_index: whether to compute the indices.

    Returns:
        y [N, C, OH, OW]; argmax, int8 or int32, or None; indices ih W + iw, int64, or None.
    """
    taps = window.rows.kernel * window.columns.kernel
    y = _empty(x, out_size, x.dtype, channels_last)
    argmax = _empty(x, out_size, argmax_dtype(taps), channels_last) if want_argmax else None
    index = _empty(x, out_size, torch.int64, channels_last) if want_index else None
    problem = _problem("max_forward", x.shape, x.stride(), window, out_size, channels_last, current_target())
    problem.launch(x, y, argmax, index)
    return y, argmax, index


def max_pool2d_backward(
    grad: torch.Tensor, argmax: torch.Tensor, window: Window, size: tuple[int, int], *, channels_last: bool
) -> torch.Tensor:
    """dx [N, C, H, W].

    Args:
        grad: dY [N, C, OH, OW], dense in the layout of `argmax`.
        argmax: what the forward returned.
        window: the forward's.
        size: (H, W).
        channels_last: the forward's.
    """
    dx = _empty(grad, size, grad.dtype, channels_last)
    _problem("max_backward", grad.shape, (), window, size, channels_last, current_target()).launch(grad, argmax, dx)
    return dx


def avg_pool2d_forward(
    x: torch.Tensor, window: Window, out_size: tuple[int, int], *, channels_last: bool
) -> torch.Tensor:
    """The means y [N, C, OH, OW].

    Args:
        x: [N, C, H, W], any strides.
        window: without dilation.
        out_size: (OH, OW).
        channels_last: the layout of y.
    """
    y = _empty(x, out_size, x.dtype, channels_last)
    problem = _problem("avg_forward", x.shape, x.stride(), window, out_size, channels_last, current_target())
    problem.launch(x, y)
    return y


def avg_pool2d_backward(
    grad: torch.Tensor, window: Window, size: tuple[int, int], *, channels_last: bool
) -> torch.Tensor:
    """dx [N, C, H, W].

    Args:
        grad: dY [N, C, OH, OW], dense in the forward's layout.
        window: the forward's.
        size: (H, W).
        channels_last: the forward's.
    """
    dx = _empty(grad, size, grad.dtype, channels_last)
    _problem("avg_backward", grad.shape, (), window, size, channels_last, current_target()).launch(grad, dx)
    return dx


def argmax_dtype(taps: int) -> torch.dtype:
    """What the number of one of so many taps is stored in."""
    return torch.int8 if taps < 127 else torch.int32


def _empty(like: torch.Tensor, size: tuple[int, int], dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*like.shape[:2], *size)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


_KERNELS = {  # by name: a kernel's own hash is slow
    "max_forward": max_pool2d_forward_kernel,
    "max_backward": max_pool2d_backward_kernel,
    "avg_forward": avg_pool2d_forward_kernel,
    "avg_backward": avg_pool2d_backward_kernel,
}


@lru_cache(maxsize=4096)
def _problem(
    kernel: str,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    window: Window,
    result_size: tuple[int, int],
    channels_last: bool,
    target: Target,
) -> Problem:
    """All of a launch but its tensors.

    Args:
        kernel: its name in `_KERNELS`.
        shape: of the operand, x in a forward and dY in a backward.
        stride: of x; () for dY, which is dense.
        window: of the pooling.
        result_size: (height, width) of y or dx.
        channels_last: the layout of the dense tensors.
        target: where it runs.
    """
    N, C, *operand_size = shape
    area = result_size[0] * result_size[1]
    positions, channels = (N * area, C) if channels_last else (area, N * C)
    block_positions, block_channels, num_warps = pool_tile(positions, channels, channels_last, target)
    size, out_size = (operand_size, result_size) if stride else (result_size, operand_size)
    axes = list(zip((window.rows, window.columns), size, out_size, strict=True))
    if stride:
        loop = [axis.kernel for axis, _, _ in axes]
    elif window.adaptive:
        loop = [ceil_div(out, length) + 1 for _, length, out in axes]
    else:
        loop = [ceil_div(_reach(axis), axis.stride) for axis, _, _ in axes]
    steps = loop[0] * loop[1]
    tile = PoolTile(
        block_positions,
        block_channels,
        channels_last,
        wide=_is_wide(window, size, out_size, stride[2:]),
        always_inside=kernel == "max_forward" and all(_is_inside(*each) for each in axes),
        loop_rows=loop[0],
        loop_columns=loop[1],
        unroll=steps if steps <= 16 else 8,  # loads of an unrolled loop are under way at once
    )
    grid = (ceil_div(positions, block_positions) * ceil_div(channels, block_channels),)
    numbers = (positions, channels, C, *size, *out_size, *stride)
    return Problem(_KERNELS[kernel], grid, *numbers, WINDOW=window, TILE=tile, num_warps=num_warps)


def _reach(axis: Axis) -> int:
    """Elements from a window's first tap to its last."""
    return (axis.kernel - 1) * axis.dilation + 1


def _is_inside(axis: Axis, size: int, out_size: int) -> bool:
    """Whether every tap of every window lies in an image of `size`, along one axis."""
    return axis.padding == 0 and (out_size - 1) * axis.stride + _reach(axis) <= size


def _is_wide(window: Window, size: Any, out_size: Any, stride: tuple[int, ...]) -> bool:
    """Whether kernels need int64: for a tap's offset, to count pixels or, adaptive, to find a window's bounds.

    Args:
        window: of the pooling.
        size: (H, W).
        out_size: (OH, OW).
        stride: of H and W where taps are read; () in a backward.
    """
    taps = tuple(zip((_reach(window.rows), _reach(window.columns)), stride, strict=False))
    counts = [length[0] * length[1] + MOST_POSITIONS for length in (size, out_size)]
    if window.adaptive:
        counts += [(length + 1) * (out + 1) for length, out in zip(size, out_size, strict=True)]
    return exceed_int32(taps, *[((count, 1),) for count in counts])

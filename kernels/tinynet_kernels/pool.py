"""Pooling: the maximum or the mean of each window of an image.

    max_pool2d:          y[oh, ow] = max over taps x[oh stride - padding + kh dilation, ...]
    avg_pool2d:          y[oh, ow] = sum over the window / divisor
    adaptive_avg_pool2d: the mean over rows floor(oh H / OH) to ceil((oh + 1) H / OH), and columns alike

Tiling: a program makes a tile [BLOCK_POSITIONS, BLOCK_CHANNELS]. In channels_last a position is a pixel of any image
and a channel is a channel; in NCHW a position is a pixel and a channel is a plane, one of N C. Either way an offset is
the sum of one part a position and one a channel, and the contiguous direction is the longer one of the tile.

Backward: without atomics. A program makes a tile of dx and gathers, for each element, from the windows that hold it, at
most WINDOWS_H x WINDOWS_W of them. The maximum saves which tap won, in one byte where a window has fewer than 127 taps.

y, the winners and dx are dense, in the layout that the flag CHANNELS_LAST says; x has any strides.

Source: PyTorch's window and output-size rules (torch.nn.functional); NaN wins over every number, ties go to the first.
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


class Window(NamedTuple):
    """The window of a pooling, (height, width) each.

    Attributes:
        kernel: its taps. Adaptive: the most that any window has.
        stride: from one window to the next.
        padding: rows and columns outside the image, at most half a kernel.
        dilation: from one tap to the next; 1 for means.
        adaptive: whether the windows divide the image among the outputs; stride and padding then say nothing.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    adaptive: bool = False

    def constants(self) -> dict[str, int]:
        """The kernels' constexprs."""
        return {
            "KERNEL_H": self.kernel[0],
            "KERNEL_W": self.kernel[1],
            "STRIDE_H": self.stride[0],
            "STRIDE_W": self.stride[1],
            "PADDING_H": self.padding[0],
            "PADDING_W": self.padding[1],
        }

    def dilation_constants(self) -> dict[str, int]:
        """Those of the maximum alone."""
        return {"DILATION_H": self.dilation[0], "DILATION_W": self.dilation[1]}

    def always_inside(self, size: tuple[int, int], out_size: tuple[int, int]) -> bool:
        """Whether every tap of every window lies in an image of `size`."""
        return self.padding == (0, 0) and all(
            (out - 1) * stride + (kernel - 1) * dilation < length
            for length, out, kernel, stride, dilation in zip(
                size, out_size, self.kernel, self.stride, self.dilation, strict=True
            )
        )

    def is_wide(self, size: tuple[int, int], out_size: tuple[int, int], stride: tuple[int, ...] = (0, 0)) -> bool:
        """Whether kernels need int64: for a tap's offset, to count pixels or, adaptive, to find a window's bounds.

        Args:
            size: (H, W).
            out_size: (OH, OW).
            stride: of H and W where taps are read.
        """
        reach = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(self.kernel, self.dilation, strict=True)]
        areas = [(length[0] * length[1] + MOST_POSITIONS, 1) for length in (size, out_size)]
        products = [((length + 1) * (out + 1), 1) for length, out in zip(size, out_size, strict=True) if self.adaptive]
        return exceed_int32(tuple(zip(reach, stride, strict=True)), *[(count,) for count in (*areas, *products)])

    def overlap(self, axis: int, size: int, out_size: int) -> int:
        """How many windows at most hold one element, along one axis."""
        if self.adaptive:
            return ceil_div(out_size, size) + 1
        return ceil_div((self.kernel[axis] - 1) * self.dilation[axis] + 1, self.stride[axis])


@triton.jit
def tile_indices(
    area,
    positions,
    channels,
    CHANNELS_LAST: constexpr,
    WIDE: constexpr,
    BLOCK_POSITIONS: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """(image, pixel, channel, mask) of this program's tile; in NCHW the image is part of the channel, and here 0.

    Pixels count in int32, which divides faster, or in int64 for WIDE.
    """
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0) // channel_blocks
    first_channel = (tl.program_id(0) % channel_blocks) * BLOCK_CHANNELS
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    start = block.to(tl.int64) * BLOCK_POSITIONS
    position = tl.arange(0, BLOCK_POSITIONS)
    first_pixel = start % area if CHANNELS_LAST else start  # of the tile's first image
    pixel = (first_pixel if WIDE else first_pixel.to(tl.int32)) + position
    if CHANNELS_LAST:
        image = start // area + pixel // area
        pixel %= area
    else:
        image = tl.zeros((BLOCK_POSITIONS,), tl.int64)
    in_channels = tl.arange(0, BLOCK_CHANNELS) < channels - first_channel
    mask = (position < positions - start)[:, None] & in_channels[None, :]
    return image, pixel, channel, mask


@triton.jit
def dense_offset(image, pixel, channel, area, C, CHANNELS_LAST: constexpr):
    """Where the elements of a tile lie in a dense tensor of `area` pixels an image."""
    if CHANNELS_LAST:
        return ((image * area + pixel) * C)[:, None] + channel[None, :]
    else:
        return pixel[:, None] + (channel.to(tl.int64) * area)[None, :]


@triton.jit
def strided_offset(image, row, column, channel, C, stride_n, stride_c, stride_h, stride_w, CHANNELS_LAST: constexpr):
    """Where they lie in a tensor of any strides; a row or column outside the image is for the caller to mask."""
    pixel_offset = row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    wide_channel = channel.to(tl.int64)
    if CHANNELS_LAST:
        return (image * stride_n + pixel_offset)[:, None] + (wide_channel * stride_c)[None, :]
    else:
        return pixel_offset[:, None] + ((wide_channel // C) * stride_n + (wide_channel % C) * stride_c)[None, :]


@triton.jit
def max_pool2d_forward_kernel(
    x_ptr,
    y_ptr,
    winner_ptr,
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
    KERNEL_H: constexpr,
    KERNEL_W: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    DILATION_H: constexpr,
    DILATION_W: constexpr,
    WANT_WINNER: constexpr,
    WANT_INDEX: constexpr,
    ALWAYS_INSIDE: constexpr,
    CHANNELS_LAST: constexpr,
    WIDE: constexpr,
    UNROLL: constexpr,
    BLOCK_POSITIONS: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """y = the largest tap, winner = its number kh KERNEL_W + kw, index = its pixel ih W + iw.

    ALWAYS_INSIDE says that every tap of every window lies in the image.
    """
    H = widened(H, WIDE)
    W = widened(W, WIDE)
    OH = widened(OH, WIDE)
    OW = widened(OW, WIDE)
    stride_xh = widened(stride_xh, WIDE)
    stride_xw = widened(stride_xw, WIDE)
    image, pixel, channel, mask = tile_indices(
        OH * OW, positions, channels, CHANNELS_LAST, WIDE, BLOCK_POSITIONS, BLOCK_CHANNELS
    )
    first_row = (pixel // OW) * STRIDE_H - PADDING_H
    first_column = (pixel % OW) * STRIDE_W - PADDING_W
    x_offset = strided_offset(
        image, first_row, first_column, channel, C, stride_xn, stride_xc, stride_xh, stride_xw, CHANNELS_LAST
    )
    y = tl.full((BLOCK_POSITIONS, BLOCK_CHANNELS), float("-inf"), tl.float32)
    winner = tl.full((BLOCK_POSITIONS, BLOCK_CHANNELS), 0 if ALWAYS_INSIDE else -1, tl.int32)
    for tap in tl.range(0, KERNEL_H * KERNEL_W, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        down = (tap // KERNEL_W) * DILATION_H
        right = (tap % KERNEL_W) * DILATION_W
        tap_ptr = x_ptr + (down * stride_xh + right * stride_xw)
        if ALWAYS_INSIDE:
            x = tl.load(tap_ptr + x_offset, mask=mask, other=0.0).to(tl.float32)
            wins = (x > y) | (x != x)
        else:
            row = first_row + down
            column = first_column + right
            inside = ((row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None]
            x = tl.load(tap_ptr + x_offset, mask=mask & inside, other=0.0).to(tl.float32)
            wins = inside & ((x > y) | (x != x) | (winner < 0))
        y = tl.where(wins, x, y)
        winner = tl.where(wins, tap, winner)
    offset = dense_offset(image, pixel, channel, OH * OW, C, CHANNELS_LAST)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
    if WANT_WINNER:
        tl.store(winner_ptr + offset, winner.to(winner_ptr.dtype.element_ty), mask=mask)
    if WANT_INDEX:
        row_index = first_row[:, None] + (winner // KERNEL_W) * DILATION_H
        column_index = first_column[:, None] + (winner % KERNEL_W) * DILATION_W
        tl.store(index_ptr + offset, row_index.to(tl.int64) * W + column_index, mask=mask)


@triton.jit
def max_pool2d_backward_kernel(
    grad_ptr,
    winner_ptr,
    dx_ptr,
    positions,
    channels,
    C,
    H,
    W,
    OH,
    OW,
    KERNEL_H: constexpr,
    KERNEL_W: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    DILATION_H: constexpr,
    DILATION_W: constexpr,
    WINDOWS_H: constexpr,
    WINDOWS_W: constexpr,
    CHANNELS_LAST: constexpr,
    WIDE: constexpr,
    UNROLL: constexpr,
    BLOCK_POSITIONS: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """dx = the sum of dY over the windows that x's element won."""
    H = widened(H, WIDE)
    W = widened(W, WIDE)
    OH = widened(OH, WIDE)
    OW = widened(OW, WIDE)
    image, pixel, channel, mask = tile_indices(
        H * W, positions, channels, CHANNELS_LAST, WIDE, BLOCK_POSITIONS, BLOCK_CHANNELS
    )
    row = pixel // W + PADDING_H
    column = pixel % W + PADDING_W
    dx = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    for window in tl.range(0, WINDOWS_H * WINDOWS_W, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        oh = row // STRIDE_H - window // WINDOWS_W
        ow = column // STRIDE_W - window % WINDOWS_W
        down = row - oh * STRIDE_H
        right = column - ow * STRIDE_W
        kh = down // DILATION_H
        kw = right // DILATION_W
        is_tap = (kh < KERNEL_H) & (kw < KERNEL_W) & (kh * DILATION_H == down) & (kw * DILATION_W == right)
        holds = (is_tap & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW))[:, None]
        offset = dense_offset(image, oh * OW + ow, channel, OH * OW, C, CHANNELS_LAST)
        winner = tl.load(winner_ptr + offset, mask=mask & holds, other=-1).to(tl.int32)
        grad = tl.load(grad_ptr + offset, mask=mask & holds, other=0.0).to(tl.float32)
        dx += tl.where(winner == (kh * KERNEL_W + kw)[:, None], grad, 0.0)
    dx_offset = dense_offset(image, pixel, channel, H * W, C, CHANNELS_LAST)
    tl.store(dx_ptr + dx_offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def mean_window(
    o,
    size,
    out_size,
    KERNEL: constexpr,
    STRIDE: constexpr,
    PADDING: constexpr,
    ADAPTIVE: constexpr,
):
    """(start, end, length) along one axis of window o: the bounds within the image, and the length with padding."""
    if ADAPTIVE:
        start = (o * size) // out_size
        end = ((o + 1) * size + out_size - 1) // out_size
        return start, end, end - start
    else:
        padded_start = o * STRIDE - PADDING
        padded_end = tl.minimum(padded_start + KERNEL, size + PADDING)
        return tl.maximum(padded_start, 0), tl.minimum(padded_end, size), padded_end - padded_start


@triton.jit
def mean_divisor(top, bottom, height, left, right, width, COUNT_INCLUDE_PAD: constexpr, DIVISOR_OVERRIDE: constexpr):
    """What the sum over a window is divided by, in fp32; DIVISOR_OVERRIDE 0 overrides nothing."""
    if DIVISOR_OVERRIDE != 0:
        return tl.full(top.shape, DIVISOR_OVERRIDE, tl.float32)
    elif COUNT_INCLUDE_PAD:
        return (height * width).to(tl.float32)
    else:
        return ((bottom - top) * (right - left)).to(tl.float32)


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
    KERNEL_H: constexpr,
    KERNEL_W: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    ADAPTIVE: constexpr,
    COUNT_INCLUDE_PAD: constexpr,
    DIVISOR_OVERRIDE: constexpr,
    CHANNELS_LAST: constexpr,
    WIDE: constexpr,
    UNROLL: constexpr,
    BLOCK_POSITIONS: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """y = the sum over the window / divisor."""
    H = widened(H, WIDE)
    W = widened(W, WIDE)
    OH = widened(OH, WIDE)
    OW = widened(OW, WIDE)
    stride_xh = widened(stride_xh, WIDE)
    stride_xw = widened(stride_xw, WIDE)
    image, pixel, channel, mask = tile_indices(
        OH * OW, positions, channels, CHANNELS_LAST, WIDE, BLOCK_POSITIONS, BLOCK_CHANNELS
    )
    top, bottom, height = mean_window(pixel // OW, H, OH, KERNEL_H, STRIDE_H, PADDING_H, ADAPTIVE)
    left, right, width = mean_window(pixel % OW, W, OW, KERNEL_W, STRIDE_W, PADDING_W, ADAPTIVE)
    x_offset = strided_offset(image, top, left, channel, C, stride_xn, stride_xc, stride_xh, stride_xw, CHANNELS_LAST)
    total = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    for tap in tl.range(0, KERNEL_H * KERNEL_W, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        kh = tap // KERNEL_W
        kw = tap % KERNEL_W
        inside = ((kh < bottom - top) & (kw < right - left))[:, None]
        tap_ptr = x_ptr + (kh * stride_xh + kw * stride_xw)
        total += tl.load(tap_ptr + x_offset, mask=mask & inside, other=0.0).to(tl.float32)
    divisor = mean_divisor(top, bottom, height, left, right, width, COUNT_INCLUDE_PAD, DIVISOR_OVERRIDE)
    y = total / divisor[:, None]
    offset = dense_offset(image, pixel, channel, OH * OW, C, CHANNELS_LAST)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def last_window(i, size, out_size, STRIDE: constexpr, PADDING: constexpr, ADAPTIVE: constexpr):
    """The last window along one axis that starts at or before element i."""
    if ADAPTIVE:
        return ((i + 1) * out_size + size - 1) // size - 1
    else:
        return (i + PADDING) // STRIDE


@triton.jit
def avg_pool2d_backward_kernel(
    grad_ptr,
    dx_ptr,
    positions,
    channels,
    C,
    H,
    W,
    OH,
    OW,
    KERNEL_H: constexpr,
    KERNEL_W: constexpr,
    STRIDE_H: constexpr,
    STRIDE_W: constexpr,
    PADDING_H: constexpr,
    PADDING_W: constexpr,
    ADAPTIVE: constexpr,
    COUNT_INCLUDE_PAD: constexpr,
    DIVISOR_OVERRIDE: constexpr,
    WINDOWS_H: constexpr,
    WINDOWS_W: constexpr,
    CHANNELS_LAST: constexpr,
    WIDE: constexpr,
    UNROLL: constexpr,
    BLOCK_POSITIONS: constexpr,
    BLOCK_CHANNELS: constexpr,
):
    """dx = the sum of dY / divisor over the windows that hold x's element."""
    H = widened(H, WIDE)
    W = widened(W, WIDE)
    OH = widened(OH, WIDE)
    OW = widened(OW, WIDE)
    image, pixel, channel, mask = tile_indices(
        H * W, positions, channels, CHANNELS_LAST, WIDE, BLOCK_POSITIONS, BLOCK_CHANNELS
    )
    row = pixel // W
    column = pixel % W
    last_oh = last_window(row, H, OH, STRIDE_H, PADDING_H, ADAPTIVE)
    last_ow = last_window(column, W, OW, STRIDE_W, PADDING_W, ADAPTIVE)
    dx = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    for window in tl.range(0, WINDOWS_H * WINDOWS_W, loop_unroll_factor=UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
        oh = last_oh - window // WINDOWS_W
        ow = last_ow - window % WINDOWS_W
        top, bottom, height = mean_window(oh, H, OH, KERNEL_H, STRIDE_H, PADDING_H, ADAPTIVE)
        left, right, width = mean_window(ow, W, OW, KERNEL_W, STRIDE_W, PADDING_W, ADAPTIVE)
        exists = (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
        holds = exists & (row >= top) & (row < bottom) & (column >= left) & (column < right)
        offset = dense_offset(image, oh * OW + ow, channel, OH * OW, C, CHANNELS_LAST)
        grad = tl.load(grad_ptr + offset, mask=mask & holds[:, None], other=0.0).to(tl.float32)
        divisor = mean_divisor(top, bottom, height, left, right, width, COUNT_INCLUDE_PAD, DIVISOR_OVERRIDE)
        dx += grad / tl.where(holds, divisor, 1.0)[:, None]
    dx_offset = dense_offset(image, pixel, channel, H * W, C, CHANNELS_LAST)
    tl.store(dx_ptr + dx_offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@costs(max_pool2d_forward_kernel)
def max_pool2d_forward_cost(
    x_ptr: torch.Tensor,
    y_ptr: torch.Tensor,
    winner_ptr: torch.Tensor | None,
    index_ptr: torch.Tensor | None,
    KERNEL_H: int,
    KERNEL_W: int,
    **_: Any,
) -> Cost:
    """One comparison a tap; x read once, y, winners and indices written."""
    return Cost(y_ptr.numel() * KERNEL_H * KERNEL_W, size_in_bytes(x_ptr, y_ptr, winner_ptr, index_ptr))


@costs(max_pool2d_backward_kernel)
def max_pool2d_backward_cost(grad_ptr: torch.Tensor, winner_ptr: torch.Tensor, dx_ptr: torch.Tensor, **_: Any) -> Cost:
    """One addition a window; dY and the winners read once, dx written."""
    return Cost(grad_ptr.numel(), size_in_bytes(grad_ptr, winner_ptr, dx_ptr))


@costs(avg_pool2d_forward_kernel)
def avg_pool2d_forward_cost(x_ptr: torch.Tensor, y_ptr: torch.Tensor, KERNEL_H: int, KERNEL_W: int, **_: Any) -> Cost:
    """One addition a tap; x read once, y written."""
    return Cost(y_ptr.numel() * KERNEL_H * KERNEL_W, size_in_bytes(x_ptr, y_ptr))


@costs(avg_pool2d_backward_kernel)
def avg_pool2d_backward_cost(
    grad_ptr: torch.Tensor, dx_ptr: torch.Tensor, WINDOWS_H: int, WINDOWS_W: int, **_: Any
) -> Cost:
    """One addition a window that may hold an element; dY read once, dx written."""
    return Cost(dx_ptr.numel() * WINDOWS_H * WINDOWS_W, size_in_bytes(grad_ptr, dx_ptr))


@lru_cache(maxsize=4096)
def pool_tile(positions: int, channels: int, channels_last: bool, target: Target) -> tuple[int, int, int]:
    """(BLOCK_POSITIONS, BLOCK_CHANNELS, num_warps): long in the contiguous direction, 1,024 elements on a chip.

    Args:
        positions: pixels; of all images where channels_last.
        channels: channels, or planes where not channels_last.
        channels_last: whether neighbouring channels are neighbours in memory; else neighbouring pixels are.
        target: where it runs.
    """
    elements = {"interpreter": MOST_POSITIONS, "cpu": 4096}.get(target.kind, 1024)
    if channels_last:
        block_channels = min(128, elements, power_of_2_at_least(channels))
        return min(elements // block_channels, power_of_2_at_least(positions)), block_channels, 4
    block_positions = min(elements, power_of_2_at_least(positions), 1024)
    return block_positions, min(elements // block_positions, power_of_2_at_least(channels)), 4


def _layout(
    images: int, C: int, area: int, channels_last: bool, target: Target
) -> tuple[tuple[int], tuple[int, int], dict[str, Any]]:
    """The grid over [images, C, area] elements, (positions, channels), and the tile's constants."""
    positions, channels = (images * area, C) if channels_last else (area, images * C)
    block_positions, block_channels, num_warps = pool_tile(positions, channels, channels_last, target)
    grid = (ceil_div(positions, block_positions) * ceil_div(channels, block_channels),)
    constants = {
        "CHANNELS_LAST": channels_last,
        "BLOCK_POSITIONS": block_positions,
        "BLOCK_CHANNELS": block_channels,
        "num_warps": num_warps,
    }
    return grid, (positions, channels), constants


def _unroll(steps: int) -> int:
    """Loads of an unrolled loop are under way at once; a long loop is unrolled in part."""
    return steps if steps <= 16 else 8


def _empty(like: torch.Tensor, size: tuple[int, int], dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*like.shape[:2], *size)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def winner_dtype(taps: int) -> torch.dtype:
    """What the number of one of so many taps is stored in."""
    return torch.int8 if taps < 127 else torch.int32


@lru_cache(maxsize=4096)
def _max_forward_problem(
    shape: tuple[int, int, int, int],
    stride: tuple[int, int, int, int],
    window: Window,
    out_size: tuple[int, int],
    channels_last: bool,
    want_winner: bool,
    want_index: bool,
    target: Target,
) -> Problem:
    N, C, H, W = shape
    grid, extent, constants = _layout(N, C, out_size[0] * out_size[1], channels_last, target)
    return Problem(
        max_pool2d_forward_kernel,
        grid,
        *extent,
        C,
        H,
        W,
        *out_size,
        *stride,
        **window.constants(),
        **window.dilation_constants(),
        WANT_WINNER=want_winner,
        WANT_INDEX=want_index,
        ALWAYS_INSIDE=window.always_inside((H, W), out_size),
        WIDE=window.is_wide((H, W), out_size, stride[2:]),
        UNROLL=_unroll(window.kernel[0] * window.kernel[1]),
        **constants,
    )


def max_pool2d_forward(
    x: torch.Tensor,
    window: Window,
    out_size: tuple[int, int],
    *,
    channels_last: bool,
    want_winner: bool,
    want_index: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The maxima, the number of the tap that won, and its pixel.

    Args:
        x: [N, C, H, W], any strides.
        window: kernel, stride, padding, dilation.
        out_size: (OH, OW).
        channels_last: the layout of the results.
        want_winner: whether to make the winners, for the backward.
        want_index: whether to make the indices.

    Returns:
        y [N, C, OH, OW]; winners, int8 or int32, or None; indices ih W + iw, int64, or None.
    """
    y = _empty(x, out_size, x.dtype, channels_last)
    winner = (
        _empty(x, out_size, winner_dtype(window.kernel[0] * window.kernel[1]), channels_last) if want_winner else None
    )
    index = _empty(x, out_size, torch.int64, channels_last) if want_index else None
    problem = _max_forward_problem(
        x.shape, x.stride(), window, out_size, channels_last, want_winner, want_index, current_target()
    )
    problem.launch(x, y, winner, index)
    return y, winner, index


@lru_cache(maxsize=4096)
def _max_backward_problem(
    out_shape: tuple[int, int, int, int], window: Window, size: tuple[int, int], channels_last: bool, target: Target
) -> Problem:
    N, C, OH, OW = out_shape
    windows = window.overlap(0, size[0], OH), window.overlap(1, size[1], OW)
    grid, extent, constants = _layout(N, C, size[0] * size[1], channels_last, target)
    return Problem(
        max_pool2d_backward_kernel,
        grid,
        *extent,
        C,
        *size,
        OH,
        OW,
        **window.constants(),
        **window.dilation_constants(),
        WINDOWS_H=windows[0],
        WINDOWS_W=windows[1],
        WIDE=window.is_wide(size, (OH, OW)),
        UNROLL=_unroll(windows[0] * windows[1]),
        **constants,
    )


def max_pool2d_backward(
    grad: torch.Tensor, winner: torch.Tensor, window: Window, size: tuple[int, int], *, channels_last: bool
) -> torch.Tensor:
    """dx [N, C, H, W].

    Args:
        grad: dY [N, C, OH, OW], dense in the layout of `winner`.
        winner: what the forward returned.
        window: the forward's.
        size: (H, W).
        channels_last: the forward's.
    """
    dx = _empty(grad, size, grad.dtype, channels_last)
    _max_backward_problem(grad.shape, window, size, channels_last, current_target()).launch(grad, winner, dx)
    return dx


@lru_cache(maxsize=4096)
def _mean_forward_problem(
    shape: tuple[int, int, int, int],
    stride: tuple[int, int, int, int],
    window: Window,
    out_size: tuple[int, int],
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
    target: Target,
) -> Problem:
    N, C, H, W = shape
    grid, extent, constants = _layout(N, C, out_size[0] * out_size[1], channels_last, target)
    return Problem(
        avg_pool2d_forward_kernel,
        grid,
        *extent,
        C,
        H,
        W,
        *out_size,
        *stride,
        **window.constants(),
        ADAPTIVE=window.adaptive,
        COUNT_INCLUDE_PAD=count_include_pad,
        DIVISOR_OVERRIDE=divisor_override,
        WIDE=window.is_wide((H, W), out_size, stride[2:]),
        UNROLL=_unroll(window.kernel[0] * window.kernel[1]),
        **constants,
    )


def avg_pool2d_forward(
    x: torch.Tensor,
    window: Window,
    out_size: tuple[int, int],
    *,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> torch.Tensor:
    """The means y [N, C, OH, OW].

    Args:
        x: [N, C, H, W], any strides.
        window: kernel, stride and padding, or adaptive.
        out_size: (OH, OW).
        channels_last: the layout of y.
        count_include_pad: whether the divisor counts padding.
        divisor_override: the divisor, or 0 for the number of elements.
    """
    y = _empty(x, out_size, x.dtype, channels_last)
    problem = _mean_forward_problem(
        x.shape, x.stride(), window, out_size, channels_last, count_include_pad, divisor_override, current_target()
    )
    problem.launch(x, y)
    return y


@lru_cache(maxsize=4096)
def _mean_backward_problem(
    out_shape: tuple[int, int, int, int],
    window: Window,
    size: tuple[int, int],
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
    target: Target,
) -> Problem:
    N, C, OH, OW = out_shape
    windows = window.overlap(0, size[0], OH), window.overlap(1, size[1], OW)
    grid, extent, constants = _layout(N, C, size[0] * size[1], channels_last, target)
    return Problem(
        avg_pool2d_backward_kernel,
        grid,
        *extent,
        C,
        *size,
        OH,
        OW,
        **window.constants(),
        ADAPTIVE=window.adaptive,
        COUNT_INCLUDE_PAD=count_include_pad,
        DIVISOR_OVERRIDE=divisor_override,
        WINDOWS_H=windows[0],
        WINDOWS_W=windows[1],
        WIDE=window.is_wide(size, (OH, OW)),
        UNROLL=_unroll(windows[0] * windows[1]),
        **constants,
    )


def avg_pool2d_backward(
    grad: torch.Tensor,
    window: Window,
    size: tuple[int, int],
    *,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> torch.Tensor:
    """dx [N, C, H, W].

    Args:
        grad: dY [N, C, OH, OW], dense in the forward's layout.
        size: (H, W).
        window, channels_last, count_include_pad, divisor_override: the forward's.
    """
    dx = _empty(grad, size, grad.dtype, channels_last)
    problem = _mean_backward_problem(
        grad.shape, window, size, channels_last, count_include_pad, divisor_override, current_target()
    )
    problem.launch(grad, dx)
    return dx

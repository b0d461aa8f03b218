"""A program's row of pixels within the kernels of depthwise convolutions, and the taps that meet it."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr


class Row(NamedTuple):
    """A program's row of output pixels, within a kernel.

    Attributes:
        x: pointer to the image where the row of the first tap begins; outside of the image in its padding.
        weight: pointer to the first tap.
        pixel: index of the row's first pixel.
        tap_start, tap_end: the rows of taps that lie inside the image.
        plane_start, plane_end: the planes of taps that do.
        plane_step, row_step: from one plane and row of taps to the next, in elements of x.
        W: columns of an image.
        channel_start, channel_end: the program's channels.
    """

    x: Any
    weight: Any
    pixel: Any
    tap_start: Any
    tap_end: Any
    plane_start: Any
    plane_end: Any
    plane_step: Any
    row_step: Any
    W: Any
    channel_start: Any
    channel_end: Any


class GradientRow(NamedTuple):
    """A program's row of dX, within a kernel.

    Attributes:
        dz: pointer to the image's dZ.
        weight: pointer to the first tap.
        dx: pointer to the row's first pixel.
        plane, row: of the padded image.
        plane_start, plane_end: the planes of taps that reach the row, from the first by WINDOW.tap_step_d.
        tap_start, tap_end: the rows of taps that do.
        P, Q: rows and columns of dZ.
        channel_start, channel_end: the program's channels.
    """

    dz: Any
    weight: Any
    dx: Any
    plane: Any
    row: Any
    plane_start: Any
    plane_end: Any
    tap_start: Any
    tap_end: Any
    P: Any
    Q: Any
    channel_start: Any
    channel_end: Any


@triton.jit
def taps_inside(position, size, TAPS: constexpr, DILATION: constexpr):
    """The taps of a window beginning at `position` that lie in [0, size), as a range."""
    start = tl.maximum(0, (DILATION - 1 - position) // DILATION)
    return start, tl.minimum(TAPS, (size - position + DILATION - 1) // DILATION)


@triton.jit
def rows_inside(position, size, rows, STRIDE: constexpr):
    """The rows of dZ, of so many, whose tap at `position` + row stride lies in [0, size), as a range."""
    start = tl.maximum(0, (STRIDE - 1 - position) // STRIDE)
    return start, tl.minimum(rows, (size - position + STRIDE - 1) // STRIDE)


@triton.jit
def taps_reaching(position, size, TAPS: constexpr, STRIDE: constexpr, DILATION: constexpr, STEP: constexpr):
    """The taps that read a position of the padded image from one of `size` output pixels: a range by STEP."""
    lowest = tl.maximum(0, (position - (size - 1) * STRIDE + DILATION - 1) // DILATION)
    start = lowest + STEP
    for candidate in tl.static_range(STEP):  # pyright: ignore
        reaches = (position - (lowest + candidate) * DILATION) % STRIDE == 0
        start = tl.where(reaches, lowest + candidate, start)
    end = tl.minimum(TAPS, position // DILATION + 1)
    return start, tl.where(start < lowest + STEP, end, 0)


@triton.jit
def row_of_pixels(x_ptr, weight_ptr, row, channels, D, H, W, Z, P, Q, WINDOW: constexpr, TILE: constexpr):
    """The `Row` of an index into [N, Z, P], and of the program's `channels`."""
    C: constexpr = TILE.channels
    plane = row // P
    h = (row - plane * P) * WINDOW.stride_h - WINDOW.padding_h
    tap_start, tap_end = taps_inside(h, H, WINDOW.R, WINDOW.dilation_h)
    plane_start = tl.zeros_like(h)
    plane_end = plane_start + 1
    if WINDOW.volume:
        image = plane // Z
        d = (plane - image * Z) * WINDOW.stride_d - WINDOW.padding_d
        plane_start, plane_end = taps_inside(d, D, WINDOW.T, WINDOW.dilation_d)
        plane = image * D + d
    x = x_ptr + (plane.to(tl.int64) * H + h) * W * C
    plane_step = WINDOW.dilation_d * H * W * C
    row_step = WINDOW.dilation_h * W * C
    start = tl.program_id(1) * channels
    end = min(start + channels, C)
    taps = tap_start, tap_end, plane_start, plane_end
    return Row(x, weight_ptr, row * Q, taps[0], taps[1], taps[2], taps[3], plane_step, row_step, W, start, end)


@triton.jit
def gradient_row(dz_ptr, weight_ptr, dx_ptr, row, channels, D, H, W, Z, P, Q, WINDOW: constexpr, TILE: constexpr):
    """The `GradientRow` of an index into [N, D, H], and of the program's `channels`."""
    C: constexpr = TILE.channels
    image = row // H
    h = row - image * H + WINDOW.padding_h
    start, end = taps_reaching(h, P, WINDOW.R, WINDOW.stride_h, WINDOW.dilation_h, WINDOW.tap_step_h)
    d = tl.zeros_like(h)
    plane_start = d
    plane_end = d + 1
    planes = d + 1
    if WINDOW.volume:
        planes = d + Z
        d = image % D + WINDOW.padding_d
        image = image // D
        plane_start, plane_end = taps_reaching(d, Z, WINDOW.T, WINDOW.stride_d, WINDOW.dilation_d, WINDOW.tap_step_d)
    dz = dz_ptr + image.to(tl.int64) * planes * P * Q * C
    dx = dx_ptr + row.to(tl.int64) * W * C
    first = tl.program_id(1) * channels
    last = min(first + channels, C)
    return GradientRow(dz, weight_ptr, dx, d, h, plane_start, plane_end, start, end, P, Q, first, last)

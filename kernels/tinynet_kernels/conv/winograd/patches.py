"""The pixels of patches and of tiles of output pixels: where they lie, and which of them there are."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.window import inside, pixel_position


class Squares(NamedTuple):
    """Squares of pixels, one for each of a program's tiles, within a kernel.

    Attributes:
        base: elements before the first channel of the first tile's image, int64.
        offset: of each square's first pixel from there.
        h, w: its row and column; outside of the image in its padding.
        in_grid: which tiles there are.
        H, W, C: rows, columns and channels of an image.
    """

    base: Any
    offset: Any
    h: Any
    w: Any
    in_grid: Any
    H: Any
    W: Any
    C: Any


class Grid(NamedTuple):
    """The tiles that cover the results, within a kernel; see `tiles.TileGrid`."""

    tiles: Any
    rows: Any
    columns: Any


@triton.jit
def grid_of(N, P, Q, M: constexpr):
    """The `Grid` of N images of P x Q pixels, in tiles of M x M."""
    rows = tl.cdiv(P, M)
    columns = tl.cdiv(Q, M)
    return Grid(N * rows * columns, rows, columns)


@triton.jit
def squares_of(channel, start, end, grid, H, W, C, padding_h, padding_w, STEP: constexpr, COUNT: constexpr):
    """The `Squares` that belong to COUNT tiles of the `Grid` from `start` on, as far as they come before `end`.

    They begin STEP pixels apart, the first `padding_h` rows above and `padding_w` columns before its image.
    """
    tile = tl.arange(0, COUNT)
    first_image = start // (grid.rows * grid.columns)
    image, row, column = pixel_position(start + tile, grid.rows, grid.columns)
    h = row * STEP - padding_h
    w = column * STEP - padding_w
    base = first_image.to(tl.int64) * H * W * C + channel
    return Squares(base, (((image - first_image) * H + h) * W + w) * C, h, w, tile < end - start, H, W, C)


@triton.jit
def pixel_of(squares, i, j):
    """Which of the pixels (i, j) of the squares lie in their image."""
    return squares.in_grid & inside(squares.h + i, squares.H) & inside(squares.w + j, squares.W)


@triton.jit
def load_squares(ptr, squares, first, channels, COUNT: constexpr, SIDE: constexpr, EVEN: constexpr):
    """Their SIDE x SIDE pixels in row order and fp32, a tuple of [tiles, COUNT]: zeros outside of the image.

    COUNT channels from `first` on; EVEN says that all of them are below `channels`, else those that are not are zeros.
    """
    channel = tl.arange(0, COUNT)
    pixels = ()
    for i in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
        for j in tl.static_range(SIDE):  # pyright: ignore[reportGeneralTypeIssues]
            mask = pixel_of(squares, i, j)[:, None]
            if not EVEN:
                mask = mask & (channel < channels - first)[None, :]
            pixel = ptr + squares.base + first + (i * squares.W + j) * squares.C
            offset = squares.offset[:, None] + channel[None, :]
            pixels += (tl.load(pixel + offset, mask=mask, other=0.0).to(tl.float32),)
    return pixels

"""What convolution kernels share: positions of output pixels, which taps meet the image, and the epilogue.

P and Q are the output's rows and columns; a box is a tile of output pixels with a size along each of N, P and Q.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionSpec
from tinynet_kernels.offsets import exceed_int32


@triton.jit
def pixel_position(pixel, P, Q):
    """(image, row, column) of flat indices into [N, P, Q]."""
    row = pixel // Q
    return row // P, row % P, pixel % Q


@triton.jit
def output_position(pixel, P, Q, POOL: constexpr):
    """(image, row, column) of output pixels: in memory order or, for POOL, the four of each 2 x 2 window in turn."""
    if POOL:
        tap = pixel % 4
        image, p, q = pixel_position(pixel // 4, P // 2, Q // 2)
        return image, 2 * p + tap // 2, 2 * q + tap % 2
    else:
        return pixel_position(pixel, P, Q)


@triton.jit
def first_image_of(pixel, P, Q, POOL: constexpr):
    """The image of one output pixel, in the order of `output_position`."""
    if POOL:
        return pixel // (4 * (P // 2) * (Q // 2))
    else:
        return pixel // (P * Q)


@triton.jit
def largest_of_window(y):
    """The largest of y [ROWS, TAPS, COLUMNS] along the taps, and which it was: NaN before numbers, of NaN the last.

    Of equal numbers the first wins; all as in torch.nn.functional.max_pool2d.
    """
    tap = tl.broadcast_to(tl.arange(0, y.shape[1])[None, :, None], y.shape)
    largest = tl.max(y, axis=1)
    claim = tl.where(y == tl.expand_dims(largest, 1), tap, y.shape[1])  # pyright: ignore
    winner = tl.min(tl.where(y != y, -1 - tap, claim), axis=1)  # the last NaN is the lowest
    is_nan = winner < 0  # pyright: ignore
    return tl.where(is_nan, float("nan"), largest), tl.where(is_nan, -1 - winner, winner)  # pyright: ignore


@triton.jit
def inside(position, size):
    """Whether positions lie in [0, size)."""
    return (position >= 0) & (position < size)


@triton.jit
def tap_bits(
    row,
    column,
    H,
    W,
    R: constexpr,
    S: constexpr,
    DILATION_H: constexpr,
    DILATION_W: constexpr,
):
    """Bit r S + s of a lane: whether tap (r, s) of the window that begins at (row, column) lies in the image."""
    bits = tl.zeros(row.shape, tl.int32)
    for r in tl.static_range(R):  # pyright: ignore
        for s in tl.static_range(S):  # pyright: ignore
            valid = inside(row + r * DILATION_H, H) & inside(column + s * DILATION_W, W)
            bits |= valid.to(tl.int32) << (r * S + s)
    return bits


@triton.jit
def line_bits(position, size, TAPS: constexpr, DILATION: constexpr):
    """Bit t of a lane: whether tap t along one dimension, for a window that begins at `position`, is in the image."""
    bits = tl.zeros(position.shape, tl.int32)
    for t in tl.static_range(TAPS):  # pyright: ignore
        bits |= inside(position + t * DILATION, size).to(tl.int32) << t
    return bits


@triton.jit
def next_box(n, p, q, P, Q, BOX_N: constexpr, BOX_P: constexpr, BOX_Q: constexpr):
    """The first (image, row, column) of the box after the one that begins at (n, p, q)."""
    q += BOX_Q
    row_ends = q >= Q
    q = tl.where(row_ends, 0, q)
    p = tl.where(row_ends, p + BOX_P, p)
    image_ends = p >= P
    return tl.where(image_ends, n + BOX_N, n), tl.where(image_ends, 0, p), q


@triton.jit
def store_activated(
    z,
    bias_ptr,
    y_ptr,
    z_ptr,
    winner_ptr,
    pixel_start,
    pixels,
    column_start,
    columns,
    first_channel,
    K,
    ACTIVATION: constexpr,
    HAS_BIAS: constexpr,
    SAVE_INPUT: constexpr,
    POOL: constexpr,
    BLOCK_PIXELS: constexpr,
    BLOCK_COLUMNS: constexpr,
):
    """The epilogue: y = act(z + b), and z + b itself for SAVE_INPUT, for a [BLOCK_PIXELS, BLOCK_COLUMNS] tile.

    Columns are output channels of the group that begins at `first_channel` of K. For POOL four rows make one window:
    stored are the largest y, z + b there, and which tap it was, 2 row + column, unless winner_ptr is None.
    """
    column = tl.arange(0, BLOCK_COLUMNS)
    column_mask = column < columns - column_start
    if HAS_BIAS:
        bias = tl.load(bias_ptr + first_channel + column_start + column, mask=column_mask, other=0.0)
        z += bias.to(tl.float32)[None, :]
    y = activate(z, ACTIVATION)
    WINDOW: constexpr = 4 if POOL else 1  # pyright: ignore
    ROWS: constexpr = BLOCK_PIXELS // WINDOW
    if POOL:
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)  # rounded first, as where pooling is a layer of its own
        shape: constexpr = (ROWS, WINDOW, BLOCK_COLUMNS)  # pyright: ignore
        y, winner = largest_of_window(tl.reshape(y, shape))
        if SAVE_INPUT:
            wins = tl.arange(0, WINDOW)[None, :, None] == winner[:, None, :]
            z = tl.sum(tl.where(wins, tl.reshape(z, shape), 0.0), axis=1)
    row = tl.arange(0, ROWS)
    row_start = pixel_start // WINDOW
    mask = (row < pixels // WINDOW - row_start)[:, None] & column_mask[None, :]
    base = row_start.to(tl.int64) * K + first_channel + column_start
    offset = row[:, None] * K + column[None, :]
    if SAVE_INPUT:
        tl.store(z_ptr + base + offset, z.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + base + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
    if winner_ptr is not None:  # for POOL alone
        tl.store(winner_ptr + base + offset, winner.to(tl.int8), mask=mask)


def window_constants(spec: ConvolutionSpec, kernel_size: tuple[int, int]) -> dict[str, int]:
    """The kernels' constexprs that say how the window slides."""
    return {
        "R": kernel_size[0],
        "S": kernel_size[1],
        "STRIDE_H": spec.stride[0],
        "STRIDE_W": spec.stride[1],
        "PADDING_H": spec.padding[0],
        "PADDING_W": spec.padding[1],
        "DILATION_H": spec.dilation[0],
        "DILATION_W": spec.dilation[1],
    }


def is_wide_convolution(
    pixels: int, image_pixels: int, block_pixels: int, image_elements: int, *offsets: tuple[tuple[int, int], ...]
) -> bool:
    """Whether a tile of output pixels reaches further over its input than int32 offsets do, or they count its pixels.

    Args:
        pixels: of all images.
        image_pixels: of one image.
        block_pixels: of one program.
        image_elements: values of one image of the tensor that is read.
        offsets: others in the tile; see `exceed_int32`.
    """
    images = (block_pixels - 1) // image_pixels + 2
    return exceed_int32(((pixels + block_pixels, 1),), ((images + 1, image_elements),), *offsets)


def output_pixels(
    shape: tuple[int, ...], spec: ConvolutionSpec, kernel_size: tuple[int, int], pool: bool
) -> tuple[int, ...]:
    """(how many output pixels to make, P, Q) of images [N, C, H, W]: all, or those that 2 x 2 windows hold."""
    P, Q = spec.output_size((shape[2], shape[3]), kernel_size)
    return shape[0] * ((P // 2) * (Q // 2) * 4 if pool else P * Q), P, Q

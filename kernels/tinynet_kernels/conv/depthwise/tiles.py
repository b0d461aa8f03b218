"""One tile for each depthwise convolution by rows, by rule; see `tinynet_kernels.tiles` for what a rule is."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionWindow
from tinynet_kernels.offsets import exceed_int32
from tinynet_kernels.tiles import Target, ceil_div, power_of_2_at_least

LARGEST_BLOCK = 8  # pixels whose sums stay in vector registers, beside a row of weights
_MOST_TAPS = 32  # of a row
_UNROLLED_WEIGHTS = 9 * 16  # that stay in vector registers
_MANY_SUMS = 5  # of one row of taps: so many products don't wait for each other
_LINE = 64  # bytes of a cache line
_PROGRAMS_PER_PROCESSOR = 4
_ROWS_PER_SHARE = 8  # of pixels in one partial sum of a weight gradient: neighbors see the same rows of x
_PIXELS_PER_SHARE = 256


class RowTile(NamedTuple):
    """The tile of a program that walks along rows of pixels in blocks.

    Attributes:
        channels: of an image.
        block_channels: channels of a block, a power of two.
        tail: channels of the last block where they are fewer, else 0.
        tail_block: the power of two that holds them.
        unrolled: whether all rows of taps are unrolled where they lie inside the image.
        block_q: pixels of a block.
        last_q: pixels of a row's last block.
        blocks: how many a row has; 3 stands for more, too.
        columns: more than a block sees of the other image, whose columns [left, right) the blocks at the ends see.
        left: of the columns that a row's first block sees, the first that exists.
        right: the end of those that a row's last block sees.
        masked: whether blocks at any place may see columns outside of the image, so that all ask.
    """

    channels: int
    block_channels: int
    tail: int
    tail_block: int
    unrolled: bool
    block_q: int = 0
    last_q: int = 0
    blocks: int = 0
    columns: int = 0
    left: int = 0
    right: int = 0
    masked: bool = False


class Division(NamedTuple):
    """How a row is divided among programs: into segments of `blocks` blocks, and parts of `channels` channels."""

    segments: int
    blocks: int
    parts: int
    channels: int


def computes_rows(shape: ConvolutionShape, target: Target) -> bool:
    """Whether programs compute rows of pixels: on a CPU, where their loops cost nothing, for a multiplier of 1.

    Offsets within an image are int32 there, and so are indices of pixels. A row of taps is unrolled for every pixel of
    a block, which must not take the compiler long.
    """
    pixels = shape.N * max(shape.D * shape.H * shape.W, shape.Z * shape.P * shape.Q)
    fits = not exceed_int32(((2, 2 * shape.image_elements),), ((2, 2 * pixels),))
    return target.kind == "cpu" and shape.C == shape.K == shape.groups > 1 and shape.S <= _MOST_TAPS and fits


def forward_tile(shape: ConvolutionShape, window: ConvolutionWindow, dtype: torch.dtype) -> RowTile:
    """The tile for rows of output pixels, whose windows see columns of x."""
    stride, padding = window.stride_w, window.padding_w
    span = (window.S - 1) * window.dilation_w + 1
    block_q, last_q, blocks = blocks_of(shape.Q)
    columns = (block_q - 1) * stride + span
    right = shape.W - ((shape.Q - last_q) * stride - padding)
    before = ceil_div(padding, stride)  # pixels whose windows begin before the image
    behind = ceil_div((last_q - 1) * stride + span - right, stride)
    return _row_tile(shape, dtype)._replace(
        block_q=block_q,
        last_q=last_q,
        blocks=min(blocks, 3),
        columns=columns,
        left=max(0, padding),
        right=min(columns, right),
        masked=blocks > 1 and (before > block_q or behind > last_q),
    )


def _row_tile(shape: ConvolutionShape, dtype: torch.dtype) -> RowTile:
    block_channels = _LINE // dtype.itemsize
    unrolled = shape.T == 1 and shape.taps * block_channels <= _UNROLLED_WEIGHTS
    return _with_channels(RowTile(shape.C, 0, 0, 0, unrolled), block_channels)


def _with_channels(tile: RowTile, block_channels: int) -> RowTile:
    block_channels = min(block_channels, max(16, power_of_2_at_least(tile.channels)))
    tail = tile.channels % block_channels
    return tile._replace(block_channels=block_channels, tail=tail, tail_block=max(16, power_of_2_at_least(tail)))


def blocks_of(pixels: int, multiple: int = 1) -> tuple[int, int, int]:
    """(pixels of a block, of the last one, blocks) of a row, alike if possible; all but the last a `multiple`."""
    blocks = ceil_div(pixels, LARGEST_BLOCK // multiple * multiple)
    block = ceil_div(ceil_div(pixels, blocks), multiple) * multiple
    blocks = ceil_div(pixels, block)
    return block, pixels - (blocks - 1) * block, blocks


def input_gradient_tile(shape: ConvolutionShape, window: ConvolutionWindow, dtype: torch.dtype) -> RowTile:
    """The tile for rows of input pixels, which see columns of dZ: the first pixel sees column 0 through tap padding."""
    stride, padding = window.stride_w, window.padding_w
    reach = (window.S - 1) * window.dilation_w
    block_q, last_q, blocks = blocks_of(shape.W, stride)
    first = (padding - reach) // stride  # columns before and behind that of its first pixel that a block may see
    last = (block_q - 1 + padding) // stride
    start = (blocks - 1) * block_q // stride
    tile = _row_tile(shape, dtype)
    return tile._replace(
        block_q=block_q,
        last_q=last_q,
        blocks=min(blocks, 3),
        columns=max(-first, last) + 1,
        left=0,
        right=shape.Q - start,
        masked=blocks > 1 and (block_q // stride + first < 0 or start - block_q // stride + last >= shape.Q),
        unrolled=tile.unrolled and window.stride_h == 1,
    )


def weight_gradient_tile(shape: ConvolutionShape, window: ConvolutionWindow, dtype: torch.dtype) -> RowTile:
    """The tile for rows of dZ: that of the forward, with two vectors of sums where a row of taps has few to overlap."""
    tile = forward_tile(shape, window, dtype)
    return _with_channels(tile, 32) if window.S < _MANY_SUMS else tile


def gradient_shares(planes: int, rows: int, columns: int) -> tuple[int, int]:
    """(planes, rows of each) of the pixels that a program of a weight gradient sums over."""
    per_share = max(_ROWS_PER_SHARE, ceil_div(_PIXELS_PER_SHARE, columns))
    if per_share < rows:
        return 1, per_share
    return max(1, min(planes, _PIXELS_PER_SHARE // (rows * columns))), rows


def divide_rows(rows: int, columns: int, tile: RowTile, target: Target) -> Division:
    """How to divide rows of pixels so that all threads have programs to share."""
    blocks = ceil_div(columns, tile.block_q)
    wanted = ceil_div(_PROGRAMS_PER_PROCESSOR * target.processors, rows)
    per_part = ceil_div(ceil_div(tile.channels, tile.block_channels), wanted) * tile.block_channels
    parts = ceil_div(tile.channels, per_part)
    per_segment = ceil_div(blocks, ceil_div(wanted, parts))
    return Division(ceil_div(blocks, per_segment), per_segment, parts, min(per_part, tile.channels))

"""Statistics of a depthwise convolution's result, for the normalization that follows."""

from __future__ import annotations

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr


@triton.jit
def store_row_statistics(y_ptr, partial_ptr, row, first, last, TILE: constexpr):
    """Count, mean and sum of squared deviations of y's pixels [first, last), as `window.store_statistics` does."""
    C: constexpr = TILE.channels
    BLOCK: constexpr = TILE.block_channels
    column = tl.arange(0, BLOCK)
    count = (last - first).to(tl.float32)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * 3 * C
    for c in range(row.channel_start, row.channel_end, BLOCK):
        mask = column < row.channel_end - c
        y = y_ptr + row.pixel.to(tl.int64) * C + c + column
        total = tl.zeros((BLOCK,), tl.float32)
        for pixel in range(first, last):
            total += tl.load(y + pixel * C, mask=mask, other=0.0).to(tl.float32)
        mean = total / count
        squares = tl.zeros((BLOCK,), tl.float32)
        for pixel_again in range(first, last):
            deviation = tl.load(y + pixel_again * C, mask=mask, other=0.0).to(tl.float32) - mean
            squares += deviation * deviation
        tl.store(partial + c + column, tl.zeros_like(mean) + count, mask=mask)
        tl.store(partial + C + c + column, mean, mask=mask)
        tl.store(partial + 2 * C + c + column, squares, mask=mask)

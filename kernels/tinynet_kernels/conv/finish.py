"""The second stage of a forward whose reduction is split: the sum of the parts, and the epilogue.

    z = parts[0] + parts[1] + ..., in that order; then as where one program has the whole sum

A convolution of one image of 7 x 7 pixels with 512 channels has eight tiles of 72 steps each, which leave nearly all of
a GPU idle: with nine parts there are 72 programs of eight steps. Parts are in the order of `window.output_position`, so
that four rows are a window to be pooled. Tiling: a few pixels by a few channels per program; a split forward has few
outputs, which still fill a GPU so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.tiles import PixelTile
from tinynet_kernels.conv.window import store_activated, with_bias
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.reduction import sum_of_parts
from tinynet_kernels.tiles import Target, ceil_div, power_of_2_at_least


class Epilogue(NamedTuple):
    """What the second stage is compiled for; see `spec.ConvolutionWindow`."""

    pool: bool
    epsilon: float


@triton.jit
def finish_convolution_kernel(
    parts_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    z_ptr,
    argmax_ptr,
    partial_ptr,
    parts,
    elements,
    pixels,
    K,
    EPILOGUE: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """The epilogue of `forward.convolution_forward_kernel` from fp32 parts [parts, pixels, K] of x * W."""
    column_tiles = tl.cdiv(K, TILE.block_channels)
    pixel_start = tl.program_id(0) // column_tiles * TILE.block_pixels
    channel = tl.program_id(0) % column_tiles * TILE.block_channels
    row = tl.arange(0, TILE.block_pixels)
    column = tl.arange(0, TILE.block_channels)
    mask = (row < pixels - pixel_start)[:, None] & (column < K - channel)[None, :]
    first = parts_ptr + pixel_start.to(tl.int64) * K + channel
    z = sum_of_parts(first, parts, elements, row[:, None] * K + column[None, :], mask)
    z = with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, channel, K - channel, EPILOGUE)
    store_activated(
        z, y_ptr, z_ptr, argmax_ptr, partial_ptr, pixel_start, pixels, channel, K - channel, K, ACTIVATION, EPILOGUE
    )


@costs(finish_convolution_kernel)
def finish_convolution_cost(parts_ptr: torch.Tensor, **others: Any) -> Cost:
    """The parts and b read, y (and z, and argmax) written."""
    return Cost(parts_ptr.numel(), size_in_bytes(parts_ptr, *others.values()))


def finish_convolution(
    parts: int, pixels: int, channels: int, activation: Activation, pool: bool, epsilon: float, target: Target
) -> tuple[Problem, int]:
    """The launch, and how many tiles of pixels it has.

    Args:
        parts: into how many the reduction is split.
        pixels: of all images of the output, before they are pooled.
        channels: of the output, of all groups.
        activation, pool, epsilon: of the epilogue.
        target: where it runs.
    """
    block_channels = min(32, power_of_2_at_least(channels))
    channel_tiles, block_pixels = ceil_div(channels, block_channels), 16
    while block_pixels > 4 and 2 * ceil_div(pixels, block_pixels) * channel_tiles < target.processors:
        block_pixels //= 2  # 4 pixels are of one window
    tile = PixelTile(block_pixels, block_channels)
    tiles = ceil_div(pixels, block_pixels)
    problem = Problem(
        finish_convolution_kernel,
        (tiles * channel_tiles,),
        *(parts, pixels * channels, pixels, channels),
        EPILOGUE=Epilogue(pool, epsilon),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
    )
    return problem, tiles

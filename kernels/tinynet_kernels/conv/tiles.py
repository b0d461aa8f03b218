"""One tile for each convolution, by rule; see `tinynet_kernels.tiles` for what a rule is."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from tinynet_kernels.conv.spec import ConvolutionShape
from tinynet_kernels.tiles import (
    GPU_TILES_16_BIT,
    GPU_TILES_32_BIT,
    LIGHT_ACTIVATIONS,
    GemmTile,
    Target,
    ceil_div,
    fit_stages,
    gemm_tile,
    keeps_operands_in_registers,
    power_of_2_at_least,
    split_count,
    with_more_rows,
)

FEW_CHANNELS = 16  # below this a tap's channels are too thin a step for a matrix instruction
_CACHED_BYTES = 512 << 10  # half of a small second-level cache: the other half is for the tiles themselves
_DEEPEST_CPU_STEP = 256  # channels of one step of the reduction
_MANY_COLUMNS = 512  # of one tile that holds several taps: its sums stay in the second-level cache


class ConvolutionWeightTile(NamedTuple):
    """The tile of one program of a convolution's weight gradient.

    Attributes:
        block_rows: output channels.
        block_columns: input channels of one tap or, where `flat`, (tap, channel) pairs.
        box_n, box_p, box_q: images, rows and columns of output pixels in one step of the reduction, powers of two.
        flat: whether a tile's columns run over all taps.
        taps: how many taps' channels stand side by side in a tile; above one only for `consecutive`, not `flat`, and
            where a tap's part of the columns divides the input channels.
        consecutive: whether a step takes as many consecutive pixels instead of a box, across rows and images.
        num_warps: warps of a program.
        num_stages: stages of its pipeline.
    """

    block_rows: int
    block_columns: int
    box_n: int
    box_p: int
    box_q: int
    flat: bool
    taps: int
    consecutive: bool
    num_warps: int
    num_stages: int


class PixelTile(NamedTuple):
    """The tile of a kernel without a matrix product: pixels and channels of its result.

    `unroll`: rows of taps that are added at once.
    """

    block_pixels: int
    block_channels: int
    unroll: int = 1


class BoxTile(NamedTuple):
    """The tile of a depthwise weight gradient: (images, rows, columns) of output pixels in one step, and channels."""

    box_n: int
    box_p: int
    box_q: int
    block_channels: int


def convolution_precision(dtype: torch.dtype, target: Target) -> str:
    """As `tiles.matmul_precision`, of convolutions, by `torch.backends.cudnn.conv.fp32_precision`."""
    if dtype is not torch.float32 or target.kind != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "tf32x3"  # pyright: ignore


@lru_cache(maxsize=4096)
def convolution_tile(
    pixels: int,
    channels_out: int,
    channels_in: int,
    dtype: torch.dtype,
    precision: str,
    target: Target,
    is_gradient: bool = False,
    pooled: str | None = None,
) -> GemmTile:
    """The tile for a convolution, or its data gradient: [pixels, channels_in] x [channels_in, channels_out].

    A step of the reduction is one tap of block_k channels. On a GPU block_k should divide the channels: their largest
    power of two is taken where it is worth a step, else the last step of each tap is masked.

    Args:
        pixels: of all images of the output.
        channels_out: columns of the output, in one group.
        channels_in: reduced over, in one group.
        dtype: of the operands.
        precision: of their products; see `convolution_precision`.
        target: where it runs.
        is_gradient: whether it is the data gradient, whose addresses take more registers.
        pooled: the activation before a fused pooling, whose epilogue takes more registers; None without.
    """
    tile = gemm_tile(pixels, channels_out, channels_in, dtype, target)
    if is_gradient and tile == fit_stages(GPU_TILES_16_BIT[0], dtype, target) and not _keeps_sums_apart(target):
        tile = fit_stages(GPU_TILES_16_BIT[1], dtype, target)
    if pooled is not None and target.kind in ("cuda", "hip"):
        tiles = GPU_TILES_32_BIT if dtype is torch.float32 else GPU_TILES_16_BIT[1:]
        largest = fit_stages(tiles[0 if pooled in LIGHT_ACTIVATIONS else -1], dtype, target)
        if tile.block_m * tile.block_n > largest.block_m * largest.block_n:
            tile = largest
    unaligned = channels_in % 16 != 0  # loads are one value each and fill registers too
    if target.kind in ("cuda", "hip") and (unaligned or keeps_operands_in_registers(precision, target)):
        tile = GemmTile(64, 64, 16 if unaligned and is_gradient else 32, 8, 2)
    block_n = min(tile.block_n, max(16, power_of_2_at_least(channels_out)))
    if target.kind == "cpu":
        return _of_long_products(tile._replace(block_n=block_n), pixels, channels_out, channels_in, target)
    divisor = min(tile.block_k, channels_in & -channels_in)
    if divisor < (16 if dtype is torch.float32 else 32):
        divisor = min(tile.block_k, max(16, power_of_2_at_least(channels_in)))
    return tile._replace(block_n=block_n, block_k=divisor)


def _of_long_products(tile: GemmTile, pixels: int, channels_out: int, channels_in: int, target: Target) -> GemmTile:
    """The tile on a CPU, where a masked step takes no longer than its channels."""
    tile = with_more_rows(tile, pixels, channels_out, target)
    block_n = tile.block_n
    while block_n > 32 and ceil_div(pixels, tile.block_m) * ceil_div(channels_out, block_n) < target.processors:
        block_n //= 2
    return tile._replace(block_n=block_n, block_k=min(_DEEPEST_CPU_STEP, max(16, power_of_2_at_least(channels_in))))


@lru_cache(maxsize=4096)
def convolution_few_channels_tile(
    pixels: int, channels_out: int, reduction: int, dtype: torch.dtype, target: Target
) -> GemmTile:
    """The tile for a convolution whose reduction runs over all taps of a few channels."""
    if target.kind in ("cpu", "interpreter"):
        return gemm_tile(pixels, channels_out, reduction, dtype, target)
    block_n = min(64, max(16, power_of_2_at_least(channels_out)))
    return GemmTile(128, block_n, 32 if dtype.itemsize == 2 else 16, 8, 2)


@lru_cache(maxsize=4096)
def convolution_weight_tile(
    shape: ConvolutionShape, volume: bool, dtype: torch.dtype, precision: str, target: Target
) -> ConvolutionWeightTile:
    """The tile for a convolution's weight gradient, a product over all output pixels.

    Args:
        shape: of the convolution.
        volume: whether images have a depth, whose planes a step takes one by one.
        dtype: of the operands.
        precision: of their products; see `convolution_precision`.
        target: where it runs.
    """
    channels_in, channels_out, taps = shape.group_inputs, shape.group_outputs, shape.taps
    flat = channels_in < FEW_CHANNELS
    columns = channels_in * taps if flat else channels_in
    tile = gemm_tile(channels_out, columns, shape.pixels(pool=False), dtype, target)
    if target.kind in ("cuda", "hip"):
        # Few tiles are no reason for small ones: the reduction is split until the chip is full.
        small = keeps_operands_in_registers(precision, target)
        rows = 64 if small or flat or channels_out <= 64 else 128
        width = min(64 if small or flat else 128, max(16, power_of_2_at_least(columns)))
        warps = 8 if flat or (rows == 128 and width == 128) else 4
        unaligned = not flat and (channels_in % 16 or channels_out % 16)  # loads are one value each and fill registers
        depth = 32 if dtype is torch.float32 or unaligned else 64
        tile = fit_stages(GemmTile(rows, width, depth, warps, 3), dtype, target)
    consecutive = target.kind == "cpu"
    if consecutive and dtype is torch.float32 and not flat and min(channels_out, columns) >= 256:
        tile = tile._replace(block_m=256, block_n=256)  # dZ, which is transposed, is packed for many columns
    box = (1, 1, tile.block_k) if consecutive else _box(tile.block_k, (1 if volume else shape.N, shape.P, shape.Q))
    width, taps_per_tile = tile.block_n, 1
    if consecutive and dtype is not torch.float32 and not flat and channels_in % width == 0 and width >= 32:
        # dZ in halves is packed before each product, x too: many taps share the packed dZ.
        taps_per_tile = min(power_of_2_at_least(taps), max(1, _MANY_COLUMNS // width))
        width *= taps_per_tile
    options = consecutive, tile.num_warps, tile.num_stages
    return ConvolutionWeightTile(tile.block_m, width, *box, flat, taps_per_tile, *options)


@lru_cache(maxsize=4096)
def convolution_weight_splits(tiles: int, boxes: int, box_bytes: int, target: Target) -> int:
    """How many ways to split the reduction of a convolution's weight gradient.

    On a CPU the programs of one split follow each other: they find the split's pixels in the second-level cache.

    Args:
        tiles: output tiles, that is programs of one split.
        boxes: steps of the reduction without a split.
        box_bytes: what all tiles together read in one step.
        target: where it runs.
    """
    splits = split_count(tiles, boxes, target)
    if target.kind == "cpu" and tiles > 1:
        return max(splits, min(boxes * box_bytes // _CACHED_BYTES, boxes // 8))
    return splits


def _keeps_sums_apart(target: Target) -> bool:
    """Whether a warpgroup shares a product's sums (sm_90) or holds them in a memory of their own (sm_100)."""
    return target.architecture in (90, 100, 103)


def _box(size: int, output: tuple[int, int, int]) -> tuple[int, int, int]:
    """The box of `size` pixels that covers `output` in the fewest steps; among equals the one with longest rows."""
    boxes = []
    width = size
    while width:
        height = size // width
        while height:
            box = (size // (width * height), height, width)
            steps = ceil_div(output[0], box[0]) * ceil_div(output[1], box[1]) * ceil_div(output[2], box[2])
            boxes.append((steps, box))
            height //= 2
        width //= 2
    return min(boxes, key=lambda entry: entry[0])[1]


@lru_cache(maxsize=4096)
def depthwise_box(output: tuple[int, int, int], target: Target) -> tuple[int, int, int]:
    """(images, rows, columns) of output pixels in one step of a depthwise weight gradient."""
    return _box(1024 if target.kind == "interpreter" else 32, output)

"""By rule: where Winograd's algorithm is faster than the definition, with tiles of which side, and a program's share.

It is used for planes on the CPU engine; 16-bit values are widened to fp32 first. On a GPU the accumulators of all
positions of a patch don't fit the registers of a program.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Sizes
from tinynet_kernels.offsets import exceed_int32
from tinynet_kernels.tiles import Target, ceil_div, power_of_2_at_least

_FEWEST_CHANNELS = 16  # of a group, in and out: the depth and width of the smallest product
_PRODUCT_COST = {2: 1.4, 4: 1.6}  # by m, of a position of a patch, in products of the definition: these are smaller
_TRANSFORM_COST = 17  # of a position of a patch and a channel, in such products
_TILES_AT_ONCE = 16  # fewer take as long
_FEWEST_TILES = 16  # of 4 x 4: fewer don't fill a product's rows
_OWN_FILTER_TILES = 8  # tiles of rows that share a column's filters: with more, one kernel transforms them for all
_LONGEST_SUM = 2048  # pixels that a weight gradient adds one after the other: the error grows with their number


class _Costs(NamedTuple):
    """What depends on which of a convolution's three kernels it is, for each pair of channels.

    Attributes:
        product: of the definition, relative to the forward's.
        packing: of bringing a weight, or its gradient, into order, in products.
        filters: by m, of transforming a position of a filter's patch, in products.
        thin: of a product of a position, divided by both numbers of channels: thin ones fill no vector.
    """

    product: float
    packing: float
    filters: dict[int, float]
    thin: float


_FORWARD = _Costs(1.0, 20, {2: 25, 4: 15}, 450)
_INPUT_GRADIENT = _Costs(1.4, 25, {2: 21, 4: 12}, 450)
_WEIGHT_GRADIENT = _Costs(1.0, 90, {2: 28, 4: 21}, 0)


class WinogradTile(NamedTuple):
    """What one program computes.

    Attributes:
        m: side of a tile of output pixels.
        block_tiles: tiles; of a weight gradient those of one step of the reduction.
        block_outputs: output channels.
        block_inputs: input channels; of all but the weight gradient those of one step of the reduction.
    """

    m: int
    block_tiles: int
    block_outputs: int
    block_inputs: int


class TileGrid(NamedTuple):
    """The tiles of m x m pixels that cover the planes of a result: of all images, and rows and columns of one."""

    tiles: int
    rows: int
    columns: int

    @staticmethod
    def of(shape: ConvolutionShape, m: int) -> TileGrid:
        """Those that cover y of `shape`."""
        rows, columns = ceil_div(shape.P, m), ceil_div(shape.Q, m)
        return TileGrid(shape.N * rows * columns, rows, columns)


def asks_for_full_precision() -> bool:
    """Whether the user asks for the smallest errors, for which tiles of 2 x 2 are used.

    By `torch.backends.mkldnn.conv.fp32_precision = "ieee"` or `torch.use_deterministic_algorithms(True)`.
    """
    return torch.backends.mkldnn.conv.fp32_precision == "ieee" or torch.are_deterministic_algorithms_enabled()  # pyright: ignore


def is_eligible(spec: ConvolutionSpec, kernel_size: Sizes, target: Target) -> bool:
    """Whether the algorithm computes such a convolution: 3 x 3 neighboring taps and stride 1, not on a GPU.

    It is asked at every call; where it is faster `winograd_tile` decides once for each problem.
    """
    return target.kind not in ("cuda", "hip") and kernel_size == (3, 3) and spec.stride == spec.dilation == (1, 1)


@lru_cache(maxsize=4096)
def winograd_tile(
    shape: ConvolutionShape, dtype: torch.dtype, exact: bool, target: Target, is_gradient: bool = False
) -> WinogradTile | None:
    """The tile for a convolution or its data gradient, None where the definition is faster or an offset exceeds int32.

    Args:
        shape: of the convolution that is computed: for a data gradient x is dZ, and y is dX.
        dtype: of x and W.
        exact: whether only tiles of 2 x 2 may be used in fp32; see `asks_for_full_precision`.
        target: where it runs.
        is_gradient: whether it is the data gradient.
    """
    m = _side(shape, dtype, exact, target, _INPUT_GRADIENT if is_gradient else _FORWARD)
    if m is None:
        return None
    tiles, columns = TileGrid.of(shape, m).tiles, shape.group_outputs
    block_tiles = min(64 if m == 4 else 128, max(16, power_of_2_at_least(tiles)))
    block_outputs = min(64, power_of_2_at_least(columns))
    programs = ceil_div(columns, block_outputs) * shape.groups
    while block_tiles > 16 and ceil_div(tiles, block_tiles) * programs < 2 * target.processors:
        block_tiles //= 2
    return WinogradTile(m, block_tiles, block_outputs, min(64, power_of_2_at_least(shape.group_inputs)))


@lru_cache(maxsize=4096)
def winograd_weight_tile(
    shape: ConvolutionShape, dtype: torch.dtype, exact: bool, target: Target
) -> WinogradTile | None:
    """The tile for a weight gradient, None as of `winograd_tile`."""
    m = _side(shape, dtype, exact, target, _WEIGHT_GRADIENT)
    if m is None:
        return None
    block_tiles = min(64, max(16, power_of_2_at_least(TileGrid.of(shape, m).tiles)))
    outputs, inputs = (min(64, power_of_2_at_least(count)) for count in (shape.group_outputs, shape.group_inputs))
    return WinogradTile(m, block_tiles, outputs, inputs)


def winograd_weight_splits(programs: int, tiles: int, tile: WinogradTile, target: Target) -> int:
    """How many ways to split the tiles of a weight gradient that takes so many programs without a split."""
    splits = max(ceil_div(target.processors, programs), ceil_div(tiles * tile.m**2, _LONGEST_SUM))
    return min(splits, ceil_div(tiles, tile.block_tiles))


def transforms_own_filters(tiles: int, tile: WinogradTile) -> bool:
    """Whether programs transform the filters that they need: few programs share them."""
    return ceil_div(tiles, tile.block_tiles) <= _OWN_FILTER_TILES


def _side(shape: ConvolutionShape, dtype: torch.dtype, exact: bool, target: Target, costs: _Costs) -> int | None:
    """The side of the tiles that take the least time for each pair of channels; None where that is the definition."""
    inputs, outputs = shape.group_inputs, shape.group_outputs
    if target.kind != "cpu" or min(inputs, outputs) < _FEWEST_CHANNELS or _is_wide(shape):
        return None
    if shape.groups > 1 and max(inputs, outputs) == _FEWEST_CHANNELS:
        return None  # such groups are multiplied side by side (`grouped.py`)
    of_transforms = _TRANSFORM_COST * (1 / inputs + 1 / outputs) + costs.thin / (inputs * outputs)
    # Some processors multiply twice as many numbers of bf16 as of fp32 at once.
    product = costs.product * (0.55 if dtype is torch.bfloat16 and target.architecture == "bf16" else 1.0)
    times: dict[int | None, float] = {None: 9 * (product * shape.pixels(pool=False) + costs.packing)}
    only_small = (exact and dtype is torch.float32) or TileGrid.of(shape, 4).tiles < _FEWEST_TILES
    for m in (2,) if only_small else (2, 4):
        tiles = ceil_div(TileGrid.of(shape, m).tiles, _TILES_AT_ONCE) * _TILES_AT_ONCE
        times[m] = (m + 2) ** 2 * (tiles * (_PRODUCT_COST[m] + of_transforms) + costs.filters[m])
    return min(times, key=times.__getitem__)


def _is_wide(shape: ConvolutionShape) -> bool:
    """Whether offsets within the largest tile exceed int32."""
    images = 128 // (ceil_div(shape.P, 4) * ceil_div(shape.Q, 4)) + 2
    return exceed_int32(((images + 1, shape.image_elements),), ((36 * 64, max(shape.C, shape.K)),))

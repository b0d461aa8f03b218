"""The tile rule of normalization, and all of a launch but its tensors."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from tinynet_kernels.batch_norm.axes import Axes, axes_of, dense_strides
from tinynet_kernels.batch_norm.walk import NormTile, WalkSpec
from tinynet_kernels.offsets import exceed_int32
from tinynet_kernels.tiles import Target, ceil_div, power_of_2_at_least

LARGE_IMAGE = 512  # pixels
LARGE_BATCH = 1 << 18  # elements: they do not fit a core's cache


class Walk(NamedTuple):
    """How the programs of a launch pass over an operand and over dense tensors of its shape.

    Attributes:
        programs: of the launch.
        parts: into which the steps of a channel are divided, each with a partial result.
        groups: sets of statistics of each channel.
        stride: of the dense tensors.
        numbers: the kernels' last run-time arguments.
        constants: SPEC and TILE, and launch options.
        has_all_channels: whether the tile does.
        groups_share: whether the groups have one set of statistics together.
    """

    programs: int
    parts: int
    groups: int
    stride: tuple[int, ...]
    numbers: tuple[int, ...]
    constants: dict[str, Any]
    has_all_channels: bool
    groups_share: bool = False


@lru_cache(maxsize=4096)
def norm_tile(
    groups: int, channels: int, axes: Axes, target: Target, members: int, elements: int
) -> tuple[int, int, int, int]:
    """(BLOCK_CHANNELS, BLOCK_INNER, most parts, num_warps): long in the contiguous direction.

    Few channels are walked in parts, so that all processors have work; each part is a partial result to be merged.

    Args:
        groups, channels: one set of statistics each.
        axes: of the operand.
        target: where it runs.
        members: how many channels share statistics. Each program merges the parts of all of them, so parts are fewer.
        elements: of a tile, except in the interpreter.
    """
    if target.kind == "interpreter":
        elements = 1 << 16
    if axes.channels_inner:
        # On a GPU the smallest stretch of channels that memory serves at full speed, so that parts are few.
        most = 32 if target.kind in ("cuda", "hip") else 512 if channels <= 512 else 256
        block_channels = min(most, power_of_2_at_least(channels))
        block_inner = min(elements // block_channels, power_of_2_at_least(axes.inner))
    else:
        block_inner = min(elements, 4096, power_of_2_at_least(axes.inner))
        block_channels = min(elements // block_inner, power_of_2_at_least(channels))
    tiles = groups * ceil_div(channels, block_channels)
    steps = axes.outer * ceil_div(axes.inner, block_inner)
    programs = 2 if target.kind == "interpreter" else (8 if members == 1 else 2) * target.processors
    parts = min(steps, most_parts(target), ceil_div(programs, tiles))
    return block_channels, block_inner, parts, 4


def most_parts(target: Target) -> int:
    """How many parts a program merges at once, at most: on a GPU so many that one tile of channels fills half of it."""
    return max(64, power_of_2_at_least(target.processors // 2)) if target.kind in ("cuda", "hip") else 64


@lru_cache(maxsize=4096)
def walk_of(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    per_sample: bool,
    target: Target,
    members: int = 1,
    elements: int = 1024,
) -> Walk:
    """The `Walk` over a tensor [N, C, ...] that has axes (see `axes_of`).

    Args:
        shape, stride: of the tensor.
        per_sample: whether each sample has statistics of its own.
        target: where it runs.
        members: how many channels share statistics.
        elements: of a tile.
    """
    axes = axes_of(shape, stride, per_sample=per_sample)
    assert axes is not None, f"no walk over {shape} with strides {stride}"
    groups, channels = shape[0] if per_sample else 1, shape[1]
    length = math.prod(shape[2:])
    dense = (length * channels, channels if axes.channels_inner else length)
    block_channels, block_inner, most_parts, num_warps = norm_tile(groups, channels, axes, target, members, elements)
    tiles = groups * ceil_div(channels, block_channels)
    steps = axes.outer * ceil_div(axes.inner, block_inner)
    steps_per_part = ceil_div(steps, most_parts)
    parts = ceil_div(steps, steps_per_part)
    across = block_inner if axes.channels_inner else block_channels
    along = block_channels if axes.channels_inner else block_inner
    reach = [((across, stride_across), (along, 1)) for stride_across in (axes.stride_across, dense[1])]
    wide = exceed_int32(*reach, ((axes.inner + block_inner, 1),), ((steps, 1),))
    numbers = (axes.outer, channels, axes.inner, steps_per_part, axes.stride_outer, axes.stride_across, *dense)
    constants = {
        "SPEC": WalkSpec(axes.channels_inner, wide, members),
        "TILE": NormTile(block_channels, block_inner, power_of_2_at_least(parts), *_sets_in(block_channels, members)),
        "num_warps": num_warps,
    }
    stride = dense_strides(shape, channels_inner=axes.channels_inner)
    return Walk(tiles * parts, parts, groups, stride, numbers, constants, block_channels >= channels)


def walk_of_batch(shape: tuple[int, ...], stride: tuple[int, ...], target: Target) -> Walk:
    """The `Walk` for statistics of the whole batch, a number for each channel."""
    walk = walk_of(shape, stride, False, target)
    if walk.constants["SPEC"].channels_inner or not walks_by_image(shape, target):
        return walk
    by_image = walk_of(shape, stride, True, target, elements=256)  # an image's sums stay in the fastest cache
    constants = by_image.constants | {"SPEC": by_image.constants["SPEC"]._replace(groups_share=True)}
    return by_image._replace(constants=constants, groups_share=True)


def walks_by_image(shape: tuple[int, ...], target: Target) -> bool:
    """Whether images are walked one after the other, as groups that share their statistics.

    For large ones on CPUs, where memory is then read from its beginning to its end, in half of the time.
    """
    large = math.prod(shape[2:]) >= LARGE_IMAGE and math.prod(shape) >= LARGE_BATCH
    return target.kind == "cpu" and shape[0] > 1 and large


def _sets_in(block_channels: int, members: int) -> tuple[int, int]:
    """(BLOCK_SETS, BLOCK_MEMBERS): how many sets of `members` channels have channels in a tile, at most."""
    if members == 1:
        return 1, 1
    sets = block_channels // members if block_channels % members == 0 else (block_channels - 1) // members + 2
    return power_of_2_at_least(sets), power_of_2_at_least(members)

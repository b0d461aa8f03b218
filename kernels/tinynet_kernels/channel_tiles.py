"""Tiles of channels and pixels of x [N, C, S] in either memory order, contiguous or channels_last, without a copy.

The last axis of a tile is the one that is contiguous in memory: [channels, pixels], or for channels_last [pixels,
channels]. Kernels name the tile's axis of pixels and otherwise read as one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import Target, power_of_2_at_least


class ChannelTile(NamedTuple):
    """The tile of one program or step: channels, pixels, and its axis of pixels: 1, or 0 for channels_last."""

    block_channels: int
    block_pixels: int
    pixel_axis: int


class Tile(NamedTuple):
    """A tile within a kernel: its channels, where its elements lie, and which exist."""

    channel: Any
    in_channels: Any
    offset: Any
    mask: Any


@triton.jit
def tile_at(channel_start, pixel_start, channels, pixels, stride_c, stride_s, WIDE: constexpr, TILE: constexpr):
    """The `Tile` at these starts; its `offset` is from the image's first element, int64."""
    PIXEL_AXIS: constexpr = TILE.pixel_axis
    channel = tl.arange(0, TILE.block_channels)
    pixel = tl.arange(0, TILE.block_pixels)
    in_channels = channel < channels - channel_start
    in_pixels = pixel < pixels - pixel_start
    start = tl.cast(channel_start, tl.int64) * stride_c + tl.cast(pixel_start, tl.int64) * stride_s
    across = tl.expand_dims(channel * widened(stride_c, WIDE), PIXEL_AXIS)
    offset = across + tl.expand_dims(pixel * widened(stride_s, WIDE), 1 - PIXEL_AXIS)
    mask = tl.expand_dims(in_channels, PIXEL_AXIS) & tl.expand_dims(in_pixels, 1 - PIXEL_AXIS)
    return Tile(channel_start + channel, in_channels, start + offset, mask)


@triton.jit
def load_at(ptr, at):
    """The tile of an image in fp32."""
    return tl.load(ptr + at.offset, mask=at.mask, other=0.0).to(tl.float32)


@triton.jit
def store_at(ptr, values, at):
    """Stores the tile of an image."""
    tl.store(ptr + at.offset, values.to(ptr.dtype.element_ty), mask=at.mask)


def channel_tile(channels: int, pixels: int, channels_last: bool, target: Target) -> ChannelTile:
    """A tile long in the direction in which memory is contiguous; a vector of channels (S = 1) counts as channels_last.

    Args:
        channels: that a program or step may take.
        pixels: of an image.
        channels_last: whether neighboring channels are neighbors in memory.
        target: where it runs.
    """
    elements, longest = {"interpreter": (1 << 14, 1 << 12), "cpu": (1024, 256)}.get(target.kind, (4096, 1024))
    outer, inner = (pixels, channels) if channels_last else (channels, pixels)
    block_inner = min(longest, power_of_2_at_least(inner))
    block_outer = min(max(1, elements // block_inner), power_of_2_at_least(outer))
    if channels_last:
        return ChannelTile(block_inner, block_outer, 0)
    return ChannelTile(block_outer, block_inner, 1)


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether a dense x [N, C, S] is to be walked along its channels: they are neighbors, or there is one pixel."""
    return x.shape[2] == 1 or not x.is_contiguous()


def strides_of(channels: int, pixels: int, channels_last: bool) -> tuple[int, int]:
    """(from channel to channel, from pixel to pixel)."""
    return (1, channels) if channels_last else (pixels, 1)


def is_wide(tile: ChannelTile, channels: int, pixels: int, strides: tuple[int, int]) -> bool:
    """Whether a tile's offsets need int64."""
    reach = (min(tile.block_channels, channels), strides[0]), (min(tile.block_pixels, pixels), strides[1])
    return exceed_int32(reach, ((pixels + tile.block_pixels, 1),))

"""How normalization kernels pass over x [N, C, ...], in whichever order its memory is, without a copy.

x is seen as [groups, outer, C, inner]. A channel's statistics are over outer and inner, one set for each group:

    batch norm     contiguous: groups 1, outer N, inner L = H W        channels_last: groups 1, outer 1, inner N H W
    instance norm  groups N, outer 1, inner L
    group norm     as instance norm; `members` neighboring channels then share the statistics of their elements

A tile is [block_inner, block_channels] where neighboring channels are neighbors in memory (`channels_inner`), else
[block_channels, block_inner]. Tiles of the same channels are numbered as steps, and a program walks `steps_per_part`
of them: one of the `parts` into which the steps are divided. The tiles at the end of `inner`, which may be cut off, are
the last steps, so that each lane (element of the tile) is in bounds in all steps of a part up to some step, and in none
after.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.offsets import widened


class WalkSpec(NamedTuple):
    """How operands lie in memory and who shares statistics.

    Attributes:
        channels_inner: whether neighboring channels are neighbors in memory.
        wide: whether offsets in a tile are int64.
        members: how many channels share statistics: 1, or more for group normalization.
        groups_share: whether all groups have one set of statistics, a number for each channel.
    """

    channels_inner: bool
    wide: bool
    members: int = 1
    groups_share: bool = False


class NormTile(NamedTuple):
    """The tile of one step, and the partial results that are merged at once.

    block_sets and block_members: of the sets of channels that share statistics, those of the tile's channels.
    """

    block_channels: int
    block_inner: int
    block_parts: int
    block_sets: int = 1
    block_members: int = 1


class Share(NamedTuple):
    """What one program computes: a part of the steps of some channels of one group.

    `statistic` and `in_channels`, [block_channels], are the places of its channels among all `statistics`, which is
    groups * channels, and which of them are in bounds.
    """

    group: Any
    part: Any
    parts: Any
    first_channel: Any
    in_channels: Any
    statistic: Any
    statistics: Any
    first_step: Any
    steps: Any


class Sets(NamedTuple):
    """The sets of channels that share statistics and of which a program has channels.

    Attributes:
        channel: [block_sets], the first channel of each.
        statistic: [block_members, block_sets], the place of each of their channels among all statistics of channels.
        mask: which of these exist.
        set_of: [block_channels], the index in [block_sets] of each of the program's channels.
        owned: [block_sets]: those whose first channel is the program's.
    """

    channel: Any
    statistic: Any
    mask: Any
    set_of: Any
    owned: Any


class Place(NamedTuple):
    """Where a tile is: the indices of its first element, and which lanes are in bounds."""

    outer: Any
    inner: Any
    mask: Any


@triton.jit
def share_of_program(outer, channels, inner, steps_per_part, TILE: constexpr):
    """The `Share` of this program."""
    steps = outer * tl.cdiv(inner, TILE.block_inner)
    parts = tl.cdiv(steps, steps_per_part)
    channel_tiles = tl.cdiv(channels, TILE.block_channels)
    part = tl.program_id(0) % parts
    channel_tile = tl.program_id(0) // parts
    group = channel_tile // channel_tiles
    first_channel = channel_tile % channel_tiles * TILE.block_channels
    channel = tl.arange(0, TILE.block_channels)
    first_step = part * steps_per_part
    return Share(
        group,
        part,
        parts,
        first_channel,
        channel < channels - first_channel,
        group * channels + first_channel + channel,
        tl.num_programs(0) // (parts * channel_tiles) * channels,
        first_step,
        tl.minimum(steps_per_part, steps - first_step).to(tl.int32),
    )


@triton.jit
def statistic_of(share, SPEC: constexpr, TILE: constexpr):
    """[block_channels]: the places of the program's channels among the statistics."""
    if SPEC.groups_share:
        return share.first_channel + tl.arange(0, TILE.block_channels)
    else:
        return share.statistic // SPEC.members


@triton.jit
def sets_of(share, channels, SPEC: constexpr, TILE: constexpr):
    """The `Sets` of this program."""
    first_set = share.first_channel // SPEC.members
    channel = (first_set + tl.arange(0, TILE.block_sets)) * SPEC.members
    member = tl.arange(0, TILE.block_members)[:, None]
    statistic = share.group * channels + channel[None, :] + member
    mask = (member < SPEC.members) & (channel < channels)[None, :]
    set_of = (share.first_channel + tl.arange(0, TILE.block_channels)) // SPEC.members - first_set
    end = tl.minimum(share.first_channel + TILE.block_channels, channels)
    return Sets(channel, statistic, mask, set_of, (channel >= share.first_channel) & (channel < end))


@triton.jit
def of_members(values, sets, share, channels):
    """The program's numbers of channels, [block_channels], as those of the members of sets; 0 where there is none.

    The program has all channels.
    """
    MEMBERS: constexpr = sets.mask.shape[0]
    SETS: constexpr = sets.mask.shape[1]
    channel = tl.where(sets.mask, sets.statistic - share.group * channels, 0)
    gathered = tl.gather(values, tl.reshape(channel, (MEMBERS * SETS,)), axis=0)
    return tl.where(sets.mask, tl.reshape(gathered, (MEMBERS, SETS)), 0.0)


@triton.jit
def of_channels(values, SPEC: constexpr):
    """A vector over a tile's channels, to be broadcast over it."""
    if SPEC.channels_inner:
        return values[None, :]
    else:
        return values[:, None]


@triton.jit
def of_positions(values, SPEC: constexpr):
    """A vector over a tile's positions in `inner`, to be broadcast over it."""
    if SPEC.channels_inner:
        return values[:, None]
    else:
        return values[None, :]


@triton.jit
def sum_of_positions(values, SPEC: constexpr):
    """The sum over a tile for each channel."""
    if SPEC.channels_inner:
        return tl.sum(values, axis=0)
    else:
        return tl.sum(values, axis=1)


@triton.jit
def zero_tile(SPEC: constexpr, TILE: constexpr):
    """A tile of zeros in fp32."""
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    BLOCK_INNER: constexpr = TILE.block_inner
    if SPEC.channels_inner:
        return tl.zeros((BLOCK_INNER, BLOCK_CHANNELS), tl.float32)
    else:
        return tl.zeros((BLOCK_CHANNELS, BLOCK_INNER), tl.float32)


@triton.jit
def place_of(share, step, outer, inner, SPEC: constexpr, TILE: constexpr):
    """The `Place` of a step of the program's, counted from 0."""
    step += share.first_step
    first = widened(step // outer, SPEC.wide) * TILE.block_inner
    in_inner = tl.arange(0, TILE.block_inner) < inner - first
    mask = of_positions(in_inner, SPEC) & of_channels(share.in_channels, SPEC)
    return Place(share.group + step % outer, first, mask)


@triton.jit
def tile_of(ptr, share, place, stride_outer, stride_across, SPEC: constexpr, TILE: constexpr):
    """Pointers to a tile.

    stride_outer is that of groups and outer, stride_across that of inner for `channels_inner`, else that of channels;
    the other one is 1.
    """
    channel = tl.arange(0, TILE.block_channels)
    position = tl.arange(0, TILE.block_inner)
    start = ptr + place.outer.to(tl.int64) * stride_outer
    across = widened(stride_across, SPEC.wide)
    if SPEC.channels_inner:
        start += place.inner.to(tl.int64) * stride_across + share.first_channel
        return start + (position[:, None] * across + channel[None, :])
    else:
        start += share.first_channel.to(tl.int64) * stride_across + place.inner
        return start + (channel[:, None] * across + position[None, :])


@triton.jit
def load_tile(ptr, share, place, stride_outer, stride_across, SPEC: constexpr, TILE: constexpr):
    """A tile in fp32, zeros where out of bounds."""
    source = tile_of(ptr, share, place, stride_outer, stride_across, SPEC, TILE)
    return tl.load(source, mask=place.mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(ptr, values, share, place, stride_outer, stride_across, SPEC: constexpr, TILE: constexpr):
    """Stores a tile."""
    target = tile_of(ptr, share, place, stride_outer, stride_across, SPEC, TILE)
    tl.store(target, values.to(ptr.dtype.element_ty), mask=place.mask)


@triton.jit
def load_channels(ptr, index, in_channels, absent: constexpr):
    """A number for each channel, in fp32; `absent` where there is no tensor."""
    if ptr is not None:
        return tl.load(ptr + index, mask=in_channels, other=0.0).to(tl.float32)
    else:
        return tl.full(index.shape, absent, tl.float32)


@triton.jit
def steps_of_lanes(share, outer, inner, TILE: constexpr):
    """[block_inner]: in how many of the program's steps each position of a tile is in bounds, in fp32."""
    uncut = tl.cdiv(inner, TILE.block_inner) - 1  # tiles that no end cuts off, along inner
    before = tl.minimum(tl.maximum(uncut * outer - share.first_step, 0), share.steps)
    in_last = tl.arange(0, TILE.block_inner) < inner - uncut * TILE.block_inner
    return tl.where(in_last, share.steps, before).to(tl.float32)

"""Batch and instance normalization, forward: y = act((x - mean) / sqrt(variance + eps) w + b + residual).

    mean, variance    of each channel: of x (biased), or given
    running_mean      <- (1 - momentum) running_mean + momentum mean
    running_variance  <- the same with the unbiased variance, n / (n - 1) times the biased one

Two launches. `norm_statistics_kernel` leaves (count, mean, sum of squared deviations) of each part of a channel:
Welford's algorithm for each lane of a tile, then the lanes merged. `normalize_kernel` merges the parts of its channels
in a fixed order and normalizes; the programs of the first part store the statistics. It is the only launch for given
statistics, and where one program has all of its channels and of those that share their statistics: it reads them twice.
`walk` says what a program passes over. There are too many parts for each program to merge them where a
convolution's epilogue left them (`conv.forward.Results`), or where images are walked one after the other: then
`merge_statistics_kernel` does, before a launch for given statistics.

Source: Ioffe & Szegedy 2015; Ulyanov et al. 2016; Welford 1962; merging: Chan, Golub & LeVeque 1979.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.batch_norm.tiles import Walk, walk_of, walk_of_batch
from tinynet_kernels.batch_norm.walk import (
    NormTile,
    load_channels,
    load_tile,
    of_channels,
    of_members,
    of_positions,
    place_of,
    sets_of,
    share_of_program,
    statistic_of,
    steps_of_lanes,
    store_tile,
    sum_of_positions,
    zero_tile,
)
from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.tiles import Target, ceil_div, current_target, power_of_2_at_least


@triton.jit
def statistics_of_part(x_ptr, share, outer, inner, stride_xo, stride_xa, SPEC: constexpr, TILE: constexpr):
    """(count, mean, sum of squared deviations) of the program's part; the first is a scalar."""
    mean = zero_tile(SPEC, TILE)
    squares = zero_tile(SPEC, TILE)
    for step in range(share.steps):
        place = place_of(share, step, outer, inner, SPEC, TILE)
        x = load_tile(x_ptr, share, place, stride_xo, stride_xa, SPEC, TILE)
        deviation = tl.where(place.mask, x - mean, 0.0)
        inverse = 1.0 / tl.cast(step + 1, tl.float32)
        squares += deviation * deviation * (1.0 - inverse)
        mean += deviation * inverse
    lane_count = of_positions(steps_of_lanes(share, outer, inner, TILE), SPEC)
    count = tl.sum(lane_count)
    lane_count += zero_tile(SPEC, TILE)
    part_mean = sum_of_positions(mean * lane_count, SPEC) / count  # pyright: ignore[reportOperatorIssue]
    deviation = mean - of_channels(part_mean, SPEC)
    return count, part_mean, sum_of_positions(squares + lane_count * deviation * deviation, SPEC)


@triton.jit(do_not_specialize=["outer", "channels", "inner", "steps_per_part"])
def norm_statistics_kernel(
    x_ptr,
    partial_ptr,
    outer,
    channels,
    inner,
    steps_per_part,
    stride_xo,
    stride_xa,
    stride_yo,
    stride_ya,
    SPEC: constexpr,
    TILE: constexpr,
):
    """partial [parts, 3, groups, channels]: count, mean and sum of squared deviations of each part.

    Where groups share their statistics: [parts, groups, 3, channels].
    """
    share = share_of_program(outer, channels, inner, steps_per_part, TILE)
    count, mean, squares = statistics_of_part(x_ptr, share, outer, inner, stride_xo, stride_xa, SPEC, TILE)
    part, statistics, statistic = share.part.to(tl.int64), share.statistics, share.statistic
    if SPEC.groups_share:
        part = part * (share.statistics // channels) + share.group
        statistics, statistic = channels, statistic_of(share, SPEC, TILE)
    partial = partial_ptr + part * 3 * statistics + statistic
    tl.store(partial, tl.zeros_like(mean) + count, mask=share.in_channels)
    tl.store(partial + statistics, mean, mask=share.in_channels)
    tl.store(partial + 2 * statistics, squares, mask=share.in_channels)


@triton.jit
def merged(counts, means, squares):
    """(count, mean, sum of squared deviations) of parts [PARTS, CHANNELS]; absent parts count 0."""
    count = tl.sum(counts, axis=0)
    mean = tl.sum(counts * means, axis=0) / tl.maximum(count, 1.0)
    deviations = means - mean[None, :]
    return count, mean, tl.sum(squares + counts * deviations * deviations, axis=0)


@triton.jit
def merged_with(count, mean, squares, more, more_mean, more_squares):
    """(count, mean, sum of squared deviations) of two parts together."""
    deviation = more_mean - mean
    weight = more / tl.maximum(count + more, 1.0)
    return count + more, mean + deviation * weight, squares + more_squares + deviation * deviation * count * weight


@triton.jit
def load_parts(partial_ptr, part, statistic, statistics, mask):
    """Counts, means and sums of squared deviations, of `partial` [parts, 3, statistics]."""
    partial = partial_ptr + (tl.cast(part, tl.int64) * 3 * statistics + statistic)
    counts = tl.load(partial, mask=mask, other=0.0)
    means = tl.load(partial + statistics, mask=mask, other=0.0)
    return counts, means, tl.load(partial + 2 * statistics, mask=mask, other=0.0)


@triton.jit
def store_running(running_ptr, value, momentum, channel, mask):
    """running <- (1 - momentum) running + momentum value, for some channels."""
    running = tl.load(running_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    running = (1.0 - momentum) * running + momentum * value
    tl.debug_barrier()  # threads may share an element
    tl.store(running_ptr + channel, running.to(running_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_statistics(
    count, mean, squares, mean_ptr, variance_ptr, running_mean_ptr, running_variance_ptr, momentum, statistic, mask
):
    """Stores mean and variance, and moves the running statistics, if any."""
    tl.store(mean_ptr + statistic, mean, mask=mask)
    tl.store(variance_ptr + statistic, squares / tl.maximum(count, 1.0), mask=mask)
    if running_mean_ptr is not None:
        store_running(running_mean_ptr, mean, momentum, statistic, mask)
        store_running(running_variance_ptr, squares / (count - 1.0), momentum, statistic, mask)


@triton.jit(do_not_specialize=["parts", "channels"])
def merge_statistics_kernel(
    partial_ptr,
    mean_ptr,
    variance_ptr,
    running_mean_ptr,
    running_variance_ptr,
    momentum,
    parts,
    channels,
    TILE: constexpr,
):
    """mean and variance [channels] of `partial` [parts, 3, channels], and the running statistics, if any.

    block_channels per program, block_parts at once, one block merged after the other.
    """
    BLOCK_CHANNELS: constexpr = TILE.block_channels
    first_channel = tl.program_id(0) * BLOCK_CHANNELS
    in_channels = tl.arange(0, BLOCK_CHANNELS) < channels - first_channel
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    part = tl.arange(0, TILE.block_parts)
    count = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    mean = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    squares = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for start in range(0, parts, TILE.block_parts):
        mask = (part < parts - start)[:, None] & in_channels[None, :]
        parts_at_once = load_parts(partial_ptr, (start + part)[:, None], channel[None, :], channels, mask)
        count, mean, squares = merged_with(count, mean, squares, *merged(*parts_at_once))
    store_statistics(
        *(count, mean, squares, mean_ptr, variance_ptr, running_mean_ptr, running_variance_ptr, momentum),
        channel,
        in_channels,
    )


@triton.jit
def merged_sets(partial_ptr, sets, share):
    """(count, mean, sum of squared deviations) of sets of channels, [block_sets], from `partial`."""
    count = tl.zeros(sets.channel.shape, tl.float32)
    mean = tl.zeros(sets.channel.shape, tl.float32)
    squares = tl.zeros(sets.channel.shape, tl.float32)
    for part in range(share.parts):
        members = load_parts(partial_ptr, part, sets.statistic, share.statistics, sets.mask)
        count, mean, squares = merged_with(count, mean, squares, *merged(*members))
    return count, mean, squares


@triton.jit
def statistics_of_sets(
    x_ptr,
    partial_ptr,
    mean_ptr,
    variance_ptr,
    outer,
    channels,
    inner,
    stride_xo,
    stride_xa,
    share,
    SPEC: constexpr,
    TILE: constexpr,
):
    """mean and variance of the program's channels, which share them with others; the first part stores them.

    Without `partial` they are those of the program's part, which is all channels.
    """
    sets = sets_of(share, channels, SPEC, TILE)
    if partial_ptr is not None:
        count, mean, squares = merged_sets(partial_ptr, sets, share)
    else:
        each, means, squares = statistics_of_part(x_ptr, share, outer, inner, stride_xo, stride_xa, SPEC, TILE)
        means, squares = of_members(means, sets, share, channels), of_members(squares, sets, share, channels)
        count, mean, squares = merged(tl.where(sets.mask, each, 0.0), means, squares)
    variance = squares / tl.maximum(count, 1.0)
    if share.part == 0:
        place = (share.group * channels + sets.channel) // SPEC.members
        tl.store(mean_ptr + place, mean, mask=sets.owned)
        tl.store(variance_ptr + place, variance, mask=sets.owned)
    return tl.gather(mean, sets.set_of, axis=0), tl.gather(variance, sets.set_of, axis=0)


@triton.jit(do_not_specialize=["outer", "channels", "inner", "steps_per_part"])
def normalize_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    partial_ptr,
    mean_ptr,
    variance_ptr,
    running_mean_ptr,
    running_variance_ptr,
    y_ptr,
    eps,
    momentum,
    outer,
    channels,
    inner,
    steps_per_part,
    stride_xo,
    stride_xa,
    stride_yo,
    stride_ya,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    GIVEN: constexpr,
    TILE: constexpr,
):
    """y = act((x - mean) / sqrt(variance + eps) w + b + residual).

    Unless mean and variance are `GIVEN`, they are computed, from `partial` or, where there is none because the program
    has all of its channels, from x; they are stored, and the running statistics (of one group), if any, are updated.
    Channels that share statistics have no running statistics.
    """
    share = share_of_program(outer, channels, inner, steps_per_part, TILE)
    if GIVEN:
        statistic = statistic_of(share, SPEC, TILE)
        mean = load_channels(mean_ptr, statistic, share.in_channels, 0.0)
        variance = load_channels(variance_ptr, statistic, share.in_channels, 0.0)
    elif SPEC.members > 1:
        mean, variance = statistics_of_sets(
            *(x_ptr, partial_ptr, mean_ptr, variance_ptr, outer, channels, inner, stride_xo, stride_xa),
            share,
            SPEC,
            TILE,
        )
    else:
        if partial_ptr is not None:
            part = tl.arange(0, TILE.block_parts)[:, None]
            mask = (part < share.parts) & share.in_channels[None, :]
            parts = load_parts(partial_ptr, part, share.statistic[None, :], share.statistics, mask)
            count, mean, squares = merged(*parts)
        else:
            count, mean, squares = statistics_of_part(x_ptr, share, outer, inner, stride_xo, stride_xa, SPEC, TILE)
        variance = squares / tl.maximum(count, 1.0)
        if share.part == 0:
            store_statistics(
                *(count, mean, squares, mean_ptr, variance_ptr, running_mean_ptr, running_variance_ptr, momentum),
                share.statistic,
                share.in_channels,
            )
    channel = share.first_channel + tl.arange(0, TILE.block_channels)
    scale = load_channels(weight_ptr, channel, share.in_channels, 1.0) / tl.sqrt(variance + eps)
    shift = load_channels(bias_ptr, channel, share.in_channels, 0.0)
    mean, scale, shift = of_channels(mean, SPEC), of_channels(scale, SPEC), of_channels(shift, SPEC)
    for step in range(share.steps):
        place = place_of(share, step, outer, inner, SPEC, TILE)
        x = load_tile(x_ptr, share, place, stride_xo, stride_xa, SPEC, TILE)
        z = (x - mean) * scale + shift
        if residual_ptr is not None:
            z += load_tile(residual_ptr, share, place, stride_yo, stride_ya, SPEC, TILE)
        y = activate(z, ACTIVATION)
        store_tile(y_ptr, y, share, place, stride_yo, stride_ya, SPEC, TILE)


@costs(norm_statistics_kernel)
def norm_statistics_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every element is read once, and takes five operations of Welford's."""
    return Cost(5 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


@costs(merge_statistics_kernel)
def merge_statistics_cost(partial_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every part is read once, and takes eight operations."""
    return Cost(8 * partial_ptr.numel() // 3, size_in_bytes(partial_ptr, *others.values()))


@costs(normalize_kernel)
def normalize_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every element is read and written once: a difference, a product, a sum and an activation."""
    return Cost(4 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


class NormProblems(NamedTuple):
    """The launches of a forward; `normalize_given` is the one for given statistics."""

    walk: Walk
    statistics: Problem
    normalize: Problem
    normalize_given: Problem


@lru_cache(maxsize=4096)
def _problems(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    per_sample: bool,
    activation: Activation,
    target: Target,
    members: int,
) -> NormProblems:
    walk = walk_of(shape, stride, True, target, members) if per_sample else walk_of_batch(shape, stride, target)
    grid = (walk.programs,)
    constants = {"ACTIVATION": activation.compiled, **walk.constants}
    return NormProblems(
        walk,
        Problem(norm_statistics_kernel, grid, *walk.numbers, **walk.constants),
        Problem(normalize_kernel, grid, *walk.numbers, GIVEN=False, **constants),
        Problem(normalize_kernel, grid, *walk.numbers, GIVEN=True, **constants),
    )


@lru_cache(maxsize=4096)
def _merge_problem(parts: int, channels: int, target: Target) -> Problem:
    block_channels = min(power_of_2_at_least(channels), 256 if target.kind == "cpu" else 16)
    block_parts = min(power_of_2_at_least(parts), 4096 // block_channels)
    return Problem(
        merge_statistics_kernel,
        (ceil_div(channels, block_channels),),
        parts,
        channels,
        TILE=NormTile(block_channels, 1, block_parts),
        num_warps=4,
    )


def norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_variance: torch.Tensor | None,
    momentum: float,
    eps: float,
    activation: Activation,
    *,
    per_sample: bool,
    members: int = 1,
    partial: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """y = act((x - mean) / sqrt(variance + eps) weight + bias + residual), and the statistics where they are x's.

    Args:
        x: [N, C, ...], with axes (`axes_of`); not empty.
        weight, bias: [C], contiguous; None for ones and zeros.
        residual: x's shape, any strides, or None.
        mean, variance: given statistics [C], contiguous; None to compute them from x.
        running_mean, running_variance: [C], contiguous, updated in place where the statistics are x's; or None.
        momentum: of the update.
        eps: added to the variance.
        activation: applied last.
        per_sample: whether each sample has statistics of its own. It then has no running statistics here.
        members: how many neighboring channels of a sample share statistics; more than 1 `per_sample` only.
        partial: count, mean and sum of squared deviations of parts of x, fp32 [parts, 3, C], where they are known.

    Returns:
        y: x's shape, without gaps in x's order; mean and (biased) variance, fp32 [C] or [N, C / members] `per_sample`,
        or None where they were given.
    """
    problems = _problems(x.shape, x.stride(), per_sample, activation, current_target(), members)
    walk, normalize = problems.walk, problems.normalize_given
    y = x.new_empty_strided(x.shape, walk.stride)
    given = mean is not None
    if not given:
        channels = x.shape[1]
        shape = (walk.groups, channels // members) if per_sample else (channels,)
        mean = x.new_empty(shape, dtype=torch.float32)
        variance = torch.empty_like(mean)
        if walk.groups_share and partial is None:
            partial = x.new_empty((walk.parts * walk.groups, 3, channels), dtype=torch.float32)
            problems.statistics.launch(x, partial)
        if partial is not None:
            merge = _merge_problem(partial.shape[0], channels, current_target())
            merge.launch(partial, mean, variance, running_mean, running_variance, momentum)
            partial = running_mean = running_variance = None
        else:
            normalize = problems.normalize
            if walk.parts > 1 or (members > 1 and not walk.has_all_channels):
                partial = x.new_empty((walk.parts, 3, walk.groups * channels), dtype=torch.float32)
                problems.statistics.launch(x, partial)
    normalize.launch_named(
        x_ptr=x,
        residual_ptr=None if residual is None else in_order(residual, y),
        weight_ptr=weight,
        bias_ptr=bias,
        partial_ptr=partial,
        mean_ptr=mean,
        variance_ptr=variance,
        running_mean_ptr=running_mean,
        running_variance_ptr=running_variance,
        y_ptr=y,
        eps=eps,
        momentum=momentum,
    )
    return (y, None, None) if given else (y, mean, variance)


def in_order(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it has the strides of `like`, else a copy that does."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like).copy_(tensor)

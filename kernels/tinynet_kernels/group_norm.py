"""Group normalization: for each image and each group of channels of x [N, C, S], over its K = C / G S elements

    mean = sum x / K       rstd = (sum (x - mean)^2 / K + eps)^-1/2       n = (x - mean) rstd
    y = act(z), z = n w_c + b_c, with a weight and a bias for each channel c

    dz = dy act'(z)        dw_c = sum of dz n over images and pixels,     db_c = sum of dz over images and pixels
    g = dz w_c             dx = rstd (g - mean(g) - n mean(g n)), the means over the group

Tiling: one program per image and group, which walks the group twice, in tiles of channels and pixels: for the
statistics, merged over tiles (Chan et al. 1979), and for y. In contiguous memory the first walk is along one run. The
backward walks twice too; its first walk leaves each image's sums for dw and db in fp32, which `sum_partials` adds in a
fixed order. Saved are mean and variance in fp32; z is recomputed.

In channels_last memory a group may be a narrow strip of each pixel's channels. The kernels of instance normalization
(`batch_norm`) then walk rows of channels, and combine the statistics and sums of a group's channels in a fixed order.

Source: Wu and He 2018.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate, activation_derivative
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.batch_norm.backward import NormGradients, norm_backward
from tinynet_kernels.batch_norm.forward import norm_forward
from tinynet_kernels.channel_tiles import (
    ChannelTile,
    channel_tile,
    is_channels_last,
    is_wide,
    load_at,
    store_at,
    strides_of,
    tile_at,
)
from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.reduction import sum_partials
from tinynet_kernels.tiles import Target, current_target, power_of_2_at_least

WIDEST_STRIP = 64  # the channels of a group
FEWEST_PIXELS = 16
LONGEST_RUN = 4096  # elements, of which statistics are taken at once


class GroupNormSpec(NamedTuple):
    """What a kernel is compiled for, beside its tile.

    Attributes:
        reads_output: whether act' is computed from y.
        wide: whether offsets are int64.
        run: the tile of the forward's first walk in contiguous memory, where a group is one run of elements.
    """

    reads_output: bool
    wide: bool
    run: ChannelTile


@triton.jit
def load_channel(ptr, first, at, TILE: constexpr):
    """A parameter of a tile's channels, counted from `first`, in fp32; shaped to multiply the tile."""
    values = tl.load(ptr + (first + at.channel), mask=at.in_channels, other=0.0).to(tl.float32)
    return tl.expand_dims(values, TILE.pixel_axis)


@triton.jit
def scale_of(rstd, weight_ptr, first, at, TILE: constexpr):
    """rstd w_c of a tile's channels, or rstd without weights."""
    if weight_ptr is not None:
        return rstd * load_channel(weight_ptr, first, at, TILE)
    else:
        return rstd


@triton.jit
def affine(deviation, rstd, weight_ptr, bias_ptr, first, at, TILE: constexpr):
    """z of the module's formulas; `deviation` is x - mean."""
    z = deviation * scale_of(rstd, weight_ptr, first, at, TILE)
    if bias_ptr is not None:
        z = z + load_channel(bias_ptr, first, at, TILE)
    return z


@triton.jit
def sum_all(x, TILE: constexpr):
    """[1], the sum of a tile: of its columns first, which are vectors, unless it is one row."""
    if TILE.block_channels == 1 and TILE.pixel_axis == 1:
        return tl.sum(x, axis=1)
    else:
        return tl.sum(tl.sum(x, axis=0, keep_dims=True), axis=1)


@triton.jit
def statistics(x_ptr, channels, pixels, stride_c, stride_s, WIDE: constexpr, TILE: constexpr):
    """(mean, sum of squared deviations, count) of some channels of an image, each [1]."""
    mean = tl.zeros((1,), tl.float32)
    squares = tl.zeros((1,), tl.float32)
    seen = tl.zeros((1,), tl.float32)
    for channel_start in range(0, channels, TILE.block_channels):
        for pixel_start in range(0, pixels, TILE.block_pixels):
            at = tile_at(channel_start, pixel_start, channels, pixels, stride_c, stride_s, WIDE, TILE)
            x = load_at(x_ptr, at)
            count = tl.minimum(channels - channel_start, TILE.block_channels).to(tl.float32)
            count *= tl.minimum(pixels - pixel_start, TILE.block_pixels).to(tl.float32)
            tile_mean = sum_all(x, TILE) / count
            deviation = tl.where(at.mask, x - tile_mean[:, None], 0.0)
            difference = tile_mean - mean
            share = count / (seen + count)
            squares += sum_all(deviation * deviation, TILE) + difference * difference * (share * seen)
            mean += difference * share
            seen += count
    return mean, squares, seen


@triton.jit
def group_norm_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    variance_ptr,
    eps,
    groups,
    channels,
    pixels,
    stride_c,
    stride_s,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y of one image's group of `channels` channels, and its statistics where they are saved."""
    WIDE: constexpr = SPEC.wide
    program = tl.program_id(0)
    first = program % groups * channels
    pixels = widened(pixels, WIDE)
    image = (program // groups).to(tl.int64) * groups * channels * pixels + first.to(tl.int64) * stride_c
    if TILE.pixel_axis == 1:  # the group is one run of memory, as the pixels of one channel are
        x = x_ptr + image
        mean, squares, seen = statistics(x, 1, widened(channels, WIDE) * pixels, 0, stride_s, WIDE, SPEC.run)
    else:
        mean, squares, seen = statistics(x_ptr + image, channels, pixels, stride_c, stride_s, WIDE, TILE)
    variance = squares / seen
    if variance_ptr is not None:
        tl.store(mean_ptr + program + tl.arange(0, 1), mean)
        tl.store(variance_ptr + program + tl.arange(0, 1), variance)
    rstd = 1.0 / tl.sqrt(variance + eps)
    for channel_start in range(0, channels, TILE.block_channels):
        for pixel_start in range(0, pixels, TILE.block_pixels):
            at = tile_at(channel_start, pixel_start, channels, pixels, stride_c, stride_s, WIDE, TILE)
            deviation = load_at(x_ptr + image, at) - mean[:, None]
            z = affine(deviation, rstd[:, None], weight_ptr, bias_ptr, first, at, TILE)
            store_at(y_ptr + image, activate(z, ACTIVATION), at)


@triton.jit
def deviation_and_dz(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean,
    rstd,
    first,
    at,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """(x - mean, dz) of a tile; dz is 0 where there is nothing."""
    deviation = load_at(x_ptr, at) - mean
    dz = load_at(grad_ptr, at)
    if ACTIVATION.name != "identity":
        z = affine(deviation, rstd, weight_ptr, bias_ptr, first, at, TILE)
        dz *= activation_derivative(activate(z, ACTIVATION) if SPEC.reads_output else z, ACTIVATION)
    return deviation, dz


@triton.jit
def group_norm_backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    dx_ptr,
    weight_partial_ptr,
    bias_partial_ptr,
    eps,
    groups,
    channels,
    pixels,
    stride_c,
    stride_s,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dx of one image's group, and each image's sums for dw and db, [N, C]; what is None is left out."""
    PIXEL_AXIS: constexpr = TILE.pixel_axis
    WIDE: constexpr = SPEC.wide
    SHAPE_0: constexpr = TILE.block_pixels if TILE.pixel_axis == 0 else TILE.block_channels
    SHAPE_1: constexpr = TILE.block_channels if TILE.pixel_axis == 0 else TILE.block_pixels
    program = tl.program_id(0)
    first = program % groups * channels
    pixels = widened(pixels, WIDE)
    image = (program // groups).to(tl.int64) * groups * channels * pixels + first.to(tl.int64) * stride_c
    mean = tl.load(mean_ptr + program)  # in bounds: one for each program
    rstd = 1.0 / tl.sqrt(tl.load(variance_ptr + program) + eps)  # in bounds: as mean
    mean_g = tl.zeros((1,), tl.float32)
    mean_gn = tl.zeros((1,), tl.float32)
    for channel_start in range(0, channels, TILE.block_channels):
        dw = tl.zeros((SHAPE_0, SHAPE_1), tl.float32)
        db = tl.zeros((SHAPE_0, SHAPE_1), tl.float32)
        for pixel_start in range(0, pixels, TILE.block_pixels):
            at = tile_at(channel_start, pixel_start, channels, pixels, stride_c, stride_s, WIDE, TILE)
            deviation, dz = deviation_and_dz(
                grad_ptr + image,
                x_ptr + image,
                weight_ptr,
                bias_ptr,
                mean,
                rstd,
                first,
                at,
                SPEC,
                ACTIVATION,
                TILE,
            )
            dw += dz * deviation
            db += dz
        channel = tl.arange(0, TILE.block_channels)
        in_channels = channel < channels - channel_start
        channel += first + channel_start
        channel_dw = tl.sum(dw, axis=PIXEL_AXIS) * rstd
        channel_db = tl.sum(db, axis=PIXEL_AXIS)
        partial = (program // groups).to(tl.int64) * groups * channels
        if weight_partial_ptr is not None:
            tl.store(weight_partial_ptr + partial + channel, channel_dw, mask=in_channels)
        if bias_partial_ptr is not None:
            tl.store(bias_partial_ptr + partial + channel, channel_db, mask=in_channels)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + channel, mask=in_channels, other=0.0).to(tl.float32)
            channel_dw *= weight
            channel_db *= weight
        mean_gn += tl.sum(channel_dw, axis=0)
        mean_g += tl.sum(channel_db, axis=0)
    if dx_ptr is not None:
        elements = tl.cast(channels, tl.float32) * tl.cast(pixels, tl.float32)
        slope = (mean_gn / elements * rstd * rstd)[:, None]
        shift = (mean_g / elements * rstd)[:, None]
        for channel_start in range(0, channels, TILE.block_channels):
            for pixel_start in range(0, pixels, TILE.block_pixels):
                at = tile_at(channel_start, pixel_start, channels, pixels, stride_c, stride_s, WIDE, TILE)
                deviation, dz = deviation_and_dz(
                    grad_ptr + image,
                    x_ptr + image,
                    weight_ptr,
                    bias_ptr,
                    mean,
                    rstd,
                    first,
                    at,
                    SPEC,
                    ACTIVATION,
                    TILE,
                )
                dx = dz * scale_of(rstd, weight_ptr, first, at, TILE) - shift - deviation * slope
                store_at(dx_ptr + image, dx, at)


@costs(group_norm_forward_kernel)
@costs(group_norm_backward_kernel)
def group_norm_cost(x_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is read or written once; eight operations for each element of x."""
    return Cost(8 * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


def group_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    activation: Activation,
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(y, mean, variance): y with x's strides; the others [N, groups] in fp32 where `save`, else None.

    Args:
        x: [N, C, S], contiguous, or channels_last: a transposed contiguous [N, S, C]; not empty.
        weight, bias: [C], contiguous, or None; of x's dtype or float32.
        groups: of channels, a divisor of C.
        eps: added to the variance.
        activation: applied after the affine part.
        save: whether a backward will follow.
    """
    if takes_rows(x, groups):
        y, mean, variance = norm_forward(
            *(x, weight, bias, None, None, None, None, None, 0.0, eps, activation),
            per_sample=True,
            members=x.shape[1] // groups,
        )
        return (y, mean, variance) if save else (y, None, None)
    y = torch.empty_like(x)
    mean, variance = (x.new_empty((x.shape[0], groups), dtype=torch.float32) if save else None for _ in range(2))
    _problem(
        group_norm_forward_kernel, x.shape, groups, is_channels_last(x), activation, current_target()
    ).launch_named(x_ptr=x, weight_ptr=weight, bias_ptr=bias, y_ptr=y, mean_ptr=mean, variance_ptr=variance, eps=eps)
    return y, mean, variance


def group_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    groups: int,
    eps: float,
    activation: Activation,
    *,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(dx, dw, db), each None where not wanted; `grad` has the strides of x, which are as in the forward.

    `bias` may be None with a weight and without an activation: it is not read then.
    """
    if takes_rows(x, groups):
        gradients = norm_backward(
            *(grad, x, weight, bias, None, mean, variance, eps, activation),
            NormGradients(want_x, want_weight, want_bias, False),
            per_sample=True,
            given=False,
            members=x.shape[1] // groups,
        )
        return gradients[:3]
    dx = torch.empty_like(x) if want_x else None
    partials = [
        x.new_empty((x.shape[0], x.shape[1]), dtype=torch.float32) if want else None
        for want in (want_weight, want_bias)
    ]
    _problem(
        group_norm_backward_kernel, x.shape, groups, is_channels_last(x), activation, current_target()
    ).launch_named(
        grad_ptr=grad,
        x_ptr=x,
        weight_ptr=weight,
        bias_ptr=bias,
        mean_ptr=mean,
        variance_ptr=variance,
        dx_ptr=dx,
        weight_partial_ptr=partials[0],
        bias_partial_ptr=partials[1],
        eps=eps,
    )
    dw, db = (
        None if partial is None or like is None else sum_partials(partial, like.dtype)
        for partial, like in zip(partials, (weight, weight if bias is None else bias), strict=True)
    )
    return dx, dw, db


def takes_rows(x: torch.Tensor, groups: int) -> bool:
    """Whether to walk whole rows of channels: where a group is a narrow strip of each, and not one of few pixels."""
    return is_channels_last(x) and x.shape[1] // groups <= WIDEST_STRIP and x.shape[2] >= FEWEST_PIXELS


@lru_cache(maxsize=4096)
def _problem(
    kernel: Any, shape: torch.Size, groups: int, channels_last: bool, activation: Activation, target: Target
) -> Problem:
    N, C, S = shape
    tile = channel_tile(C // groups, S, channels_last, target)
    if kernel is group_norm_backward_kernel and target.kind in ("cuda", "hip"):
        tile = tile._replace(block_channels=max(1, tile.block_channels // 2))  # x, dY and dX fill the registers
    strides = strides_of(C, S, channels_last)
    elements = C // groups * S
    run = ChannelTile(1, min(LONGEST_RUN, power_of_2_at_least(elements)), 1)
    wide = is_wide(tile, C // groups, S, strides) or is_wide(run, 1, elements, (0, 1))
    return Problem(
        kernel,
        (N * groups,),
        groups,
        C // groups,
        S,
        *strides,
        SPEC=GroupNormSpec(activation.reads_output, wide, run),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4 if tile.block_channels * tile.block_pixels <= 2048 else 8,
    )

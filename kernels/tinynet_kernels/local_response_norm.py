"""Local response normalization across the channels of x [N, C, S]:

    d_c = k + alpha / size sum_j x_j^2, j from c - before to c + after within [0, C)
    y_c = x_c d_c^-beta
    dx_c = dy_c d_c^-beta - 2 alpha beta / size x_c sum_j dy_j x_j d_j^(-beta - 1), j from c - after to c + before

Tiling: one tile of channels and pixels per program; neighboring channels are read again, from the cache. Saved is d in
fp32.

Source: Krizhevsky et al. 2012.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.channel_tiles import (
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
from tinynet_kernels.tiles import Target, ceil_div, current_target


@triton.jit
def neighbor_mask(at, shift, channels, TILE: constexpr):
    """Which of a tile's elements have a channel `shift` after theirs."""
    neighbor = at.channel + shift
    return at.mask & tl.expand_dims((neighbor >= 0) & (neighbor < channels), TILE.pixel_axis)


@triton.jit
def local_response_norm_kernel(
    x_ptr,
    grad_ptr,
    scale_ptr,
    y_ptr,
    k,
    alpha,
    beta,
    before,
    after,
    channels,
    pixels,
    stride_c,
    stride_s,
    WIDE: constexpr,
    TILE: constexpr,
):
    """y of a tile and, where there is a place, the scale d; with an upstream gradient y is dx, and d is read.

    `alpha` is already divided by the window's size.
    """
    channels = widened(channels, WIDE)
    pixels = widened(pixels, WIDE)
    channel_tiles = tl.cdiv(channels, TILE.block_channels)
    pixel_tiles = tl.cdiv(pixels, TILE.block_pixels)
    program = tl.program_id(0)
    image = (program // (channel_tiles * pixel_tiles)).to(tl.int64) * channels * pixels
    channel_start = program // pixel_tiles % channel_tiles * TILE.block_channels
    pixel_start = program % pixel_tiles * TILE.block_pixels
    at = tile_at(channel_start, pixel_start, channels, pixels, stride_c, stride_s, WIDE, TILE)
    x = load_at(x_ptr + image, at)
    total = tl.zeros(x.shape, tl.float32)
    if grad_ptr is None:
        for shift in range(-before, after + 1):
            mask = neighbor_mask(at, shift, channels, TILE)
            neighbor = image + at.offset + tl.cast(shift, tl.int64) * stride_c
            values = tl.load(x_ptr + neighbor, mask=mask, other=0.0).to(tl.float32)
            total += values * values
        scale = total * alpha + k
        if scale_ptr is not None:
            store_at(scale_ptr + image, scale, at)
        store_at(y_ptr + image, x * tl.exp(-beta * tl.log(scale)), at)
    else:
        for shift in range(-after, before + 1):
            mask = neighbor_mask(at, shift, channels, TILE)
            neighbor = image + at.offset + tl.cast(shift, tl.int64) * stride_c
            values = tl.load(x_ptr + neighbor, mask=mask, other=0.0).to(tl.float32)
            values *= tl.load(grad_ptr + neighbor, mask=mask, other=0.0).to(tl.float32)
            scales = tl.load(scale_ptr + neighbor, mask=mask, other=1.0)
            total += values * tl.exp(-(beta + 1.0) * tl.log(scales))
        own_scale = tl.load(scale_ptr + image + at.offset, mask=at.mask, other=1.0)
        dx = load_at(grad_ptr + image, at) * tl.exp(-beta * tl.log(own_scale)) - 2.0 * alpha * beta * x * total
        store_at(y_ptr + image, dx, at)


@costs(local_response_norm_kernel)
def local_response_norm_cost(x_ptr: torch.Tensor, before: int, after: int, **others: Any) -> Cost:
    """Every tensor is read or written once; two operations for each element of a window."""
    return Cost(2 * (before + after + 1) * x_ptr.numel(), size_in_bytes(x_ptr, *others.values()))


def local_response_norm_forward(
    x: torch.Tensor, size: int, alpha: float, beta: float, k: float, *, save: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(y, d): y with x's strides, d like it in fp32 where `save`, else None.

    Args:
        x: [N, C, S], contiguous, or channels_last: a transposed contiguous [N, S, C]; not empty.
        size: of the window, size // 2 channels before a channel and (size - 1) // 2 after it.
        alpha, beta, k: see the module.
        save: whether a backward will follow.
    """
    y = torch.empty_like(x)
    scale = torch.empty_like(x, dtype=torch.float32) if save else None
    problem = _problem(x.shape, size, is_channels_last(x), current_target())
    problem.launch_named(x_ptr=x, grad_ptr=None, scale_ptr=scale, y_ptr=y, k=k, alpha=alpha / size, beta=beta)
    return y, scale


def local_response_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, size: int, alpha: float, beta: float, k: float
) -> torch.Tensor:
    """dx of the upstream gradient, x and d, which have the same strides."""
    dx = torch.empty_like(x)
    problem = _problem(x.shape, size, is_channels_last(x), current_target())
    problem.launch_named(x_ptr=x, grad_ptr=grad, scale_ptr=scale, y_ptr=dx, k=k, alpha=alpha / size, beta=beta)
    return dx


@lru_cache(maxsize=4096)
def _problem(shape: torch.Size, size: int, channels_last: bool, target: Target) -> Problem:
    N, C, S = shape
    tile = channel_tile(C, S, channels_last, target)
    strides = strides_of(C, S, channels_last)
    return Problem(
        local_response_norm_kernel,
        (N * ceil_div(C, tile.block_channels) * ceil_div(S, tile.block_pixels),),
        size // 2,
        (size - 1) // 2,
        C,
        S,
        *strides,
        WIDE=is_wide(tile, C, S, strides),
        TILE=tile,
        num_warps=4 if tile.block_channels * tile.block_pixels <= 2048 else 8,
    )

"""Weight gradient of convolutions of images with few channels, on a CPU, from dY or dZ; see `patches.py`.

    dW_r [S C, K] = sum over n, p, q of patch_r[n, p, q]^T dZ[n, p, q],   dZ = dY act'

One product for each row of taps. A program walks over all of them with one share of the pixels, whose dY stays in the
second-level cache, and stores its sums in an fp32 workspace that is added in a fixed order. x is a padded copy.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.patches import padded_sides
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Sizes, weights_in
from tinynet_kernels.conv.window import is_wide_convolution, pixel_gradients, windows_of
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.tiles import GemmTile, Target, ceil_div, power_of_2_at_least

PATCHES_SPLIT_BYTES = 512 << 10  # of dY: half of a second-level cache


@triton.jit
def convolution_patches_weight_gradient_kernel(
    x_ptr,
    dy_ptr,
    saved_ptr,
    argmax_ptr,
    dw_ptr,
    db_ptr,
    pixels,
    H,
    W,
    P,
    Q,
    K,
    stride_dw_channel,
    stride_dw_tap,
    pixels_per_split,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dW[split] [K, ...] of block_n output channels per program, a step is block_m pixels; grid axes channels, splits.

    dY, saved, argmax and db[split] as in `weight_gradient.convolution_weight_gradient_runs_kernel`.
    """
    C: constexpr = WINDOW.group_inputs
    R: constexpr = WINDOW.R
    LENGTH: constexpr = WINDOW.S * WINDOW.group_inputs
    TAPS: constexpr = 4 if WINDOW.pool else 1
    pixels = widened(pixels, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    K = widened(K, WINDOW.wide)
    channel = tl.program_id(0) * TILE.block_n
    split = tl.program_id(1)
    first = widened(split, WINDOW.wide) * pixels_per_split
    last = min(first + pixels_per_split, pixels)
    pixel = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    in_columns = column < K - channel
    place = tl.arange(0, TILE.block_k)
    in_patch = place < LENGTH
    dy_offset = (pixel // TAPS * K)[:, None] + column[None, :]
    dw_offset = (place // C * stride_dw_tap + place % C * stride_dw_channel)[:, None]
    dw_offset += (column * (R * LENGTH))[None, :]
    first_channel = split.to(tl.int64) * K + channel
    for r in range(R):
        dw = tl.full((TILE.block_k, TILE.block_n), 0.0, tl.float32)
        for start in range(first, last, TILE.block_m):
            windows = windows_of(x_ptr, 0, start, last, 1, H, W, C, 1, P, Q, WINDOW, TILE.block_m)
            patch = windows.base + r * WINDOW.dilation_h * W * C
            in_tile = pixel < last - start
            x_offset = windows.offset[:, None] + place[None, :]
            x = tl.load(patch + x_offset, mask=in_tile[:, None] & in_patch[None, :], other=0.0)
            base = tl.cast(start // TAPS, tl.int64) * K + channel
            mask = in_tile[:, None] & in_columns[None, :]
            dz = pixel_gradients(dy_ptr, saved_ptr, argmax_ptr, base, dy_offset, mask, pixel % TAPS, ACTIVATION)
            dw = tl.dot(tl.trans(x), dz.to(x_ptr.dtype.element_ty), dw, input_precision=WINDOW.precision)
        mask = in_patch[:, None] & in_columns[None, :]
        row = dw_ptr + first_channel * (R * LENGTH) + r * WINDOW.S * stride_dw_tap
        tl.store(row + dw_offset, dw.to(dw_ptr.dtype.element_ty), mask=mask)
    if db_ptr is not None:
        db = tl.full((TILE.block_n,), 0.0, tl.float32)
        for start in range(first, last, TILE.block_m):
            base = tl.cast(start // TAPS, tl.int64) * K + channel
            mask = (pixel < last - start)[:, None] & in_columns[None, :]
            dz = pixel_gradients(dy_ptr, saved_ptr, argmax_ptr, base, dy_offset, mask, pixel % TAPS, ACTIVATION)
            db += tl.sum(dz, axis=0)
        tl.store(db_ptr + first_channel + column, db, mask=in_columns)


@costs(convolution_patches_weight_gradient_kernel)
def patches_weight_gradient_cost(dw_ptr: torch.Tensor, pixels: int, **others: Any) -> Cost:
    """2 N P Q K R S C operations; x, dY and its sources read, every split of dW and db written."""
    return Cost(2 * pixels * weights_in(dw_ptr), size_in_bytes(dw_ptr, *others.values()))


def patches_weight_tile(pixels: int, columns: int, length: int, dtype: torch.dtype) -> GemmTile:
    """The tile of a weight gradient: block_m pixels, block_n output channels, patches of block_k values."""
    block_k = max(8 if dtype is torch.float32 else 16, power_of_2_at_least(length))
    block_n = min(128, max(16, power_of_2_at_least(columns)))
    return GemmTile(min(256, max(16, power_of_2_at_least(pixels))), block_n, block_k, 4, 1)


def patches_weight_gradient_problem(
    shape: ConvolutionShape,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    pool: bool,
    dtype: torch.dtype,
    precision: str,
    activation: Activation,
    channels_last: bool,
    target: Target,
) -> tuple[Problem, int]:
    """The launch of `weight_gradient.convolution_weight_gradient` where `multiplies_patches`, and its splits."""
    pixels, length = shape.pixels(pool), shape.S * shape.C
    tile = patches_weight_tile(pixels, shape.K, length, dtype)
    blocks = ceil_div(shape.K, tile.block_n)
    runs = max(1, PATCHES_SPLIT_BYTES // (tile.block_n * dtype.itemsize * tile.block_m))
    runs = min(runs, max(1, pixels * blocks // (tile.block_m * target.processors)))
    pixels_per_split = runs * tile.block_m
    H, W = padded_sides(shape, spec)
    wide = is_wide_convolution(
        pixels + pixels_per_split,
        pixels // shape.N,
        tile.block_m,
        max(H * W * shape.C, shape.image_elements),
        ((tile.block_m, shape.K), (tile.block_n, 1)),
        ((tile.block_n, shape.R * length), (shape.taps * shape.C, 1)),
    )
    unpadded = spec._replace(padding=(0, 0), padding_end=(0, 0))
    options = {"pool": pool, "precision": precision, "group_inputs": shape.C}
    splits = ceil_div(pixels, pixels_per_split)
    problem = Problem(
        convolution_patches_weight_gradient_kernel,
        (blocks, splits),
        *(pixels, H, W, shape.P, shape.Q, shape.K),
        *((1, shape.C) if channels_last else (shape.taps, 1)),
        pixels_per_split,
        WINDOW=unpadded.compiled(kernel_size, wide=wide, **options),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
    )
    return problem, splits

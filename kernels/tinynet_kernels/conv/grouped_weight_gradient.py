"""Weight gradient of convolutions in many thin groups, on a CPU, from dZ; see `grouped.py`.

    dW[g D + j, d, t, ...] = sum over n, o, ... of x[n, g D + d, o stride + t dilation - padding, ...] dZ[n, g D + j, o]

For each tap a product in a batch of groups, [G, D, pixels] x [G, pixels, D]. A program walks over all taps with one
share of the pixels, whose x and dZ stay in the second-level cache, and stores its sums in an fp32 workspace that is
added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.grouped import GroupTile
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Shape, Sizes, weights_in
from tinynet_kernels.conv.window import (
    elements_before,
    inside,
    is_wide_convolution,
    offset_in,
    output_position,
    pixel_position,
    pixels_of_image,
)
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.tiles import Target, ceil_div, power_of_2_at_least

SPLIT_BYTES = 512 << 10  # of x and dZ: half of a second-level cache


@triton.jit
def convolution_groups_weight_gradient_kernel(
    x_ptr,
    dz_ptr,
    dw_ptr,
    pixels,
    D,
    H,
    W,
    C,
    Z,
    P,
    Q,
    pixels_per_split,
    stride_dw_channel,
    stride_dw_tap,
    WINDOW: constexpr,
    TILE: constexpr,
):
    """dW[split] [C, ...] of block_groups groups per program, over the split's runs of output pixels; fp32."""
    M: constexpr = TILE.block_pixels
    G: constexpr = TILE.block_groups
    WIDTH: constexpr = TILE.width
    TAPS: constexpr = WINDOW.T * WINDOW.R * WINDOW.S
    pixels = widened(pixels, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    C = widened(C, WINDOW.wide)
    channel = tl.program_id(0) * (G * WIDTH)
    split = tl.program_id(1)
    first = widened(split, WINDOW.wide) * pixels_per_split
    last = min(first + pixels_per_split, pixels)
    g = tl.arange(0, G)[:, None, None]
    d = tl.arange(0, WIDTH)
    in_groups = g < (C - channel) // WIDTH
    channels = g * WIDTH + d[None, None, :]
    pixel = tl.arange(0, M)
    stored = (g * WIDTH + d[None, None, :]) * (TAPS * WIDTH) + d[None, :, None] * stride_dw_channel
    dw = dw_ptr + (split.to(tl.int64) * C + channel) * (TAPS * WIDTH)
    for tap in range(TAPS):
        t, r, s = pixel_position(tap, WINDOW.R, WINDOW.S)
        total = tl.zeros((G, WIDTH, WIDTH), tl.float32)
        for start in range(first, last, M):
            image, o, p, q = output_position(start + pixel, Z, P, Q, WINDOW)
            first_image = start // pixels_of_image(Z, P, Q, WINDOW)
            depth = o * WINDOW.stride_d + (t * WINDOW.dilation_d - WINDOW.padding_d)
            h = p * WINDOW.stride_h + (r * WINDOW.dilation_h - WINDOW.padding_h)
            w = q * WINDOW.stride_w + (s * WINDOW.dilation_w - WINDOW.padding_w)
            valid = inside(h, H) & inside(w, W)
            if WINDOW.volume:
                valid = valid & inside(depth, D)
            # All of their shape before a conjunction: the CPU engine sees bounds of pixels and groups.
            in_tile = tl.broadcast_to(pixel[None, :, None] < last - start, (G, M, WIDTH))
            in_tile = in_tile & tl.broadcast_to(in_groups, (G, M, WIDTH))
            mask = in_tile & tl.broadcast_to(valid[None, :, None], (G, M, WIDTH))
            offset = offset_in(image - first_image, depth, h, w, D, H, W, WINDOW) * C
            x_base = x_ptr + elements_before(first_image, D, H, W, C, WINDOW) + channel
            x = tl.load(x_base + (offset[None, :, None] + channels), mask=mask, other=0.0)
            dz_base = dz_ptr + tl.cast(start, tl.int64) * C + channel
            dz = tl.load(dz_base + ((pixel * C)[None, :, None] + channels), mask=in_tile, other=0.0)
            total = tl.dot(tl.trans(x, (0, 2, 1)), dz, total, input_precision=WINDOW.precision)
        tl.store(dw + tap * stride_dw_tap + stored, total, mask=tl.broadcast_to(in_groups, (G, WIDTH, WIDTH)))


@costs(convolution_groups_weight_gradient_kernel)
def groups_weight_gradient_cost(dz_ptr: torch.Tensor, dw_ptr: torch.Tensor, **others: torch.Tensor) -> Cost:
    """2 N Z P Q K T R S C / groups operations; x and dZ read, every split of dW written."""
    pixels = dz_ptr.numel() // dz_ptr.shape[1]
    return Cost(2 * pixels * weights_in(dw_ptr), size_in_bytes(dz_ptr, dw_ptr, *others.values()))


def groups_weight_gradient_problem(
    x_shape: Shape,
    dz_shape: Shape,
    dtype: torch.dtype,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    channels_last: bool,
    target: Target,
) -> tuple[Problem, int]:
    """The launch of `weight_gradient.convolution_weight_gradient` where `multiplies_groups`, and its splits."""
    shape, spec, kernel_size = ConvolutionShape.of(x_shape, dz_shape, kernel_size, spec)
    pixels, width = shape.pixels(pool=False), shape.group_inputs
    tile = group_weight_tile(pixels, shape.groups, width)
    channels = tile.block_groups * width
    blocks = ceil_div(shape.C, channels)
    runs = max(1, SPLIT_BYTES // (2 * channels * dtype.itemsize * tile.block_pixels))
    runs = min(runs, max(1, pixels * blocks // (tile.block_pixels * target.processors)))
    pixels_per_split = runs * tile.block_pixels
    splits = ceil_div(pixels, pixels_per_split)
    wide = is_wide_convolution(
        pixels + pixels_per_split,
        pixels // shape.N,
        tile.block_pixels,
        shape.image_elements,
        ((tile.block_pixels, shape.C), (channels, 1)),
        ((channels, shape.taps * width), (shape.taps * width, 1)),
    )
    problem = Problem(
        convolution_groups_weight_gradient_kernel,
        (blocks, splits),
        pixels,
        *shape.sides[:7],
        pixels_per_split,
        *((1, width) if channels_last else (shape.taps, 1)),
        WINDOW=spec.compiled(kernel_size, wide=wide),
        TILE=tile,
        num_warps=4,
    )
    return problem, splits


def group_weight_tile(pixels: int, groups: int, width: int) -> GroupTile:
    """The tile of a weight gradient in `groups` of `width` channels."""
    block_groups = min(128 // width, max(16 // width, power_of_2_at_least(groups)))
    return GroupTile(min(256, max(32, power_of_2_at_least(pixels))), block_groups, width)

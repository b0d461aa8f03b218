"""Convolutions of images with few channels, on a CPU: one product for each row of taps.

    y[n, k, p, q] = sum over r of patch_r[n, p, q] W_r,   patch_r[n, p, q] = x[n, p stride + r dilation, q stride ...]

In channels_last the S taps of one row of a window, with all their channels, are S C consecutive values: a first layer's
three channels alone would be too thin a product. x is copied with its padding first, which is little beside y, so that
every patch lies in memory as it is and no tap needs a condition. W_r [S C, K] are the weights of one row of taps.
A program computes a [block_m pixels, block_n channels] tile.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Shape, Sizes
from tinynet_kernels.conv.window import is_wide_convolution, store_activated, windows_of, with_bias
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import empty_channels_last
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import GemmTile, Target, ceil_div, power_of_2_at_least

_MOST_CHANNELS = 4
_FEWEST_TAPS = 5  # of one channel in a row: a product of fewer takes longer than no product
_PADDED_LINES = 8  # of one program


@triton.jit
def pad_lines_kernel(
    x_ptr,
    padded_ptr,
    lines,
    H,
    padded_H,
    length,
    padded_length,
    before_h,
    before,
    WIDE: constexpr,
    BLOCK_LINES: constexpr,
    BLOCK: constexpr,
):
    """padded[n, h] = zeros, x[n, h - before_h], zeros: lines of `padded_length` values with `before` zeros first."""
    start = tl.program_id(0) * BLOCK_LINES
    line = start + tl.arange(0, BLOCK_LINES)
    image = line // padded_H
    h = line % padded_H - before_h
    valid = (line < lines) & (h >= 0) & (h < H)
    length = widened(length, WIDE)
    source = x_ptr + ((image.to(tl.int64) * H + h) * length - before)[:, None]
    target = padded_ptr + (line.to(tl.int64) * padded_length)[:, None]
    for first in range(0, padded_length, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = (place >= before) & (place < before + length)
        x = tl.load(source + place[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        tl.store(target + place[None, :], x, mask=(line < lines)[:, None] & (place < padded_length)[None, :])


@costs(pad_lines_kernel)
def pad_cost(**arguments: torch.Tensor) -> Cost:
    """x read, the padded image written."""
    return Cost(0, size_in_bytes(*arguments.values()))


@triton.jit
def convolution_patches_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    z_ptr,
    argmax_ptr,
    partial_ptr,
    pixels,
    H,
    W,
    P,
    Q,
    K,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x * W + b) of a padded x [N, H, W, WINDOW.group_inputs], with K output channels.

    As `forward.convolution_forward_kernel` otherwise.
    """
    LENGTH: constexpr = WINDOW.S * WINDOW.group_inputs
    R: constexpr = WINDOW.R
    pixels = widened(pixels, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    pixel_start = widened(tl.program_id(0), WINDOW.wide) * TILE.block_m
    column_start = tl.program_id(1) * TILE.block_n
    columns_left = K - column_start
    column = tl.arange(0, TILE.block_n) % columns_left  # past the end: copies, never stored
    C: constexpr = WINDOW.group_inputs
    windows = windows_of(x_ptr, 0, pixel_start, pixels, 1, H, W, C, 1, P, Q, WINDOW, TILE.block_m)
    place = tl.arange(0, TILE.block_k)
    in_patch = place < LENGTH
    patch_offset = windows.offset[:, None] + place[None, :]
    weight_base = weight_ptr + column_start.to(tl.int64) * (R * LENGTH)
    weight_offset = place[:, None] + (column * (R * LENGTH))[None, :]
    z = tl.full((TILE.block_m, TILE.block_n), 0.0, tl.float32)
    patch_base = windows.base
    for _ in range(R):
        a = tl.load(patch_base + patch_offset, mask=windows.in_tile[:, None] & in_patch[None, :], other=0.0)
        b = tl.load(weight_base + weight_offset, mask=in_patch[:, None], other=0.0)
        z = tl.dot(a, b, z, input_precision=WINDOW.precision)
        patch_base += WINDOW.dilation_h * W * C
        weight_base += LENGTH
    z = with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, column_start, columns_left, WINDOW)
    store_activated(
        z, y_ptr, z_ptr, argmax_ptr, partial_ptr, pixel_start, pixels, column_start, columns_left, K, ACTIVATION, WINDOW
    )


def multiplies_patches(channels: int, kernel_size: Sizes, spec: ConvolutionSpec, target: Target) -> bool:
    """Whether a convolution of planes with so many channels is computed here; of one and few taps in `depthwise`."""
    fits = channels <= _MOST_CHANNELS and spec.groups == 1 and len(kernel_size) == 2
    taps = kernel_size[1]
    return target.kind == "cpu" and fits and spec.dilation[1] == 1 and taps >= (2 if channels > 1 else _FEWEST_TAPS)


def padded_sides(shape: ConvolutionShape, spec: ConvolutionSpec) -> tuple[int, int]:
    """Rows and columns of the padded image: those that windows read."""
    (stride_h, stride_w), dilation_h = spec.stride, spec.dilation[0]
    return (shape.P - 1) * stride_h + (shape.R - 1) * dilation_h + 1, (shape.Q - 1) * stride_w + shape.S


def patches_tile(pixels: int, columns: int, length: int, dtype: torch.dtype, target: Target) -> GemmTile:
    """The tile of [pixels, length] x [length, columns]."""
    # Each program packs the weights: few long ones.
    block_m = min(512, max(16, power_of_2_at_least(pixels)))
    block_n = min(128, max(16, power_of_2_at_least(columns)))
    return GemmTile(block_m, block_n, max(8 if dtype is torch.float32 else 16, power_of_2_at_least(length)), 4, 1)


def patches_problem(
    shape: ConvolutionShape,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    dtype: torch.dtype,
    activation: Activation,
    pool: bool,
    epsilon: float,
    target: Target,
) -> Problem:
    """The launch of `forward.convolution_forward` where `multiplies_patches`, with x as `padded_image`."""
    pixels, length = shape.pixels(pool), shape.S * shape.C
    tile = patches_tile(pixels, shape.K, length, dtype, target)
    H, W = padded_sides(shape, spec)
    wide = is_wide_convolution(
        pixels,
        pixels // shape.N,
        tile.block_m,
        max(H * W * shape.C, shape.image_elements),
        ((tile.block_m, shape.K), (tile.block_n, 1)),
        ((tile.block_n, shape.R * length), (tile.block_k, 1)),
    )
    unpadded = spec._replace(padding=(0, 0), padding_end=(0, 0))
    return Problem(
        convolution_patches_forward_kernel,
        (ceil_div(pixels, tile.block_m), ceil_div(shape.K, tile.block_n)),
        *(pixels, H, W, shape.P, shape.Q, shape.K),
        WINDOW=unpadded.compiled(kernel_size, wide=wide, pool=pool, epsilon=epsilon, group_inputs=shape.C),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=4,
    )


@lru_cache(maxsize=4096)
def _padding_problem(x_shape: Shape, kernel_size: Sizes, spec: ConvolutionSpec) -> tuple[Problem, Shape] | None:
    """The copy of x [N, C, *sizes] with its padding, and the copy's shape; None where windows read x alone."""
    output = (*x_shape[:1], 1, *spec.output_size(x_shape[2:], kernel_size))
    shape, spec, kernel_size = ConvolutionShape.of(x_shape, output, kernel_size, spec)
    H, W = padded_sides(shape, spec)
    if (H, W) == (shape.H, shape.W) and not spec.is_padded:
        return None
    length, padded_length = shape.W * shape.C, W * shape.C
    problem = Problem(
        pad_lines_kernel,
        (ceil_div(shape.N * H, _PADDED_LINES),),
        *(shape.N * H, shape.H, H, length, padded_length, spec.padding[0], spec.padding[1] * shape.C),
        WIDE=exceed_int32(((_PADDED_LINES, padded_length),)),
        BLOCK_LINES=_PADDED_LINES,
        BLOCK=min(1024, power_of_2_at_least(padded_length)),
        num_warps=4,
    )
    return problem, (shape.N, shape.C, H, W)


def padded_image(x: torch.Tensor, kernel_size: Sizes, spec: ConvolutionSpec) -> torch.Tensor:
    """x [N, C, *sizes], channels_last, as planes with the padding that windows read; x itself where they read no other.

    Args:
        x: of `multiplies_patches`.
        kernel_size: of as many axes.
        spec: of as many axes.
    """
    copy = _padding_problem(x.shape, tuple(kernel_size), spec)
    if copy is None:
        return x
    problem, shape = copy
    padded = empty_channels_last(x, shape)
    problem.launch(x, padded)
    return padded

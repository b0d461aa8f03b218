"""Convolution: y = act(x * W + b), x [N, C, D, H, W], W [K, C / groups, T, R, S], y [N, K, Z, P, Q].

    y[n, k, o, p, q] = sum over c, t, r, s of x[n, c, o stride + t dilation - padding, p ..., q ...] W[k, c, t, r, s]

of three spatial axes, or of the last two or one (`spec.py`). Everything here is channels_last: x lies as
[N, D, H, W, C], W as [K, T, R, S, C], y as [N, Z, P, Q, K] (`layout.py`). Five kernels compute the forward, by the
channels of one group; all end in the same epilogue of bias, activation and, where a normalization with constant
statistics follows, that:

    16 and more     an implicit matrix product [N Z P Q, C T R S] x [C T R S, K]: no im2col buffer is
                    materialized. One step is one tap of block_k channels (`window.sum_over_taps`)
    2 to 15         the same product, but one step is block_k (tap, channel) pairs: a tap alone would be too thin
    1               no product: taps unrolled (`depthwise`)
    2 to 4          on a CPU, without groups: a step is one row of taps with all channels (`patches.py`); one
                    channel too, with windows of 5 columns and more
    2, 4, 8, 16     on a CPU, where groups have as many outputs: products side by side (`grouped.py`)

Where the tiles of 16 and more channels would leave most of a GPU idle, their steps are split over programs, and a
second launch adds the parts and applies the epilogue (`finish.py`). The sums of fewer channels are short.

Of 3 x 3 taps and stride 1, Winograd's algorithm takes less time on CPUs (`winograd/`).

A convolution of one tap with stride 1 and no padding is a linear layer of pixels (`linear.py`). The backward is in
`input_gradient.py` and `weight_gradient.py`. Source: the definition of torch.nn.functional.conv3d; implicit GEMM as in
cuDNN (Chetlur et al. 2014, arXiv:1410.0759).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise.general import single_channel_forward_kernel
from tinynet_kernels.conv.depthwise.launch import single_channel_problem, taps_first
from tinynet_kernels.conv.finish import finish_convolution
from tinynet_kernels.conv.grouped import convolution_groups_forward_kernel, groups_problem, multiplies_groups
from tinynet_kernels.conv.patches import (
    convolution_patches_forward_kernel,
    multiplies_patches,
    padded_image,
    patches_problem,
)
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Normalization, Shape
from tinynet_kernels.conv.tiles import (
    FEW_CHANNELS,
    convolution_few_channels_tile,
    convolution_precision,
    convolution_tile,
)
from tinynet_kernels.conv.window import (
    Filters,
    Part,
    Taps,
    all_channels,
    inside,
    is_wide_convolution,
    line_bits,
    pixel_position,
    store_activated,
    store_part,
    sum_over_taps,
    windows_of,
    with_bias,
)
from tinynet_kernels.conv.winograd.check import is_right
from tinynet_kernels.conv.winograd.forward import WinogradConvolution, winograd_convolution
from tinynet_kernels.conv.winograd.tiles import asks_for_full_precision, is_eligible, winograd_tile
from tinynet_kernels.gemm import GROUP, tile_start
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.linear import linear_forward_problem
from tinynet_kernels.offsets import widened
from tinynet_kernels.operand_layout import channels_last_strides
from tinynet_kernels.split_product import SplitProduct
from tinynet_kernels.tiles import (
    Target,
    ceil_div,
    current_target,
    every_register,
    matmul_precision,
    product_splits,
)


@triton.jit
def convolution_forward_kernel(
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
    D,
    H,
    W,
    Z,
    P,
    Q,
    group_inputs,
    group_outputs,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """y = act(x * W + b), one [block_m pixels, block_n channels] tile per program; the second grid axis is the group.

    With a mean, x * W + b is normalized before the activation, as `window.with_bias` says.
    Where WINDOW.pool, `pixels` counts those that a 2 x 2 window holds, and y is the largest of each window.
    WINDOW.even says that block_k divides the group's input channels.
    Where WINDOW.split, the third grid axis is the part, and y receives x * W alone, fp32 [parts, pixels, K].
    """
    pixels = widened(pixels, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    group_inputs = widened(group_inputs, WINDOW.wide)
    C = all_channels(group_inputs, WINDOW)
    K = all_channels(widened(group_outputs, WINDOW.wide), WINDOW)
    pixel_start, column_start = tile_start(tl.program_id(0), pixels, group_outputs, WINDOW, TILE)
    group = tl.program_id(1)
    first_output = group * group_outputs
    out_channel = first_output.to(tl.int64) + column_start
    columns_left = group_outputs - column_start
    column = tl.arange(0, TILE.block_n) % columns_left  # past the end: copies, never stored
    windows = windows_of(x_ptr, group * group_inputs, pixel_start, pixels, D, H, W, C, Z, P, Q, WINDOW, TILE.block_m)
    taps = Taps(WINDOW.T, WINDOW.R, WINDOW.S)
    weights = WINDOW.T * WINDOW.R * WINDOW.S * group_inputs
    filters = Filters(
        weight_ptr + (first_output + column_start).to(tl.int64) * weights,
        tl.arange(0, TILE.block_k)[:, None] + column[None, :] * weights,
        next_tap=group_inputs,
        next_row=group_inputs,
        next_plane=group_inputs,
        next_channels=TILE.block_k - weights + group_inputs,
    )
    part = Part(tl.program_id(2), tl.num_programs(2))
    z = sum_over_taps(windows, filters, taps, group_inputs, part, WINDOW, TILE)
    if WINDOW.split:
        store_part(z, y_ptr, part, pixel_start, pixels, out_channel, columns_left, K)
    else:
        z = with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, out_channel, columns_left, WINDOW)
        store_activated(
            z,
            y_ptr,
            z_ptr,
            argmax_ptr,
            partial_ptr,
            pixel_start,
            pixels,
            out_channel,
            columns_left,
            K,
            ACTIVATION,
            WINDOW,
        )


@triton.jit
def convolution_few_channels_kernel(
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
    D,
    H,
    W,
    Z,
    P,
    Q,
    group_outputs,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """As `convolution_forward_kernel`, with steps of block_k (tap, channel) pairs of WINDOW.group_inputs channels."""
    T: constexpr = WINDOW.T
    R: constexpr = WINDOW.R
    S: constexpr = WINDOW.S
    REDUCTION: constexpr = T * R * S * WINDOW.group_inputs
    BLOCK_PIXELS: constexpr = TILE.block_m
    BLOCK_K: constexpr = TILE.block_n
    BLOCK_REDUCTION: constexpr = TILE.block_k
    pixels = widened(pixels, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    W = widened(W, WINDOW.wide)
    P = widened(P, WINDOW.wide)
    C = all_channels(WINDOW.group_inputs, WINDOW)
    K = all_channels(widened(group_outputs, WINDOW.wide), WINDOW)
    pixel_start, column_start = tile_start(tl.program_id(0), pixels, group_outputs, WINDOW, TILE)
    group = tl.program_id(1)
    first_output = group * group_outputs
    out_channel = first_output.to(tl.int64) + column_start
    columns_left = group_outputs - column_start
    column = tl.arange(0, BLOCK_K) % columns_left  # past the end: copies, never stored
    first_input = group * WINDOW.group_inputs
    windows = windows_of(x_ptr, first_input, pixel_start, pixels, D, H, W, C, Z, P, Q, WINDOW, BLOCK_PIXELS)
    BITMASK: constexpr = T <= 32 and R <= 32 and S <= 32
    if BITMASK:
        row_bits = tl.where(windows.in_tile, line_bits(windows.h, H, R, WINDOW.dilation_h), 0)
        column_bits = line_bits(windows.w, W, S, WINDOW.dilation_w)
        if WINDOW.volume:
            plane_bits = line_bits(windows.d, D, T, WINDOW.dilation_d)
    weight_base = weight_ptr + (first_output + column_start).to(tl.int64) * REDUCTION

    z = tl.zeros((BLOCK_PIXELS, BLOCK_K), tl.float32)
    for start in range(0, REDUCTION, BLOCK_REDUCTION):
        pair = start + tl.arange(0, BLOCK_REDUCTION)
        in_reduction = pair < REDUCTION
        tap = pair // WINDOW.group_inputs
        t, r, s = pixel_position(tap, R, S)
        if BITMASK:
            bits = (row_bits[:, None] >> r[None, :]) & (column_bits[:, None] >> s[None, :])
            if WINDOW.volume:
                bits = bits & (plane_bits[:, None] >> t[None, :])
            valid = tl.cast(bits & 1, tl.int1)
        else:
            valid = inside(windows.h[:, None] + (r * WINDOW.dilation_h)[None, :], H) & windows.in_tile[:, None]
            valid = valid & inside(windows.w[:, None] + (s * WINDOW.dilation_w)[None, :], W)
            if WINDOW.volume:
                valid = valid & inside(windows.d[:, None] + (t * WINDOW.dilation_d)[None, :], D)
        tap_offset = (r * WINDOW.dilation_h * W + s * WINDOW.dilation_w) * C + pair % WINDOW.group_inputs
        if WINDOW.volume:
            tap_offset += t * WINDOW.dilation_d * H * W * C
        x_offset = windows.offset[:, None] + tap_offset[None, :]
        a = tl.load(windows.base + x_offset, mask=valid & in_reduction[None, :], other=0.0)
        b = tl.load(weight_base + (column[None, :] * REDUCTION + pair[:, None]), mask=in_reduction[:, None], other=0.0)
        z = tl.dot(a, b, z, input_precision=WINDOW.precision)

    z = with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, out_channel, columns_left, WINDOW)
    store_activated(
        z, y_ptr, z_ptr, argmax_ptr, partial_ptr, pixel_start, pixels, out_channel, columns_left, K, ACTIVATION, WINDOW
    )


class Results(NamedTuple):
    """What a forward returns, all channels_last.

    Attributes:
        y: [N, K, *sizes], or [N, K, P // 2, Q // 2] where it is pooled.
        saved: y itself, z in y's shape or None, as the derivative of the activation reads; None without `save`.
        argmax: with `pool` and `save` the largest tap of each window, as of `pool.max_pool2d_forward`.
        partial: count, mean and sum of squared deviations of each tile of pixels, fp32 [tiles, 3, K].
    """

    y: torch.Tensor
    saved: torch.Tensor | None
    argmax: torch.Tensor | None
    partial: torch.Tensor | None


NO_NORMALIZATION = Normalization(None, None, None, None, 0.0)


@costs(convolution_forward_kernel)
@costs(convolution_few_channels_kernel)
@costs(single_channel_forward_kernel)
@costs(convolution_groups_forward_kernel)
@costs(convolution_patches_forward_kernel)
def convolution_forward_cost(weight_ptr: torch.Tensor, pixels: int, **others: Any) -> Cost:
    """2 N Z P Q K T R S C / groups operations; x, W and b read, y (and z, and argmax) written."""
    return Cost(2 * pixels * weight_ptr.numel(), size_in_bytes(weight_ptr, *others.values()))


def convolution_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    *,
    save: bool,
    pool: bool = False,
    norm: Normalization | None = None,
    want_statistics: bool = False,
) -> Results:
    """y = act(x * W + b), and what else is wanted.

    Args:
        x: [N, C, *sizes], channels_last.
        weight: [K, C / groups, *kernel size], channels_last, x's dtype.
        bias: [K] or None.
        spec: stride, padding, dilation, groups; of one to three spatial axes, as the tensors.
        activation: fused into the epilogue.
        save: whether a backward will follow.
        pool: whether y is the largest of each 2 x 2 window, [N, K, P // 2, Q // 2]; of two axes, both at least 2.
        norm: applied to x * W + b before the activation; None without.
        want_statistics: whether to compute those of y, which is then not pooled. A CPU leaves those of a linear layer
            of pixels to the normalization: its product is faster, and y still in the cache.
    """
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    target, dtype = current_target(), x.dtype
    mean, variance, scale, shift, epsilon = norm or NO_NORMALIZATION
    plain = norm is None and (not want_statistics or target.kind == "cpu")
    precisions = matmul_precision(dtype, target), convolution_precision(dtype, target)
    forward = _forward(x.shape, weight.shape, dtype, precisions, spec, activation, pool, plain, epsilon, target)
    y = x.new_empty_strided(forward.shape, forward.stride)
    z = torch.empty_like(y) if save and activation.reads_input else None
    saved = y if save and activation.reads_output else z
    if forward.is_linear:
        forward.problem.launch(x, weight, bias, y, z)
        return Results(y, saved, None, None)
    argmax = torch.empty_like(y, dtype=torch.int8) if pool and save else None
    K = weight.shape[0]
    epilogue = {
        "bias_ptr": bias,
        "mean_ptr": mean,
        "variance_ptr": variance,
        "scale_ptr": scale,
        "shift_ptr": shift,
        "y_ptr": y,
        "z_ptr": z,
        "argmax_ptr": argmax,
    }
    if forward.is_eligible:
        exact = asks_for_full_precision()
        winograd = _winograd_problem(x.shape, weight.shape, dtype, spec, activation, pool, epsilon, exact, target)
        if winograd is not None:
            partial = y.new_empty((winograd.pixel_tiles, 3, K), dtype=torch.float32) if want_statistics else None
            infinite = winograd.launch(x, weight, **epilogue, partial_ptr=partial)
            again = None if want_statistics else forward.problem.launch
            if is_right(infinite, again, x, weight, *epilogue.values(), None):
                return Results(y, saved, argmax, partial)
    partial = y.new_empty((forward.tiles, 3, K), dtype=torch.float32) if want_statistics else None
    if forward.reads_padded:
        x = padded_image(x, weight.shape[2:], spec)
    if forward.reads_taps_first:
        weight = taps_first(weight)
    forward.problem.launch_named(x_ptr=x, weight_ptr=weight, **epilogue, partial_ptr=partial)
    return Results(y, saved, argmax, partial)


class Forward(NamedTuple):
    """A forward without its tensors.

    Attributes:
        shape, stride: of y, channels_last.
        problem: the launch or launches by the definition.
        tiles: of pixels that it has.
        is_linear: whether it is a linear layer of pixels, which is given x, W, bias, y and z alone.
        is_eligible: whether Winograd's algorithm can compute the same.
        reads_padded: whether the problem reads x as of `padded_image`.
        reads_taps_first: whether it reads W as of `taps_first`.
    """

    shape: Shape
    stride: Shape
    problem: Problem | SplitProduct
    tiles: int
    is_linear: bool = False
    is_eligible: bool = False
    reads_padded: bool = False
    reads_taps_first: bool = False


@lru_cache(maxsize=4096)
def _forward(
    x_shape: Shape,
    weight_shape: Shape,
    dtype: torch.dtype,
    precisions: tuple[str, str],
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
    plain: bool,
    epsilon: float,
    target: Target,
) -> Forward:
    """The `Forward` of channels_last operands.

    Args:
        precisions: of linear layers and of convolutions.
        plain: whether a linear layer of pixels may compute it, which knows neither normalization nor statistics.
    """
    kernel_size = weight_shape[2:]
    if plain and not pool and spec.is_pointwise(kernel_size):
        (N, C, *size), K = x_shape, weight_shape[0]
        sizes, shape = (N * math.prod(size), K, C), (N, K, *size)
        problem = linear_forward_problem(sizes, (C, 1), (C, 1), dtype, precisions[0], activation, target)
        return Forward(shape, channels_last_strides(shape), problem, 0, is_linear=True)
    problem, shape, tiles = _forward_problem(
        x_shape, weight_shape, dtype, precisions[1], spec, activation, pool, epsilon, target
    )
    stride, eligible = channels_last_strides(shape), is_eligible(spec, kernel_size, target)
    if isinstance(problem, SplitProduct):
        return Forward(shape, stride, problem, tiles, is_eligible=eligible)
    reads_padded = problem.kernel is convolution_patches_forward_kernel
    reads_taps_first = not reads_padded and weight_shape[1] == 1 and not problem.constants["WINDOW"].taps_last
    return Forward(shape, stride, problem, tiles, False, eligible, reads_padded, reads_taps_first)


@lru_cache(maxsize=4096)
def _winograd_problem(
    x_shape: Shape,
    weight_shape: Shape,
    dtype: torch.dtype,
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
    epsilon: float,
    exact: bool,
    target: Target,
) -> WinogradConvolution | None:
    kernel_size = tuple(weight_shape[2:])
    output = x_shape[0], weight_shape[0], *spec.output_size(tuple(x_shape[2:]), kernel_size)
    shape, spec, _ = ConvolutionShape.of(x_shape, output, kernel_size, spec)
    tile = winograd_tile(shape, dtype, exact, target)
    return (
        None
        if tile is None
        else winograd_convolution(shape, spec.padding, tile, activation, pool=pool, epsilon=epsilon)
    )


def _forward_problem(
    x_shape: Shape,
    weight_shape: Shape,
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
    epsilon: float,
    target: Target,
) -> tuple[Problem | SplitProduct, Shape, int]:
    """The forward's launch or launches, the shape of its results, and how many tiles of pixels it has."""
    N, _, *size = x_shape
    K, group_inputs, *kernel_size = weight_shape
    output = N, K, *spec.output_size(tuple(size), tuple(kernel_size))
    shape, spec, kernel_size = ConvolutionShape.of(x_shape, output, tuple(kernel_size), spec)
    result = (N, K, shape.P // 2, shape.Q // 2) if pool else output
    if multiplies_patches(shape.C, kernel_size, spec, target):
        problem = patches_problem(shape, spec, kernel_size, dtype, activation, pool, epsilon, target)
        return problem, result, problem.grid[0]
    if group_inputs == 1:
        problem = single_channel_problem(shape, spec, kernel_size, dtype, activation, pool, epsilon, target)
        return problem, result, problem.grid[0]
    if multiplies_groups(shape.C, shape.K, shape.groups, target):
        problem = groups_problem(shape, spec, kernel_size, activation, pool, epsilon, target)
        return problem, result, problem.grid[0]
    pixels, columns = shape.pixels(pool), shape.group_outputs
    window = spec.compiled(kernel_size, pool=pool, precision=precision, grouped=spec.groups > 1, epsilon=epsilon)
    if group_inputs < FEW_CHANNELS:
        kernel, groups = convolution_few_channels_kernel, (columns,)
        tile = convolution_few_channels_tile(pixels, columns, shape.taps * group_inputs, dtype, target)
        window = window._replace(group_inputs=group_inputs)
    else:
        kernel, groups = convolution_forward_kernel, (group_inputs, columns)
        pooled = activation.name if pool else None
        tile = convolution_tile(pixels, columns, group_inputs, dtype, precision, target, pooled=pooled)
        window = window._replace(even=group_inputs % tile.block_k == 0, group=GROUP)
    wide = is_wide_convolution(
        pixels,
        pixels // shape.N,
        tile.block_m,
        shape.image_elements,
        ((tile.block_m, K), (tile.block_n, 1)),
        ((tile.block_n, shape.taps * group_inputs), (tile.block_k, 1)),
    )
    tiles = ceil_div(pixels, tile.block_m)
    problem = Problem(
        kernel,
        (tiles * ceil_div(columns, tile.block_n), spec.groups),
        pixels,
        *(shape.D, shape.H, shape.W, shape.Z, shape.P, shape.Q),
        *groups,
        WINDOW=window._replace(wide=wide),
        ACTIVATION=activation.compiled,
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **(every_register(tile.block_m, precision, target) if pool else {}),
    )
    if kernel is convolution_forward_kernel:
        steps = shape.taps * ceil_div(group_inputs, tile.block_k)
        parts = product_splits(math.prod(problem.grid), steps, target)
        if parts > 1:
            finish, tiles = finish_convolution(parts, pixels, K, activation, pool, epsilon, target)
            split = SplitProduct(_parts_of(problem, parts, target), finish, (parts, pixels, K), absent=(5, 3))
            return split, result, tiles
    return problem, result, tiles


def _parts_of(problem: Problem, parts: int, target: Target) -> Problem:
    """The launch of the parts of a forward, which have no epilogue."""
    window, tile = problem.constants["WINDOW"], problem.constants["TILE"]
    constants = problem.constants | {"WINDOW": window._replace(split=True), "ACTIVATION": IDENTITY.compiled}
    constants |= every_register(tile.block_m, window.precision, target)
    return Problem(problem.kernel, (*problem.grid, parts), *problem.numbers, **constants)

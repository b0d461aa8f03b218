"""Data gradient of a convolution, from dZ = dY act' (`activation.activation_backward`); a transposed convolution.

    dX[n, c, d, h, w] = sum of dZ[n, k, o, p, q] W[k, c, t, r, s] over the taps that read (d, h, w) from (o, p, q)

With a stride, each tap reaches only the input pixels of one phase (d mod stride, h mod stride, w mod stride), so each
phase is a dense convolution of its own with stride 1 and its own taps: r0, r0 + step, ..., where step is the stride
over its common divisor with the dilation. Each phase has programs and none multiplies by zero; a masked loop over all
taps would take stride^2 times the products. Programs of the phases of one tile follow each other: they read the same
dZ. Where one window covers the whole image, each image is a row of a plain product (`linear.py`). Where the tiles would
leave most of a GPU idle, their steps are split over programs, and a second launch adds the parts
(`split_product.finish_product`).

A transposed convolution is the data gradient of the convolution that maps its result to its input, followed by bias
and activation. All tensors are channels_last. Depthwise convolutions are in `depthwise`. Source:
torch.nn.functional.conv_transpose3d.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.depthwise.launch import depthwise_input_gradient
from tinynet_kernels.conv.grouped import (
    convolution_groups_input_gradient_kernel,
    groups_input_gradient_problem,
    multiplies_groups,
)
from tinynet_kernels.conv.phases import offset_of_pixels, phase_of, phase_pixels, pixels_of_phase, tap_steps
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Shape, Sizes
from tinynet_kernels.conv.tiles import convolution_precision, convolution_tile
from tinynet_kernels.conv.window import (
    Filters,
    Part,
    elements_before,
    is_wide_convolution,
    of_channels,
    sum_over_taps,
)
from tinynet_kernels.conv.winograd.check import is_right
from tinynet_kernels.conv.winograd.forward import WinogradConvolution, winograd_convolution
from tinynet_kernels.conv.winograd.tiles import asks_for_full_precision, is_eligible, winograd_tile
from tinynet_kernels.gemm import GROUP, tile_start
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.layout import as_rows, channels_before, channels_behind, empty_channels_last
from tinynet_kernels.linear import linear_forward, linear_input_gradient_problem
from tinynet_kernels.offsets import widened
from tinynet_kernels.operand_layout import channels_last_strides
from tinynet_kernels.split_product import SplitProduct, finish_product
from tinynet_kernels.tiles import (
    Target,
    ceil_div,
    current_target,
    every_register,
    matmul_precision,
    product_splits,
)


@triton.jit
def convolution_input_gradient_kernel(
    dz_ptr,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    z_ptr,
    N,
    D,
    H,
    W,
    C,
    Z,
    P,
    Q,
    K,
    group_inputs,
    group_outputs,
    WINDOW: constexpr,
    ACTIVATION: constexpr,
    TILE: constexpr,
):
    """dX, one [block_m pixels, block_n channels] tile of one phase per program; grid axes are tiles and phases, the
    latter first, parts, groups.

    A step is one tap of block_k output channels, taps innermost; from a tap to the next, the input pixel stays.
    WINDOW.even says that block_k divides the group's output channels; offsets are relative to the tile's first image,
    as in `convolution_forward_kernel`. Stored is act(dX + b), and dX + b itself unless z_ptr is None.
    Where WINDOW.split, there are several parts, and dx is fp32 [parts, N, D, H, W, C].
    """
    PHASES: constexpr = WINDOW.stride_d * WINDOW.stride_h * WINDOW.stride_w
    N = widened(N, WINDOW.wide)
    H = widened(H, WINDOW.wide)
    Q = widened(Q, WINDOW.wide)
    group_inputs = widened(group_inputs, WINDOW.wide)
    phase = phase_of(tl.program_id(0) % PHASES, D, H, W, WINDOW)
    program = tl.program_id(0) // PHASES
    part = Part(tl.program_id(1), tl.num_programs(1))
    group = tl.program_id(2)
    pixels = N * pixels_of_phase(phase, WINDOW)
    if program >= tl.cdiv(pixels, TILE.block_m) * tl.cdiv(group_inputs, TILE.block_n):
        return
    pixel_start, column_start = tile_start(program, pixels, group_inputs, WINDOW, TILE)
    pixel = pixel_start + tl.arange(0, TILE.block_m)
    columns_left = group_inputs - column_start
    column = tl.arange(0, TILE.block_n) % columns_left  # past the end: copies, never stored

    of_phase = phase_pixels(dz_ptr, group * group_outputs, phase, pixel, pixel_start, pixels, Z, P, Q, K, WINDOW)
    weights = WINDOW.T * WINDOW.R * WINDOW.S * group_inputs
    weight_base = weight_ptr + (group * group_outputs).to(tl.int64) * weights + of_phase.tap * group_inputs
    steps = tap_steps(of_phase.taps, group_inputs, WINDOW)
    filters = Filters(
        weight_base + column_start,
        tl.arange(0, TILE.block_k)[:, None] * weights + column[None, :],
        next_tap=steps.next_tap,
        next_row=steps.next_row,
        next_plane=steps.next_plane,
        next_channels=TILE.block_k * weights - steps.last,
    )
    dx = sum_over_taps(of_phase.windows, filters, of_phase.taps, group_outputs, part, WINDOW, TILE)

    first_image = of_phase.first_image
    if WINDOW.split:
        first_image += part.index * N
    base = elements_before(first_image, D, H, W, C, WINDOW) + group * group_inputs + column_start
    offset = (offset_of_pixels(of_phase, pixel, phase, D, H, W, WINDOW) * C)[:, None] + tl.arange(0, TILE.block_n)[
        None, :
    ]
    column_mask = tl.arange(0, TILE.block_n) < columns_left
    mask = (pixel < pixels)[:, None] & column_mask[None, :]
    if bias_ptr is not None:
        dx += of_channels(bias_ptr, group * group_inputs + column_start, column_mask)
    if z_ptr is not None:
        tl.store(z_ptr + base + offset, dx.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + base + offset, activate(dx, ACTIVATION).to(dx_ptr.dtype.element_ty), mask=mask)


@costs(convolution_input_gradient_kernel)
@costs(convolution_groups_input_gradient_kernel)
def convolution_input_gradient_cost(weight_ptr: torch.Tensor, N: int, Z: int, P: int, Q: int, **others: Any) -> Cost:
    """2 N Z P Q K T R S C / groups operations; dZ, W and b read, dX (and z) written."""
    return Cost(2 * N * Z * P * Q * weight_ptr.numel(), size_in_bytes(weight_ptr, *others.values()))


@lru_cache(maxsize=4096)
def _input_gradient_problem(
    dz_shape: Shape,
    dx_shape: Shape,
    kernel_size: Sizes,
    dtype: torch.dtype,
    precision: str,
    spec: ConvolutionSpec,
    activation: Activation,
    target: Target,
) -> Problem | SplitProduct:
    shape, spec, kernel_size = ConvolutionShape.of(dx_shape, dz_shape, kernel_size, spec)
    if multiplies_groups(shape.C, shape.K, shape.groups, target):
        return groups_input_gradient_problem(shape, spec, kernel_size, activation, target)
    window = spec.compiled(kernel_size, precision=precision, group=GROUP).of_gradient()
    strides = window.stride_d, window.stride_h, window.stride_w
    window = window._replace(in_order=target.kind == "cpu" and math.prod(strides) == 1)
    sides = shape.D, shape.H, shape.W
    group_inputs = shape.group_inputs
    pixels = shape.N * math.prod(map(ceil_div, sides, strides))  # of the largest phase
    tile = convolution_tile(pixels, group_inputs, shape.group_outputs, dtype, precision, target, is_gradient=True)
    wide = is_wide_convolution(
        pixels,
        max(1, math.prod(side // stride for side, stride in zip(sides, strides, strict=True))),
        tile.block_m,
        shape.image_elements,
        ((tile.block_k, shape.taps * group_inputs), (tile.block_n, 1)),
    )
    tiles = ceil_div(pixels, tile.block_m) * ceil_div(group_inputs, tile.block_n)
    steps = math.prod(window.walk[:3]) * ceil_div(shape.group_outputs, tile.block_k)
    parts = product_splits(tiles * window.phases_with_taps * spec.groups, steps, target)
    problem = Problem(
        convolution_input_gradient_kernel,
        (tiles * math.prod(strides), parts, spec.groups),
        *(shape.N, *shape.sides, group_inputs, shape.group_outputs),
        WINDOW=window._replace(wide=wide, even=shape.group_outputs % tile.block_k == 0, split=parts > 1),
        ACTIVATION=(IDENTITY if parts > 1 else activation).compiled,
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **(every_register(tile.block_m, precision, target) if parts > 1 else {}),
    )
    if parts == 1:
        return problem
    rows = shape.N * math.prod(sides)
    finish = finish_product(parts, rows, shape.C, activation, target)
    return SplitProduct(problem, finish, (parts, rows, shape.C), absent=(1, 1))


def convolution_input_gradient(
    dz: torch.Tensor, weight: torch.Tensor, spec: ConvolutionSpec, size: Sizes, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dX [N, C, *size] in `dtype` (None: dZ's), channels_last.

    Args:
        dz: [N, K, *sizes], channels_last.
        weight: [K, C / groups, *kernel size], channels_last.
        spec: stride, padding, dilation, groups; of one to three spatial axes, as the tensors.
        size: of the input.
    """
    target = current_target()
    precisions = matmul_precision(dz.dtype, target), convolution_precision(dz.dtype, target)
    gradient = _input_gradient(dz.shape, weight.shape, size, dz.dtype, precisions, spec, target)
    dx = dz.new_empty_strided(gradient.shape, gradient.stride, dtype=dtype)
    if gradient.is_depthwise:
        return depthwise_input_gradient(dz, weight, dx, spec)
    operands = dz, weight, None, dx, None
    if not (gradient.is_eligible and _launch_winograd(gradient.problem, *operands, spec, IDENTITY, target)):
        gradient.problem.launch(*operands)
    return dx


class InputGradient(NamedTuple):
    """A data gradient without its tensors.

    Attributes:
        shape, stride: of dX, channels_last.
        problem: the launch or launches by the definition, of dZ, W, None, dX and None; None for `is_depthwise`.
        is_depthwise: whether the launcher of depthwise convolutions computes it.
        is_eligible: whether Winograd's algorithm can compute the same.
    """

    shape: Shape
    stride: Shape
    problem: Any
    is_depthwise: bool = False
    is_eligible: bool = False


@lru_cache(maxsize=4096)
def _input_gradient(
    dz_shape: Shape,
    weight_shape: Shape,
    size: Sizes,
    dtype: torch.dtype,
    precisions: tuple[str, str],
    spec: ConvolutionSpec,
    target: Target,
) -> InputGradient:
    """The `InputGradient` of channels_last operands; `precisions` are those of linear layers and of convolutions."""
    (N, K, *pixels), group_inputs, kernel_size = dz_shape, weight_shape[1], weight_shape[2:]
    shape = N, group_inputs * spec.groups, *size
    stride = channels_last_strides(shape)
    if spec.is_pointwise(kernel_size) or spec.covers_image(kernel_size, size):
        columns = group_inputs * math.prod(kernel_size)
        sizes = N * math.prod(pixels), K, columns
        strides = (K, 1), (columns, 1)
        problem = linear_input_gradient_problem(sizes, *strides, dtype, precisions[0], IDENTITY, True, target)
        return InputGradient(shape, stride, problem)
    if group_inputs == 1 and spec.groups > 1:
        return InputGradient(shape, stride, None, is_depthwise=True)
    problem = _input_gradient_problem(dz_shape, shape, kernel_size, dtype, precisions[1], spec, IDENTITY, target)
    return InputGradient(shape, stride, problem, is_eligible=is_eligible(spec, kernel_size, target))


def transposed_convolution_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    spec: ConvolutionSpec,
    size: Sizes,
    activation: Activation,
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y [N, C, *size] = act(transposed convolution of x + b), channels_last, and z where act' reads it.

    Args:
        x: [N, K, *sizes], channels_last.
        weight: [K, C / groups, *kernel size], channels_last, x's dtype.
        bias: [C] or None.
        spec: of the convolution that maps y to x.
        size: of y.
        activation: fused into the epilogue.
        save: whether a backward will follow.
    """
    if spec.covers_image(weight.shape[2:], size):
        repeated = None if bias is None else bias.repeat(math.prod(size))
        y, z = linear_forward(as_rows(x), _filters(weight).t(), repeated, activation, save=save)
        z = _as_whole_images(z, size) if z is not None and activation.reads_input else None
        return _as_whole_images(y, size), z
    y = empty_channels_last(x, (x.shape[0], weight.shape[1] * spec.groups, *size))
    z = torch.empty_like(y) if save and activation.reads_input else None
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    target = current_target()
    precision, kernel_size = convolution_precision(x.dtype, target), weight.shape[2:]
    problem = _input_gradient_problem(x.shape, y.shape, kernel_size, x.dtype, precision, spec, activation, target)
    operands = x, weight, bias, y, z
    eligible = is_eligible(spec, kernel_size, target)
    if not (eligible and _launch_winograd(problem, *operands, spec, activation, target)):
        problem.launch(*operands)
    return y, z


def _filters(weight: torch.Tensor) -> torch.Tensor:
    """A channels_last weight [K, C, *kernel size] viewed as the matrix [K, taps * C]."""
    return channels_behind(weight).reshape(weight.shape[0], -1)


def _as_whole_images(rows: torch.Tensor, size: Sizes) -> torch.Tensor:
    """Contiguous rows [N, pixels * C] viewed as a channels_last [N, C, *size]."""
    return channels_before(rows.view(rows.shape[0], *size, -1))


def _launch_winograd(
    by_definition: Problem | SplitProduct,
    dz: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dx: torch.Tensor,
    z: torch.Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    target: Target,
) -> bool:
    """Computes dX by Winograd's algorithm; False where `by_definition` is faster, or has to."""
    winograd = _winograd_problem(dz.shape, dx.shape, dz.dtype, spec, activation, asks_for_full_precision(), target)
    if winograd is None:
        return False
    tensors = dict.fromkeys(("mean_ptr", "variance_ptr", "scale_ptr", "shift_ptr"))
    results = {"y_ptr": dx, "z_ptr": z, "argmax_ptr": None, "partial_ptr": None}
    infinite = winograd.launch(dz, weight, bias_ptr=bias, **tensors, **results)
    return is_right(infinite, by_definition.launch, dz, weight, bias, dx, z)


@lru_cache(maxsize=4096)
def _winograd_problem(
    dz_shape: Shape,
    dx_shape: Shape,
    dtype: torch.dtype,
    spec: ConvolutionSpec,
    activation: Activation,
    exact: bool,
    target: Target,
) -> WinogradConvolution | None:
    """The convolution of dZ, padded by what is left of the window, with inputs and outputs exchanged."""
    padding = 2 - spec.padding[0], 2 - spec.padding[1]
    shape = ConvolutionShape.of(dz_shape, dx_shape, (3, 3), spec)[0]
    tile = winograd_tile(shape, dtype, exact, target, is_gradient=True)
    return None if tile is None else winograd_convolution(shape, padding, tile, activation, reversed=True)

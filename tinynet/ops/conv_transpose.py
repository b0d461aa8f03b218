"""Transposed convolutions of one to three spatial axes with a fused activation.

Each is the data gradient of the convolution that maps its result to its input, and shares that one's kernels: its own
data gradient is that convolution, and its weight gradient that one's with the images exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import autocast, autocast_dtype, route_floating
from tinynet.ops.convolution_operator import empty_in_order, in_order
from tinynet.ops.convolution_spec import IntOrSizes, transposed_spec
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.conv.spec import ConvolutionSpec, Sizes

_FUNCTIONS: Any = {3: torch.conv_transpose1d, 4: torch.conv_transpose2d, 5: torch.conv_transpose3d}  # by x's dimensions


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvolutionSpec, size: Sizes, activation: Activation
) -> Tensor:
    """The definition in plain PyTorch."""
    extra = [before - after for before, after in zip(spec.padding, spec.padding_end, strict=True)]
    options = spec.stride, spec.padding, extra, spec.groups, spec.dilation
    return activation_reference(_FUNCTIONS[x.dim()](x, weight, bias, *options), activation)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvolutionSpec,
    size: Sizes,
    activation: Activation,
    save: bool,
) -> Tensors:
    """y in the memory order of `conv_transpose2d`, and z, channels_last, where the backward reads it."""
    layout = kernels.layout
    images, packed = layout.to_channels_last(x), layout.to_channels_last(weight)
    y, z = kernels.conv_input_gradient.transposed_convolution_forward(
        images, packed, bias, spec, size, activation, save=save
    )
    return in_order(y, layout.is_channels_last(x) or layout.is_channels_last(weight)), z


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvolutionSpec,
    size: Sizes,
    activation: Activation,
    save: bool,
) -> Tensors:
    shape = (x.shape[0], weight.shape[1] * spec.groups, *size)
    y = empty_in_order(x, shape, x, weight)
    return y, kernels.layout.empty_channels_last(y, shape) if save and activation.reads_input else None


def _backward(
    grads: Sequence[Tensor],
    saved: Sequence[Any],
    spec: ConvolutionSpec,
    size: Sizes,
    activation: Activation,
    wanted: Sequence[bool],
) -> Tensors:
    """(dX, dW, db), the first two in the memory order of x and weight."""
    layout = kernels.layout
    x, weight, for_derivative = saved
    want_x, want_weight, want_bias = wanted
    dz, db = layout.to_channels_last(grads[0]), None
    want_dz = activation.name != "identity" and (want_x or want_weight)
    if want_bias or want_dz:
        rows = None if for_derivative is None else layout.as_rows(layout.to_channels_last(for_derivative))
        of_activation, db = kernels.activation.activation_backward(
            layout.as_rows(dz), rows, activation, want_dz=want_dz, want_bias=want_bias
        )
        dz = dz if of_activation is None else layout.as_images(of_activation, dz)
    dx, dw = None, None
    if want_x:
        packed = layout.to_channels_last(weight)
        results = kernels.conv_forward.convolution_forward(dz, packed, None, spec, IDENTITY, save=False)
        dx = in_order(results.y, layout.is_channels_last(x))
    if want_weight:
        order = layout.is_channels_last(weight)
        dw, _ = kernels.conv_weight_gradient.convolution_weight_gradient(
            layout.to_channels_last(x), dz, spec, weight.shape[2:], channels_last=order
        )
    return dx, dw, None if db is None else db.to(x.dtype)


def _fake_backward(grads: list[Tensor], saved: list[Any], *rest: Any) -> list[Tensor | None]:
    x, weight, _ = saved
    want_x, want_weight, want_bias = rest[-1]
    return [
        empty_in_order(x, x.shape, x) if want_x else None,
        empty_in_order(weight, weight.shape, weight) if want_weight else None,
        grads[0].new_empty(grads[0].shape[1:2]) if want_bias else None,
    ]


def _flops(wanted: list[bool] | None, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Two for each pair of input pixel and weight: one such product in the forward, one for each gradient."""
    pixels = x.shape[0] * math.prod(x.shape[2:])
    return 2 * pixels * weight.numel() * (1 if wanted is None else sum(wanted[:2]))


conv_transpose_operator = Operator(
    "conv_transpose(Tensor x, Tensor weight, Tensor? bias, ConvolutionSpec spec, SymInt[] size, Activation activation)"
    " -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    saves=lambda given, results: [*given[:2], results[0] if given[5].reads_output else results[1]],
    backward=_backward,
    fake_backward=_fake_backward,
    reference=_reference,
    flops=_flops,
)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSizes = 1,
    padding: IntOrSizes = 0,
    output_padding: IntOrSizes = 0,
    groups: int = 1,
    dilation: IntOrSizes = 1,
    activation: ActivationLike = None,
) -> Tensor:
    """Transposed convolution of signals; as `conv_transpose2d`, with one spatial axis.

    Args:
        input: x [N, C, L] or [C, L].
        weight: [C, K / groups, S].
        bias, stride, padding, output_padding, groups, dilation, activation: as in `conv_transpose2d`.

    Returns:
        [N, K, Q] or [K, Q], contiguous.

    Raises:
        ValueError, TypeError: as `conv_transpose2d`.

    Source: torch.nn.functional.conv_transpose1d.
    """
    function = as_activation(activation)
    window = stride, padding, output_padding, groups, dilation
    if has_torch_function_unary(input):
        return handle_torch_function(conv_transpose1d, (input,), input, weight, bias, *window, function)
    return _conv_transpose("conv_transpose1d", input, weight, bias, *window, function)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSizes = 1,
    padding: IntOrSizes = 0,
    output_padding: IntOrSizes = 0,
    groups: int = 1,
    dilation: IntOrSizes = 1,
    activation: ActivationLike = None,
) -> Tensor:
    """act(transposed convolution of x and W + b), bias and activation in the convolution's own kernel.

    y[n, k, h, w] is the sum of x[n, c, p, q] W[c, k, r, s] over the taps with h = p stride + r dilation - padding, and
    alike for w. The kernels work on channels_last: other inputs are converted, and the result converted back.

    Args:
        input: x [N, C, P, Q] or [C, P, Q], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        weight: [C, K / groups, R, S], x's dtype and device.
        bias: [K] or None.
        stride: one number, or (height, width), as are padding, output_padding and dilation.
        padding: pixels that are left out on each side of the result.
        output_padding: pixels more at the end of the result; smaller than stride or dilation.
        groups: divides C and K; output channels of a group see its input channels alone.
        dilation: pixels between taps.
        activation: a name, `Activation`, module, function or None for identity.

    Returns:
        [N, K, H, W] or [K, H, W] with H = (P - 1) stride - 2 padding + dilation (R - 1) + output_padding + 1, x's dtype
        (autocast's under autocast); channels_last where x or weight is, else contiguous.

    Raises:
        ValueError: shapes, numbers or devices that don't fit together, or an unknown activation.
        TypeError: dtypes that are not floating point or differ outside autocast, or arguments of another type.

    Example:
        >>> conv_transpose2d(torch.randn(8, 64, 16, 16), torch.randn(64, 32, 2, 2), stride=2, activation="relu").shape
        torch.Size([8, 32, 32, 32])

    Source: torch.nn.functional.conv_transpose2d.
    """
    function = as_activation(activation)
    window = stride, padding, output_padding, groups, dilation
    if has_torch_function_unary(input):
        return handle_torch_function(conv_transpose2d, (input,), input, weight, bias, *window, function)
    return _conv_transpose("conv_transpose2d", input, weight, bias, *window, function)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSizes = 1,
    padding: IntOrSizes = 0,
    output_padding: IntOrSizes = 0,
    groups: int = 1,
    dilation: IntOrSizes = 1,
    activation: ActivationLike = None,
) -> Tensor:
    """Transposed convolution of volumes; as `conv_transpose2d`, with three spatial axes.

    Args:
        input: x [N, C, Z, P, Q] or [C, Z, P, Q].
        weight: [C, K / groups, T, R, S].
        bias, stride, padding, output_padding, groups, dilation, activation: as in `conv_transpose2d`; three numbers are
            (depth, height, width).

    Returns:
        [N, K, D, H, W] or [K, D, H, W]; channels_last_3d where x or weight is, else contiguous.

    Raises:
        ValueError, TypeError: as `conv_transpose2d`.

    Source: torch.nn.functional.conv_transpose3d.
    """
    function = as_activation(activation)
    window = stride, padding, output_padding, groups, dilation
    if has_torch_function_unary(input):
        return handle_torch_function(conv_transpose3d, (input,), input, weight, bias, *window, function)
    return _conv_transpose("conv_transpose3d", input, weight, bias, *window, function)


def _conv_transpose(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrSizes,
    padding: IntOrSizes,
    output_padding: IntOrSizes,
    groups: int,
    dilation: IntOrSizes,
    activation: Activation,
) -> Tensor:
    route = route_floating(name, autocast_dtype(input), ("input", "weight", "bias"), input, weight, bias)
    numbers = stride, padding, output_padding, groups, dilation
    spec, size = transposed_spec(name, input, weight, bias, *numbers, remember=route is Route.KERNELS)
    x, weight, bias = autocast(input, weight, bias)
    if x.dim() < weight.dim():
        return conv_transpose_operator(route, x.unsqueeze(0), weight, bias, spec, size, activation).squeeze(0)
    return conv_transpose_operator(route, x, weight, bias, spec, size, activation)

"""Convolutions of one to three spatial axes with a fused activation: y = act(x * W + b); of two also max-pooled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, check_strided
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import autocast, autocast_dtype, needs_gradient, route_floating
from tinynet.ops.convolution_operator import (
    ConvolutionFunction,
    convolution_forward,
    convolution_operator,
    convolution_reference,
)
from tinynet.ops.convolution_spec import (
    EagerConvolution,
    IntOrSizes,
    check_pool,
    convolution_spec,
    eager_convolution,
)
from tinynet.ops.max_pool import max_pool2d
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.conv.spec import ConvolutionSpec, Normalization


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSizes = 1,
    padding: IntOrSizes | str = 0,
    dilation: IntOrSizes = 1,
    groups: int = 1,
    activation: ActivationLike = None,
) -> Tensor:
    """act(x * W + b) of signals; as `conv2d`, with one spatial axis.

    Args:
        input: x [N, C, L] or [C, L].
        weight: [K, C / groups, S].
        bias, stride, padding, dilation, groups, activation: as in `conv2d`.

    Returns:
        [N, K, Q] or [K, Q], contiguous.

    Raises:
        ValueError, TypeError: as `conv2d`.

    Example:
        >>> conv1d(torch.randn(8, 64, 4000), torch.randn(128, 64, 9), padding="same", activation="relu").shape
        torch.Size([8, 128, 4000])

    Source: torch.nn.functional.conv1d.
    """
    function = as_activation(activation)
    window = stride, padding, dilation, groups
    if has_torch_function_unary(input):
        return handle_torch_function(conv1d, (input,), input, weight, bias, *window, function)
    return convolution("conv1d", input, weight, bias, *window, function)[0]


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """A convolution of sequences [time, batch, channels], of stride 1.

    Args:
        input: [T, N, C].
        weight: [taps, C, K].
        bias: [K].
        pad: zeros before and after each sequence.

    Returns:
        [T + 2 pad - taps + 1, N, K].

    Raises:
        ValueError, TypeError: as `conv1d`.

    Source: torch.nn.functional.conv_tbc.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(conv_tbc, (input,), input, weight, bias, pad)
    for name, x in (("input", input), ("weight", weight)):
        check_strided("conv_tbc", name, x)
    return conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSizes = 1,
    padding: IntOrSizes | str = 0,
    dilation: IntOrSizes = 1,
    groups: int = 1,
    activation: ActivationLike = None,
    pool: int = 1,
) -> Tensor:
    """act(x * W + b), bias, activation and a 2 x 2 max-pooling in the convolution's own kernel.

    The kernels work on channels_last: other inputs are converted, and the result converted back.

    Args:
        input: x [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        weight: [K, C / groups, R, S], x's dtype and device.
        bias: [K] or None.
        stride: of the windows: one number, or (height, width).
        padding: zeros on each side: one number, (height, width), "valid" (none) or "same" (as many as preserve the
            size; stride 1 only).
        dilation: pixels between taps: one number, or (height, width).
        groups: divides C and K; output channels of a group see its input channels alone.
        activation: a name, `Activation`, module, function or None for identity.
        pool: 2 for max_pool2d(y, 2) of the result, whose full size is then never stored; 1 for none.

    Returns:
        [N, K, P, Q] or [K, P, Q] (P // 2 and Q // 2 for pool=2), x's dtype (autocast's under autocast). As in
        PyTorch, it is channels_last where x or weight is, else contiguous.

    Raises:
        ValueError: shapes, numbers or devices that don't fit together, or an unknown activation.
        TypeError: dtypes that are not floating point or differ outside autocast, or arguments of another type.

    Source: torch.nn.functional.conv2d.
    """
    function = as_activation(activation)
    window = stride, padding, dilation, groups
    if has_torch_function_unary(input):
        return handle_torch_function(conv2d, (input,), input, weight, bias, *window, function, pool)
    return convolution("conv2d", input, weight, bias, *window, function, pool)[0]


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSizes = 1,
    padding: IntOrSizes | str = 0,
    dilation: IntOrSizes = 1,
    groups: int = 1,
    activation: ActivationLike = None,
) -> Tensor:
    """act(x * W + b) of volumes; as `conv2d`, with three spatial axes.

    Args:
        input: x [N, C, D, H, W] or [C, D, H, W].
        weight: [K, C / groups, T, R, S].
        bias, stride, padding, dilation, groups, activation: as in `conv2d`; three numbers are (depth, height, width).

    Returns:
        [N, K, Z, P, Q] or [K, Z, P, Q]; channels_last_3d where x or weight is, else contiguous.

    Raises:
        ValueError, TypeError: as `conv2d`.

    Example:
        >>> conv3d(torch.randn(2, 3, 8, 32, 32), torch.randn(16, 3, 3, 3, 3), stride=(1, 2, 2), padding=1).shape
        torch.Size([2, 16, 8, 16, 16])

    Source: torch.nn.functional.conv3d.
    """
    function = as_activation(activation)
    window = stride, padding, dilation, groups
    if has_torch_function_unary(input):
        return handle_torch_function(conv3d, (input,), input, weight, bias, *window, function)
    return convolution("conv3d", input, weight, bias, *window, function)[0]


def convolution(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrSizes,
    padding: IntOrSizes | str,
    dilation: IntOrSizes,
    groups: int,
    activation: Activation,
    pool: int = 1,
    *,
    norm: Normalization | None = None,
    want_statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`conv1d`, `conv2d` or `conv3d`, and what joins `conv2d` with a batch normalization.

    Args:
        name: of the function.
        input, weight, bias, stride, padding, dilation, groups, activation, pool: as in `conv2d`.
        norm: a normalization with constant statistics, between bias and activation; None without. It gets no gradient.
        want_statistics: whether to compute those of the result where that costs nothing.

    Returns:
        The result; count, mean and sum of squared deviations of parts of its pixels, fp32 [parts, 3, K], or None.
    """
    dtype = autocast_dtype(input)
    route = route_floating(name, dtype, _NAMES, input, weight, bias)
    window = stride, padding, dilation, groups
    if route is not Route.KERNELS:
        spec = convolution_spec(name, input, weight, bias, *window)
        pooled = pool != 1 and check_pool(pool, spec.output_size(input.shape[-2:], weight.shape[2:]))
        batched = input.dim() == weight.dim()
        x = input if batched else input.unsqueeze(0)
        y = _in_pytorch(route, x, weight, bias, spec, activation, pooled, norm)
        return y if batched else y.squeeze(0), None
    checked = eager_convolution(name, input, weight, bias, *window, pool)
    if input.dim() < weight.dim():
        y, partial = _in_kernels(input.unsqueeze(0), weight, bias, dtype, checked, activation, norm, want_statistics)
        return y.squeeze(0), partial
    return _in_kernels(input, weight, bias, dtype, checked, activation, norm, want_statistics)


_NAMES = ("input", "weight", "bias")


def _in_kernels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype | None,
    convolution: EagerConvolution,
    activation: Activation,
    norm: Normalization | None,
    want_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    if norm is None and needs_gradient(x, weight, bias):
        return ConvolutionFunction.run(x, weight, bias, dtype, convolution, activation, want_statistics)
    y, results, _, _ = convolution_forward(
        x, weight, bias, dtype, convolution, activation, save=False, norm=norm, want_statistics=want_statistics
    )
    return y, results.partial


def _in_pytorch(
    route: Route,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
    norm: Normalization | None,
) -> Tensor:
    x, weight, bias = autocast(x, weight, bias)
    if norm is not None:
        z = convolution_reference(x, weight, bias, spec, IDENTITY)
        y = activation_reference(F.batch_norm(z, *norm[:4], eps=norm.epsilon), activation)
    elif route is Route.REFERENCE:
        y = convolution_reference(x, weight, bias, spec, activation)
    else:
        y = convolution_operator(route, x, weight, bias, spec, activation)
        return max_pool2d(y, 2) if pool else y
    return F.max_pool2d(y, 2) if pool else y

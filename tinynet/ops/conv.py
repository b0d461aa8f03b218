"""Two-dimensional convolution with a fused activation and 2 x 2 max-pooling: y = act(x * W + b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.activation import activation_reference, as_activation
from tinynet.ops.arguments import as_integer, as_pair, autocast, autocast_dtype, cast_to, needs_gradient, route_floating
from tinynet.ops.autograd import gradients_of, held, hold, through_kernels
from tinynet.ops.max_pool import max_pool2d
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.conv.spec import ConvolutionSpec, Normalization
from tinynet_kernels.pool.spec import Axis, window_of

IntOrPair = int | Sequence[int]  # one number, or (height, width)
TWO_BY_TWO = window_of([Axis(2, 2), Axis(2, 2)])


def conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvolutionSpec, activation: Activation
) -> Tensor:
    """act(x * W + b) in plain PyTorch."""
    padding = spec.padding
    if padding != spec.padding_end:
        (top, left), (bottom, right) = padding, spec.padding_end
        x = F.pad(x, (left, right, top, bottom))
        padding = (0, 0)
    return activation_reference(F.conv2d(x, weight, bias, spec.stride, padding, spec.dilation, spec.groups), activation)


def _in_pytorch(ctx: Any, grad: Tensor, of_statistics: None) -> Sequence[Tensor | None]:
    images, *_, original = ctx.saved_tensors
    x = images if original is None else original
    inputs = (*ctx.settings, x, *held(ctx.parameters))
    wanted = (*[False] * len(ctx.settings), *ctx.needs_input_grad[:3])
    return gradients_of(_in_dtype, inputs, wanted, (grad,))[len(ctx.settings) :]


class Conv2dFunction(torch.autograd.Function):
    """act(x * W + b) of x [N, C, H, W], and for `pool` its largest of each 2 x 2 window, through the kernels.

    The second result holds statistics of the first where they are wanted, see `conv.forward.Results`, else None. The
    kernels compute in `dtype`, or for None in the one that all tensors have; gradients come in the tensors' own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype | None,
        spec: ConvolutionSpec,
        activation: Activation,
        pool: bool,
        want_statistics: bool,
    ) -> tuple[Tensor, Tensor | None]:
        results, saved, ctx.channels_last = _forward(
            x, weight, bias, dtype, spec, activation, pool, save=True, want_statistics=want_statistics
        )
        # A converted x has lost its history, which second derivatives through x need.
        original = x if saved[0] is not x and ctx.needs_input_grad[0] else None
        ctx.save_for_backward(*saved, original)
        ctx.parameters = hold(weight, bias)
        ctx.settings = dtype, spec, activation, pool
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        if results.partial is not None:
            ctx.mark_non_differentiable(results.partial)
        return results.y, results.partial

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor, of_statistics: None) -> tuple[Tensor | None, ...]:
        x, weight, saved, argmax, _ = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        _, spec, activation, _ = ctx.settings
        gradients = conv2d_gradients(
            grad, x, weight, saved, spec, activation, ctx.channels_last, wanted, ctx.dtypes, argmax
        )
        return (*gradients, None, None, None, None, None)


def _in_dtype(
    dtype: torch.dtype | None,
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The definition in `dtype`, pooled for `pool`."""
    if dtype is not None:
        x, weight, bias = cast_to(dtype, x, weight, bias)
    y = conv2d_reference(x, weight, bias, spec, activation)
    return F.max_pool2d(y, 2) if pool else y


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype | None,
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
    *,
    save: bool,
    norm: Normalization | None = None,
    want_statistics: bool = False,
) -> tuple[Any, tuple[Tensor | None, ...], tuple[bool, bool]]:
    """The results; x and W as the kernels read them, what act' does, the argmax; whether x and W came channels_last."""
    channels_last = kernels.layout.is_channels_last(x), kernels.layout.is_channels_last(weight)
    if dtype is not None:
        x, weight, bias = cast_to(dtype, x, weight, bias)
    images, packed = kernels.layout.to_channels_last(x), kernels.layout.to_channels_last(weight)
    results = kernels.conv_forward.convolution_forward(
        *(images, packed, bias, spec, activation),
        save=save,
        pool=pool,
        norm=norm,
        want_statistics=want_statistics,
    )
    # The converted tensors are saved, not their originals, which the backward would convert again.
    saved = images, packed, results.saved, results.argmax
    return results._replace(y=_in_order(results.y, any(channels_last))), saved, channels_last


def _in_order(y: Tensor, channels_last: bool) -> Tensor:
    """A channels_last tensor, converted to contiguous unless `channels_last`."""
    return y if channels_last else kernels.layout.to_contiguous(y)


def conv2d_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    channels_last: tuple[bool, bool],
    wanted: Sequence[bool],
    dtypes: Sequence[torch.dtype | None],
    argmax: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dX, dW, db), each None where not wanted.

    Args:
        grad: dY [N, K, P, Q].
        x: [N, C, H, W].
        weight: [K, C / groups, R, S].
        saved: y or z [N, K, P, Q], as `activation.reads_output` says; None for identity.
        spec: stride, padding, dilation, groups.
        activation: the fused function.
        channels_last: whether dX and dW are to be channels_last; contiguous otherwise.
        wanted: whether dX, dW and db are needed.
        dtypes: of dX, dW and db; None for a bias that isn't.
        argmax: the tap that is the maximum of each 2 x 2 window, where the convolution pooled; `grad` and `saved` are
            then those of the windows, [N, K, P // 2, Q // 2].
    """
    want_x, want_weight, want_bias = wanted
    layout = kernels.layout
    size, kernel_size = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    saved = None if saved is None else layout.to_channels_last(saved)
    dz, db = layout.to_channels_last(grad), None
    if want_weight and not want_x and kernels.conv_weight_gradient.takes_output_gradient(x, spec):
        dw, db = kernels.conv_weight_gradient.convolution_weight_gradient(
            dz,
            layout.to_channels_last(x),
            spec,
            kernel_size,
            channels_last=channels_last[1],
            dtype=dtypes[1],
            saved=saved,
            argmax=argmax,
            activation=activation,
            want_bias=want_bias,
        )
        return None, dw, None if db is None else db.to(dtypes[2])
    want_dz = activation.name != "identity" and (want_x or want_weight)
    if want_bias or want_dz:
        rows = None if saved is None else layout.as_rows(saved)
        of_activation, db = kernels.activation.activation_backward(
            layout.as_rows(dz), rows, activation, want_dz=want_dz, want_bias=want_bias
        )
        dz = dz if of_activation is None else layout.as_images(of_activation, dz)
    if argmax is not None and (want_x or want_weight):
        dz = _at_maxima(dz, argmax, spec.output_size(size, kernel_size))
    dx, dw = None, None
    if want_x:
        packed = layout.to_channels_last(weight)
        dx = kernels.conv_input_gradient.convolution_input_gradient(dz, packed, spec, size, dtypes[0])
        dx = _in_order(dx, channels_last[0])
    if want_weight:
        dw, _ = kernels.conv_weight_gradient.convolution_weight_gradient(
            dz, layout.to_channels_last(x), spec, kernel_size, channels_last=channels_last[1], dtype=dtypes[1]
        )
    return dx, dw, None if db is None else db.to(dtypes[2])


def _at_maxima(grad: Tensor, argmax: Tensor, size: tuple[int, int]) -> Tensor:
    """The gradient of each 2 x 2 window, channels_last, at the pixel of its maximum; [N, K, *size]."""
    return kernels.pool_maximum.max_pool_backward(grad, argmax, TWO_BY_TWO, size, channels_last=True)


def _operator_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvolutionSpec, activation: Activation, save: bool
) -> Tensors:
    """y in the memory order of `conv2d`, and z, channels_last, where the backward needs it."""
    save = save and activation.reads_input
    results, (_, _, z, _), _ = _forward(x, weight, bias, None, spec, activation, False, save=save)
    return results.y, z


def _operator_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvolutionSpec, activation: Activation, save: bool
) -> Tensors:
    shape = (x.shape[0], weight.shape[0], *_output_size(x, weight, spec))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x, weight))
    return y, torch.empty_like(y, memory_format=torch.channels_last) if save and activation.reads_input else None


def _output_size(x: Tensor, weight: Tensor, spec: ConvolutionSpec) -> tuple[int, int]:
    return spec.output_size((x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3]))


def _memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if any of the tensors is."""
    return torch.channels_last if any(map(kernels.layout.is_channels_last, tensors)) else torch.contiguous_format


def _operator_backward(
    grads: Sequence[Tensor],
    saved: Sequence[Any],
    spec: ConvolutionSpec,
    activation: Activation,
    wanted: Sequence[bool],
) -> Tensors:
    """In the memory order of x and weight."""
    x, weight, for_derivative = saved
    channels_last = kernels.layout.is_channels_last(x), kernels.layout.is_channels_last(weight)
    return conv2d_gradients(grads[0], x, weight, for_derivative, spec, activation, channels_last, wanted, [x.dtype] * 3)


def _operator_fake_backward(grads: list[Tensor], saved: list[Any], *rest: Any) -> list[Tensor | None]:
    x, weight, _ = saved
    want_x, want_weight, want_bias = rest[-1]
    return [
        torch.empty_like(x, memory_format=_memory_format(x)) if want_x else None,
        torch.empty_like(weight, memory_format=_memory_format(weight)) if want_weight else None,
        grads[0].new_empty(weight.shape[:1]) if want_bias else None,
    ]


def _flops(wanted: list[bool] | None, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Two for each pair of output pixel and weight: one such product in the forward, one for each gradient."""
    P, Q = _output_size(x, weight, rest[1])
    return 2 * x.shape[0] * P * Q * weight.numel() * (1 if wanted is None else sum(wanted[:2]))


conv2d_operator = Operator(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, ConvolutionSpec spec, Activation activation) -> (Tensor, Tensor)",
    forward=_operator_forward,
    fake=_operator_fake,
    saves=lambda given, results: [*given[:2], results[0] if given[4].reads_output else results[1]],
    backward=_operator_backward,
    fake_backward=_operator_fake_backward,
    reference=conv2d_reference,
    flops=_flops,
)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    activation: str | Activation | None = None,
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
        activation: a name, an `Activation`, or None for identity.
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
    if has_torch_function_unary(input):
        window = stride, padding, dilation, groups
        return handle_torch_function(conv2d, (input,), input, weight, bias, *window, function, pool)
    return convolution(input, weight, bias, stride, padding, dilation, groups, function, pool)[0]


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
    activation: Activation,
    pool: int = 1,
    *,
    norm: Normalization | None = None,
    want_statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`conv2d`, and what joins it with a batch normalization.

    Args:
        input, weight, bias, stride, padding, dilation, groups, activation, pool: as in `conv2d`.
        norm: a normalization with constant statistics, between bias and activation; None without. It gets no gradient.
        want_statistics: whether to compute those of the result where that costs nothing.

    Returns:
        The result; count, mean and sum of squared deviations of parts of its pixels, fp32 [parts, 3, K], or None.
    """
    dtype = autocast_dtype(input)
    route = route_floating("conv2d", dtype, ("input", "weight", "bias"), input, weight, bias)
    spec = convolution_spec(input, weight, bias, stride, padding, dilation, groups)
    pooled = pool != 1 and check_pool(
        pool, spec.output_size((input.shape[-2], input.shape[-1]), (weight.shape[2], weight.shape[3]))
    )
    if input.dim() == 3:
        x = input.unsqueeze(0)
        y, partial = _convolution(route, dtype, x, weight, bias, spec, activation, pooled, norm, want_statistics)
        return y.squeeze(0), partial
    return _convolution(route, dtype, input, weight, bias, spec, activation, pooled, norm, want_statistics)


def check_pool(pool: int, size: tuple[int, int]) -> bool:
    """Whether `pool` asks for windows of 2 x 2 on an output of `size`.

    Raises:
        ValueError: `pool` is neither 1 nor 2, or `size` holds no window.
    """
    if pool not in (1, 2):
        raise ValueError(f"conv2d: pool must be 1 or 2, got {pool!r}")
    if pool == 2 and min(size) < 2:
        raise ValueError(f"conv2d: pool=2 needs an output of at least 2 x 2 pixels, got {size}")
    return bool(pool == 2)


def _convolution(
    route: Route,
    dtype: torch.dtype | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
    norm: Normalization | None,
    want_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    if route is Route.KERNELS:
        arguments = x, weight, bias, dtype, spec, activation, pool
        if norm is None and needs_gradient(x, weight, bias):
            return Conv2dFunction.apply(*arguments, want_statistics)  # pyright: ignore[reportReturnType]
        results, *_ = _forward(*arguments, save=False, norm=norm, want_statistics=want_statistics)
        return results.y, results.partial
    x, weight, bias = autocast(x, weight, bias)
    if norm is not None:
        z = conv2d_reference(x, weight, bias, spec, IDENTITY)
        y = activation_reference(F.batch_norm(z, *norm[:4], eps=norm.epsilon), activation)
    elif route is Route.REFERENCE:
        y = conv2d_reference(x, weight, bias, spec, activation)
    else:
        y = conv2d_operator(route, x, weight, bias, spec, activation)
        return max_pool2d(y, 2) if pool else y, None
    return F.max_pool2d(y, 2) if pool else y, None


def convolution_spec(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
) -> ConvolutionSpec:
    """The checked spec of a convolution; arguments as in `conv2d`.

    Raises:
        ValueError, TypeError: as `conv2d`.
    """
    if weight.dim() != 4:
        raise ValueError(f"conv2d: weight must be [K, C / groups, R, S], got shape {tuple(weight.shape)}")
    if x.dim() not in (3, 4):
        raise ValueError(f"conv2d: input must be [N, C, H, W] or [C, H, W], got shape {tuple(x.shape)}")
    given, groups = groups, as_integer(groups)
    if groups is None:
        raise TypeError(f"conv2d: groups must be an integer, got {type(given).__name__}")
    K, group_inputs, R, S = weight.shape
    C, H, W = x.shape[-3:]
    if groups < 1 or K % groups != 0:
        raise ValueError(f"conv2d: groups must be positive and divide the {K} output channels of weight, got {groups}")
    if group_inputs * groups != C:
        raise ValueError(
            f"conv2d: input {tuple(x.shape)} has {C} channels, but weight {tuple(weight.shape)} with groups={groups} "
            f"takes {group_inputs * groups}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv2d: bias must be [{K}] for this weight, got {tuple(bias.shape)}")
    strides = as_pair("conv2d", "stride", stride, 1)
    dilations = as_pair("conv2d", "dilation", dilation, 1)
    begin, end = _padding(padding, strides, dilations, (R, S))
    spec = ConvolutionSpec(strides, begin, end, dilations, groups)
    padded, window = spec.padded_size((H, W)), spec.window((R, S))
    if R == 0 or S == 0 or window[0] > padded[0] or window[1] > padded[1]:
        raise ValueError(
            f"conv2d: weight {tuple(weight.shape)} with dilation {dilations} needs {window} pixels, but input "
            f"{tuple(x.shape)} has {padded} with its padding"
        )
    return spec


def _padding(
    padding: Any, stride: tuple[int, int], dilation: tuple[int, int], kernel_size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros at the (top, left) and at the (bottom, right)."""
    if not isinstance(padding, str):
        pair = as_pair("conv2d", "padding", padding, 0)
        return pair, pair
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f"conv2d: padding must be numbers, 'valid' or 'same', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"conv2d: padding 'same' needs stride 1, got stride {stride}")
    height, width = (step * (size - 1) for step, size in zip(dilation, kernel_size, strict=True))
    return (height // 2, width // 2), (height - height // 2, width - width // 2)

"""Two-dimensional convolution with a fused activation and 2 x 2 max-pooling: y = act(x * W + b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops.activation import activation_reference, as_activation
from tinynet.ops.arguments import as_integer, autocast, autocast_dtype, cast_to, needs_gradient, route_floating
from tinynet.ops.autograd import gradients_of, held, hold, through_kernels
from tinynet.ops.operator import Operator
from tinynet.ops.pool import max_pool2d
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.spec import ConvolutionSpec

IntOrPair = int | Sequence[int]  # one number, or (height, width)


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


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    images, *_, original = ctx.saved_tensors
    x = images if original is None else original
    inputs = (*ctx.settings, x, *held(ctx.parameters))
    wanted = (*[False] * len(ctx.settings), *ctx.needs_input_grad[:3])
    return gradients_of(_in_dtype, inputs, wanted, (grad,))[len(ctx.settings) :]


class Conv2dFunction(torch.autograd.Function):
    """act(x * W + b) of x [N, C, H, W], and for `pool` its largest of each 2 x 2 window, through the kernels.

    The kernels compute in `dtype`, or for None in the one that all tensors have; gradients come in the tensors' own.
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
    ) -> Tensor:
        y, saved, ctx.channels_last = _forward(x, weight, bias, dtype, spec, activation, pool, save=True)
        # A converted x has lost its history, which second derivatives through x need.
        original = x if saved[0] is not x and ctx.needs_input_grad[0] else None
        ctx.save_for_backward(*saved, original)
        ctx.parameters = hold(weight, bias)
        ctx.settings = dtype, spec, activation, pool
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        return y

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, saved, argmax, _ = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        _, spec, activation, _ = ctx.settings
        gradients = conv2d_gradients(
            grad, x, weight, saved, spec, activation, ctx.channels_last, wanted, ctx.dtypes, argmax
        )
        return (*gradients, None, None, None, None)


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
) -> tuple[Tensor, tuple[Tensor | None, ...], tuple[bool, bool]]:
    """y; x and W as the kernels read them, what act' reads, and the argmax; whether x and W came in channels_last."""
    from tinynet_kernels.conv.forward import convolution_forward
    from tinynet_kernels.layout import is_channels_last, to_channels_last

    channels_last = is_channels_last(x), is_channels_last(weight)
    if dtype is not None:
        x, weight, bias = cast_to(dtype, x, weight, bias)
    images, packed = to_channels_last(x), to_channels_last(weight)
    y, saved, argmax = convolution_forward(images, packed, bias, spec, activation, save=save, pool=pool)
    # The converted tensors are kept, not their originals: backward would convert them again.
    return _in_order(y, any(channels_last)), (images, packed, saved, argmax), channels_last


def _in_order(y: Tensor, channels_last: bool) -> Tensor:
    """A channels_last tensor, made contiguous unless `channels_last` is what was asked."""
    from tinynet_kernels.layout import to_contiguous

    return y if channels_last else to_contiguous(y)


def conv2d_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    channels_last: tuple[bool, bool],
    wanted: tuple[bool, ...] | list[bool],
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
        argmax: the tap that each 2 x 2 window passed on, where the convolution pooled; `grad` and `saved` are then of
            its windows, [N, K, P // 2, Q // 2].
    """
    from tinynet_kernels.activation import activation_backward
    from tinynet_kernels.conv.input_gradient import convolution_input_gradient
    from tinynet_kernels.conv.weight_gradient import (
        convolution_weight_and_bias_gradient,
        convolution_weight_gradient,
        takes_output_gradient,
    )
    from tinynet_kernels.layout import as_images, as_rows, to_channels_last

    want_x, want_weight, want_bias = wanted
    dz, bias_gradient = to_channels_last(grad), None
    has_activation = activation.name != "identity"
    if want_weight and not want_x and takes_output_gradient(x, spec):
        dw, bias_gradient = convolution_weight_and_bias_gradient(
            dz,
            to_channels_last(saved) if has_activation and saved is not None else None,
            argmax,
            to_channels_last(x),
            spec,
            (weight.shape[2], weight.shape[3]),
            activation,
            channels_last=channels_last[1],
            want_bias=want_bias,
            dtype=dtypes[1],
        )
        return None, dw, None if bias_gradient is None else bias_gradient.to(dtypes[2])
    if want_bias or (has_activation and (want_x or want_weight)):
        rows = as_rows(to_channels_last(saved)) if has_activation and saved is not None else None
        made, bias_gradient = activation_backward(
            as_rows(dz), rows, activation, want_dz=has_activation and (want_x or want_weight), want_bias=want_bias
        )
        dz = dz if made is None else as_images(made, dz)
    if argmax is not None and (want_x or want_weight):
        dz = _to_argmax(dz, argmax, spec.output_size((x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])))
    dx, dw = None, None
    if want_x:
        dx = convolution_input_gradient(dz, to_channels_last(weight), spec, (x.shape[2], x.shape[3]), dtypes[0])
        dx = _in_order(dx, channels_last[0])
    if want_weight:
        kernel_size = weight.shape[2], weight.shape[3]
        dw = convolution_weight_gradient(
            dz, to_channels_last(x), spec, kernel_size, channels_last=channels_last[1], dtype=dtypes[1]
        )
    return dx, dw, None if bias_gradient is None else bias_gradient.to(dtypes[2])


def _to_argmax(grad: Tensor, argmax: Tensor, size: tuple[int, int]) -> Tensor:
    """The gradient of each 2 x 2 window, channels_last, at its largest pixel; [N, K, *size]."""
    from tinynet_kernels.pool import Window, max_pool2d_backward

    return max_pool2d_backward(grad, argmax, Window((2, 2), (2, 2), (0, 0)), size, channels_last=True)


def _operator_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: list[int], name: str, parameters: list[float], save: bool
) -> tuple[Tensor, Tensor | None]:
    """y in the memory order of `conv2d`, and z, channels_last, where the backward needs it."""
    activation = Activation.from_values(name, parameters)
    settings = ConvolutionSpec.from_values(spec), activation, False
    save = save and not activation.reads_output
    y, (_, _, z, _), _ = _forward(x, weight, bias, None, *settings, save=save)
    return y, z


def _operator_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: list[int], name: str, parameters: list[float], save: bool
) -> tuple[Tensor, Tensor | None]:
    P, Q = _output_size(x, weight, spec)
    shape = (x.shape[0], weight.shape[0], P, Q)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x, weight))
    saves_input = save and name != "identity" and not Activation.from_values(name, parameters).reads_output
    return y, torch.empty_like(y, memory_format=torch.channels_last) if saves_input else None


def _output_size(x: Tensor, weight: Tensor, spec: list[int]) -> tuple[int, int]:
    size, kernel_size = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    return ConvolutionSpec.from_values(spec).output_size(size, kernel_size)


def _memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if any of the tensors is."""
    from tinynet_kernels.layout import is_channels_last

    return torch.channels_last if any(map(is_channels_last, tensors)) else torch.contiguous_format


def _operator_backward(
    grads: list[Tensor], saved: list[Any], spec: list[int], name: str, parameters: list[float], wanted: list[bool]
) -> Sequence[Tensor | None]:
    """In the memory order of x and weight."""
    from tinynet_kernels.layout import is_channels_last

    x, weight, for_derivative = saved
    settings = ConvolutionSpec.from_values(spec), Activation.from_values(name, parameters)
    channels_last = is_channels_last(x), is_channels_last(weight)
    return conv2d_gradients(grads[0], x, weight, for_derivative, *settings, channels_last, wanted, [x.dtype] * 3)


def _operator_fake_backward(grads: list[Tensor], saved: list[Any], *rest: Any) -> list[Tensor | None]:
    x, weight, _ = saved
    want_x, want_weight, want_bias = rest[-1]
    return [
        torch.empty_like(x, memory_format=_memory_format(x)) if want_x else None,
        torch.empty_like(weight, memory_format=_memory_format(weight)) if want_weight else None,
        grads[0].new_empty(weight.shape[:1]) if want_bias else None,
    ]


def _flops(wanted: list[bool] | None, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Two for each output pixel and weight that it meets; one such product forward, one a gradient."""
    P, Q = _output_size(x, weight, rest[1])
    return 2 * x.shape[0] * P * Q * weight.numel() * (1 if wanted is None else sum(wanted[:2]))


conv2d_operator = Operator(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int[] spec, str name, float[] parameters, bool save) "
    "-> (Tensor, Tensor)",
    forward=_operator_forward,
    fake=_operator_fake,
    saves=lambda given, made: [*given[:2], made[0] if Activation.from_values(*given[4:6]).reads_output else made[1]],
    backward=_operator_backward,
    fake_backward=_operator_fake_backward,
    reference=lambda x, weight, bias, spec, name, parameters: conv2d_reference(
        x, weight, bias, ConvolutionSpec.from_values(spec), Activation.from_values(name, parameters)
    ),
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
        padding: zeros on each side: one number, (height, width), "valid" (none) or "same" (as many as keep the size;
            stride 1 only).
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
    dtype = autocast_dtype(input)
    way = route_floating("conv2d", dtype, ("input", "weight", "bias"), input, weight, bias)
    spec = convolution_spec(input, weight, bias, stride, padding, dilation, groups)
    pooled = pool != 1 and check_pool(
        pool, spec.output_size((input.shape[-2], input.shape[-1]), (weight.shape[2], weight.shape[3]))
    )
    if input.dim() == 3:
        return _conv2d(way, dtype, input.unsqueeze(0), weight, bias, spec, function, pooled).squeeze(0)
    return _conv2d(way, dtype, input, weight, bias, spec, function, pooled)


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


def _conv2d(
    way: Route,
    dtype: torch.dtype | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    pool: bool,
) -> Tensor:
    if way is Route.KERNELS:
        if needs_gradient(x, weight, bias):
            return Conv2dFunction.apply(x, weight, bias, dtype, spec, activation, pool)  # pyright: ignore
        return _forward(x, weight, bias, dtype, spec, activation, pool, save=False)[0]
    x, weight, bias = autocast(x, weight, bias)
    if way is Route.REFERENCE:
        y = conv2d_reference(x, weight, bias, spec, activation)
        return F.max_pool2d(y, 2) if pool else y
    save = needs_gradient(x, weight, bias)
    y = conv2d_operator(x, weight, bias, spec.values, activation.name, activation.values, save)[0]
    return max_pool2d(y, 2) if pool else y  # type: ignore[return-value]


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
    strides = _pair("stride", stride, 1)
    dilations = _pair("dilation", dilation, 1)
    begin, end = _padding(padding, strides, dilations, (R, S))
    spec = ConvolutionSpec(strides, begin, end, dilations, groups)
    padded, window = spec.padded_size((H, W)), spec.window((R, S))
    if R == 0 or S == 0 or window[0] > padded[0] or window[1] > padded[1]:
        raise ValueError(
            f"conv2d: weight {tuple(weight.shape)} with dilation {dilations} needs {window} pixels, but input "
            f"{tuple(x.shape)} has {padded} with its padding"
        )
    return spec


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """(height, width) of a number or a pair, none below `least`."""
    pair = tuple(map(as_integer, value if isinstance(value, tuple | list) else (value,)))
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) != 2:
        raise ValueError(f"conv2d: {name} must be one number or (height, width), got {value!r}")
    if None in pair:
        raise TypeError(f"conv2d: {name} must be an integer or a pair of them, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"conv2d: {name} must be at least {least}, got {value!r}")
    return pair


def _padding(
    padding: Any, stride: tuple[int, int], dilation: tuple[int, int], kernel_size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros at the (top, left) and at the (bottom, right)."""
    if not isinstance(padding, str):
        pair = _pair("padding", padding, 0)
        return pair, pair
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f"conv2d: padding must be numbers, 'valid' or 'same', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"conv2d: padding 'same' needs stride 1, got stride {stride}")
    height, width = (step * (size - 1) for step, size in zip(dilation, kernel_size, strict=True))
    return (height // 2, width // 2), (height - height // 2, width - width // 2)

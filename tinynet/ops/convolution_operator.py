"""The operator behind `conv.py`: a convolution's definition, its kernels as an autograd function, and registered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.ops import kernels
from tinynet.ops.activation import activation_reference
from tinynet.ops.arguments import cast_to
from tinynet.ops.autograd import EagerFunction, gradients_of, held, hold, through_kernels
from tinynet.ops.convolution_spec import EagerConvolution
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.spec import ConvolutionSpec, Normalization, Sizes

_FUNCTIONS: Any = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}  # by the dimensions of x


def convolution_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvolutionSpec, activation: Activation
) -> Tensor:
    """act(x * W + b) in plain PyTorch."""
    padding = spec.padding
    if padding != spec.padding_end:
        pairs = zip(reversed(padding), reversed(spec.padding_end), strict=True)
        x = F.pad(x, [size for pair in pairs for size in pair])
        padding = 0
    z = _FUNCTIONS[x.dim()](x, weight, bias, spec.stride, padding, spec.dilation, spec.groups)
    return activation_reference(z, activation)


def _in_pytorch(ctx: Any, grad: Tensor, of_statistics: None) -> Sequence[Tensor | None]:
    images, *_, original = ctx.saved_tensors
    x = images if original is None else original
    settings = ctx.dtype, ctx.convolution.spec, ctx.activation, ctx.convolution.pool
    wanted = (*[False] * len(settings), *ctx.needs_input_grad[:3])
    return gradients_of(_in_dtype, (*settings, x, *held(ctx.parameters)), wanted, (grad,))[len(settings) :]


class ConvolutionFunction(EagerFunction):
    """act(x * W + b) of x [N, C, *sizes], and for `pool` its largest of each 2 x 2 window, through the kernels.

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
        convolution: EagerConvolution,
        activation: Activation,
        want_statistics: bool,
    ) -> tuple[Tensor, Tensor | None]:
        y, results, images, packed = convolution_forward(
            x, weight, bias, dtype, convolution, activation, save=True, want_statistics=want_statistics
        )
        # A converted x has lost its history, which second derivatives through x need.
        original = x if images is not x and ctx.needs_input_grad[0] else None
        ctx.save_for_backward(images, packed, results.saved, results.argmax, original)
        ctx.parameters = hold(weight, bias)
        ctx.dtype, ctx.convolution, ctx.activation = dtype, convolution, activation
        ctx.dtypes = dtype if dtype is None else (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        if results.partial is not None:
            ctx.mark_non_differentiable(results.partial)
            ctx.set_materialize_grads(False)  # no zeros for the statistics
        return y, results.partial

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor, of_statistics: None) -> tuple[Tensor | None, ...]:
        x, weight, saved, argmax, _ = ctx.saved_tensors
        spec, channels_last = ctx.convolution.spec, ctx.convolution.channels_last
        wanted = ctx.needs_input_grad[:3]
        dx, dw, db = convolution_gradients(
            grad, x, weight, saved, spec, ctx.activation, channels_last, wanted, ctx.dtypes, argmax
        )
        return dx, dw, db, None, None, None, None


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
    y = convolution_reference(x, weight, bias, spec, activation)
    return F.max_pool2d(y, 2) if pool else y


def convolution_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype | None,
    convolution: EagerConvolution,
    activation: Activation,
    *,
    save: bool,
    norm: Normalization | None = None,
    want_statistics: bool = False,
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """y; all results, channels_last; x and W as the kernels read them, which a backward would else convert again."""
    spec, pool, (x_is_readable, weight_is_readable), channels_last, _ = convolution
    if dtype is not None:
        x, weight, bias = cast_to(dtype, x, weight, bias)
    images = x if x_is_readable else kernels.layout.to_channels_last(x)
    packed = weight if weight_is_readable else kernels.layout.to_channels_last(weight)
    results = kernels.conv_forward.convolution_forward(
        images, packed, bias, spec, activation, save=save, pool=pool, norm=norm, want_statistics=want_statistics
    )
    return in_order(results.y, True in channels_last), results, images, packed


def in_order(y: Tensor, channels_last: bool) -> Tensor:
    """A channels_last tensor, converted to contiguous unless `channels_last`.

    It is no view, since autograd lets nobody write to the views that a function returns.
    """
    y = y if channels_last else kernels.layout.to_contiguous(y)
    return y.data if y._is_view() else y


def convolution_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    spec: ConvolutionSpec,
    activation: Activation,
    channels_last: tuple[bool, bool],
    wanted: Sequence[bool],
    dtypes: Sequence[torch.dtype | None] | None,
    argmax: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dX, dW, db), each None where not wanted.

    Args:
        grad: dY [N, K, *sizes].
        x: [N, C, *sizes].
        weight: [K, C / groups, *kernel size].
        saved: y or z in dY's shape, as `activation.reads_output` says; None for identity.
        spec: stride, padding, dilation, groups.
        activation: the fused function.
        channels_last: whether dX and dW are to be channels_last; contiguous otherwise.
        wanted: whether dX, dW and db are needed.
        dtypes: of dX, dW and db, None for a bias that isn't; None in all: that of x.
        argmax: the tap that is the maximum of each 2 x 2 window, where the convolution pooled; `grad` and `saved` are
            then those of the windows, [N, K, P // 2, Q // 2].
    """
    want_x, want_weight, want_bias = wanted
    layout = kernels.layout
    of_x, of_weight, of_bias = dtypes or (None, None, x.dtype)
    dz, parts, db, dx, dw = layout.to_channels_last(grad), None, None, None, None
    if saved is not None:
        saved = layout.to_channels_last(saved)
    x, kernel_size = layout.to_channels_last(x), weight.shape[2:]
    if want_weight and not want_x and kernels.conv_weight_gradient.takes_output_gradient(x, spec):
        dw, db = kernels.conv_weight_gradient.convolution_weight_gradient(
            dz,
            x,
            spec,
            kernel_size,
            channels_last=channels_last[1],
            dtype=of_weight,
            saved=saved,
            argmax=argmax,
            activation=activation,
            want_bias=want_bias,
        )
        return None, dw, None if db is None else db.to(of_bias)
    if want_bias or activation.name != "identity" or argmax is not None:
        output_size = spec.output_size(x.shape[2:], kernel_size)
        dz, parts = _through_activation(dz, saved, argmax, activation, output_size, want_x or want_weight, want_bias)
    if want_x:
        packed = layout.to_channels_last(weight)
        dx = kernels.conv_input_gradient.convolution_input_gradient(dz, packed, spec, x.shape[2:], of_x)
        dx = in_order(dx, channels_last[0])
    if want_weight:
        bias_parts = None if parts is None or parts.dim() == 1 else parts
        dw, db = kernels.conv_weight_gradient.convolution_weight_gradient(
            dz, x, spec, kernel_size, channels_last=channels_last[1], dtype=of_weight, bias_parts=bias_parts
        )
    if parts is not None and db is None:
        db = parts if parts.dim() == 1 else kernels.reduction.sum_partials(parts)
    return dx, dw, None if db is None else db.to(of_bias)


def _through_activation(
    dy: Tensor,
    saved: Tensor | None,
    argmax: Tensor | None,
    activation: Activation,
    size: Sizes,
    want_dz: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """dZ [N, K, *size], where `want_dz`; and partial sums of db, fp32 [parts, K], or db itself [K], or None."""
    if argmax is not None and want_dz:
        return kernels.pooled_gradient.pooled_gradient(dy, saved, argmax, activation, size, want_bias=want_bias)
    want_dz = want_dz and activation.name != "identity"
    if not (want_dz or want_bias):
        return dy, None
    layout = kernels.layout
    rows = None if saved is None else layout.as_rows(saved)
    dz, parts = kernels.activation.activation_backward_parts(
        layout.as_rows(dy), rows, activation, want_dz=want_dz, want_bias=want_bias
    )
    return dy if dz is None else layout.as_images(dz, dy), parts


def _operator_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvolutionSpec, activation: Activation, save: bool
) -> Tensors:
    """y in the memory order of `conv2d`, and z, channels_last, where the backward needs it."""
    layout = kernels.layout
    results = kernels.conv_forward.convolution_forward(
        *(layout.to_channels_last(x), layout.to_channels_last(weight), bias, spec, activation),
        save=save and activation.reads_input,
    )
    return in_order(results.y, layout.is_channels_last(x) or layout.is_channels_last(weight)), results.saved


def _operator_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvolutionSpec, activation: Activation, save: bool
) -> Tensors:
    shape = (x.shape[0], weight.shape[0], *spec.output_size(x.shape[2:], weight.shape[2:]))
    y = empty_in_order(x, shape, x, weight)
    return y, kernels.layout.empty_channels_last(y, shape) if save and activation.reads_input else None


def empty_in_order(like: Tensor, shape: Sequence[int], *tensors: Tensor) -> Tensor:
    """An uninitialized tensor, channels_last if any of `tensors` is, else contiguous."""
    channels_last = any(map(kernels.layout.is_channels_last, tensors))
    return kernels.layout.empty_channels_last(like, tuple(shape)) if channels_last else like.new_empty(shape)


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
    return convolution_gradients(grads[0], x, weight, for_derivative, spec, activation, channels_last, wanted, None)


def _operator_fake_backward(grads: list[Tensor], saved: list[Any], *rest: Any) -> list[Tensor | None]:
    x, weight, _ = saved
    want_x, want_weight, want_bias = rest[-1]
    return [
        empty_in_order(x, x.shape, x) if want_x else None,
        empty_in_order(weight, weight.shape, weight) if want_weight else None,
        grads[0].new_empty(weight.shape[:1]) if want_bias else None,
    ]


def _flops(wanted: list[bool] | None, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Two for each pair of output pixel and weight: one such product in the forward, one for each gradient."""
    pixels = math.prod(rest[1].output_size(x.shape[2:], weight.shape[2:]))
    return 2 * x.shape[0] * pixels * weight.numel() * (1 if wanted is None else sum(wanted[:2]))


convolution_operator = Operator(
    "convolution(Tensor x, Tensor weight, Tensor? bias, ConvolutionSpec spec, Activation activation)"
    " -> (Tensor, Tensor)",
    forward=_operator_forward,
    fake=_operator_fake,
    saves=lambda given, results: [*given[:2], results[0] if given[4].reads_output else results[1]],
    backward=_operator_backward,
    fake_backward=_operator_fake_backward,
    reference=convolution_reference,
    flops=_flops,
)

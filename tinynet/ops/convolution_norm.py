"""A convolution of images and the batch normalization after it, in training: one autograd function for both.

    y = act(normalize(x * W + b) + residual)

The convolution leaves statistics of its result for the normalization where that costs nothing. The kernels are those of
both layers; what one function saves is the work of the host for two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinynet.dispatch import Route, are_plain_and_alike, route_of_plain
from tinynet.ops import kernels
from tinynet.ops.arguments import autocast_dtype, bias_to_save, needs_gradient
from tinynet.ops.autograd import EagerFunction, gradients_of, held, hold, through_kernels
from tinynet.ops.batch_norm import norm_reference
from tinynet.ops.convolution_operator import convolution_forward, convolution_gradients, convolution_reference
from tinynet.ops.convolution_spec import EagerConvolution, IntOrSizes, eager_convolution
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.conv.spec import ConvolutionSpec


class TrainedNorm(NamedTuple):
    """A batch normalization that computes its statistics from its input.

    Attributes:
        weight, bias: [K], or None for ones and zeros.
        running_mean, running_var: [K], updated in place; both or neither may be None.
        momentum: of the update.
        eps: added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float


def convolution_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrSizes,
    padding: IntOrSizes | str,
    dilation: IntOrSizes,
    groups: int,
    norm: TrainedNorm,
    activation: Activation,
    residual: Tensor | None,
) -> Tensor | None:
    """The result of both layers; None where they have to be called one after the other.

    So have operands that are no plain tensors of one dtype, shapes that don't fit together, and calls without gradients
    or under autocast.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in `conv2d`.
        norm: the normalization.
        activation: applied last.
        residual: of the result's shape, added before the activation; or None.
    """
    parameters = norm[:4]
    if not are_plain_and_alike((input, weight, bias, *parameters, residual)):
        return None
    if route_of_plain(input) is not Route.KERNELS or autocast_dtype(input) is not None:
        return None
    if not needs_gradient(input, weight, bias, norm.weight, norm.bias, residual):
        return None
    convolution = eager_convolution("conv2d", input, weight, bias, stride, padding, dilation, groups, 1)
    if not _fits(convolution.shape, norm, residual):
        return None
    y = ConvolutionNormFunction.run(
        input, weight, bias, norm.weight, norm.bias, residual, convolution, norm, activation
    )
    if norm.running_mean is not None and norm.running_var is not None:
        torch.autograd.graph.increment_version((norm.running_mean, norm.running_var))
    return y


def _fits(shape: Sequence[int], norm: TrainedNorm, residual: Tensor | None) -> bool:
    """Whether the norm can normalize, and the residual be added to, a convolution's result of this shape."""
    channels = (shape[1],)
    for parameter in norm[:4]:
        if parameter is not None and (parameter.shape != channels or not parameter.is_contiguous()):
            return False
    if (norm.running_mean is None) is not (norm.running_var is None) or type(norm.momentum) is not float:
        return False
    several = math.prod(shape) > shape[1] and type(norm.eps) is float and norm.eps > 0
    return several and (residual is None or residual.shape == shape)


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    images, *_, original = ctx.saved_tensors
    x = images if original is None else original
    settings = ctx.convolution.spec, ctx.norm.eps, ctx.activation
    wanted = (*[False] * len(settings), *ctx.needs_input_grad[:6])
    return gradients_of(_reference, (*settings, x, *held(ctx.given)), wanted, (grad,))[len(settings) :]


def _reference(
    spec: ConvolutionSpec,
    eps: float,
    activation: Activation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """The definition in plain PyTorch."""
    z = convolution_reference(x, weight, bias, spec, IDENTITY)
    statistics = None, None, None
    return norm_reference(z, norm_weight, norm_bias, residual, *statistics, True, False, 0.0, eps, activation)


class ConvolutionNormFunction(EagerFunction):
    """Both layers through the kernels; the running statistics are updated."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        residual: Tensor | None,
        convolution: EagerConvolution,
        norm: TrainedNorm,
        activation: Activation,
    ) -> Tensor:
        z, results, images, packed = convolution_forward(
            x, weight, bias, None, convolution, IDENTITY, save=True, want_statistics=True
        )
        y, mean, variance = kernels.batch_norm_forward.norm_forward(
            *(z, norm_weight, norm_bias, residual, None, None, norm.running_mean, norm.running_var),
            *(norm.momentum, norm.eps, activation),
            per_sample=False,
            partial=results.partial,
        )
        other = None  # what the activation's derivative reads; it is computed again without a residual
        if residual is not None and activation.name != "identity":
            other = y if activation.reads_output else residual
        # A converted x has lost its history, which second derivatives through x need.
        original = x if images is not x and ctx.needs_input_grad[0] else None
        reads_bias = activation.reads_input or (activation.reads_output and other is None)
        read_bias = bias_to_save(norm_weight, norm_bias, is_read=reads_bias)
        ctx.save_for_backward(images, packed, z, norm_weight, read_bias, other, mean, variance, original)
        ctx.given = hold(weight, bias, norm_weight, norm_bias, residual)
        ctx.convolution, ctx.norm, ctx.activation = convolution, norm, activation
        return y

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, z, norm_weight, norm_bias, other, mean, variance, _ = ctx.saved_tensors
        want_x, want_weight, want_bias, want_norm_weight, want_norm_bias, want_residual, *_ = ctx.needs_input_grad
        launcher, convolution = kernels.batch_norm_backward, ctx.convolution
        wanted = want_x, want_weight, want_bias
        dz, *others = launcher.norm_backward(
            *(grad, z, norm_weight, norm_bias, other, mean, variance, ctx.norm.eps, ctx.activation),
            launcher.NormGradients(True in wanted, want_norm_weight, want_norm_bias, want_residual),
            per_sample=False,
            given=False,
        )
        gradients: Sequence[Tensor | None] = (None, None, None)
        if dz is not None:
            gradients = convolution_gradients(
                dz, x, weight, None, convolution.spec, IDENTITY, convolution.channels_last, wanted, None
            )
        return *gradients, *others, None, None, None

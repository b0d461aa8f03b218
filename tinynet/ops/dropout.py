"""Dropout of elements, whose mask is recomputed in the backward, and of channels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import check_floating, is_dense, needs_gradient
from tinynet.ops.autograd import EagerFunction, through_kernels
from tinynet.ops.operator import Operator, contiguous_like
from tinynet.ops.seeds import new_seed
from tinynet_kernels import replays

# An element that is kept becomes x / divisor + shift, any other one `dropped`.
Scale = tuple[float, float, float]  # (divisor, shift, dropped)

SELU_LIMIT = 1.7580993408473766  # minus the limit of selu at minus infinity


def dropout_scale(p: float) -> Scale:
    """Keeps the mean."""
    return 1.0 - p, 0.0, 0.0


def alpha_scale(p: float) -> Scale:
    """Drops to selu's limit, then keeps mean 0 and variance 1 (Klambauer et al. 2017)."""
    divisor = math.sqrt((SELU_LIMIT * SELU_LIMIT * p + 1.0) * (1.0 - p))
    return divisor, SELU_LIMIT * p / divisor, SELU_LIMIT * (p - 1.0) / divisor


def _apply(x: Tensor, seed: Tensor, p: float, *scale: float) -> Tensor:
    return kernels.dropout.dropout_apply(x, seed, p, kernels.dropout.Scale(*scale))


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    (seed,) = ctx.saved_tensors
    ones = torch.empty_strided(ctx.shape, ctx.strides, dtype=grad.dtype, device=seed.device).fill_(1)
    return (grad * _apply(ones, seed, ctx.p, ctx.divisor),)


class DropoutFunction(EagerFunction):
    """Dropout of elements through the kernel; x is dense."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, p: float, scale: Scale) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.p, ctx.divisor, ctx.shape, ctx.strides = p, scale[0], x.shape, x.stride()
        return _apply(x, seed, p, *scale)

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (seed,) = ctx.saved_tensors
        if grad.stride() != ctx.strides:  # elements are counted in memory order
            grad = grad.new_empty_strided(grad.shape, ctx.strides).copy_(grad)
        return _apply(grad, seed, ctx.p, ctx.divisor), None, None, None


def _in_terms_of_ones(x: Tensor, seed: Tensor, p: float, divisor: float, shift: float, dropped: float) -> Tensor:
    """Dropout as a function of x that PyTorch can differentiate."""
    kept = _apply(torch.ones_like(x), seed, p, 1.0)
    return torch.where(kept != 0, x / divisor + shift, dropped)


dropout_operator = Operator(
    "dropout(Tensor x, Tensor seed, float p, float divisor, float shift, float dropped) -> Tensor",
    forward=lambda x, seed, *settings: [_apply(x.contiguous(), seed, *settings[:-1])],
    fake=lambda x, *_: [contiguous_like(x)],
    saves=lambda given, results: [given[1]],
    backward=lambda grads, saved, p, divisor, *_: [_apply(grads[0].contiguous(), saved[0], p, divisor), None],
    fake_backward=lambda grads, *_: [contiguous_like(grads[0]), None],
    reference=_in_terms_of_ones,
)


def _apply_to_channels(x: Tensor, keep: Tensor, *scale: float) -> Tensor:
    return kernels.dropout.channel_dropout_apply(x, keep, kernels.dropout.Scale(*scale))


channel_dropout_operator = Operator(
    "channel_dropout(Tensor x, Tensor keep, float divisor, float shift, float dropped) -> Tensor",
    forward=lambda x, keep, *settings: [_apply_to_channels(x, keep, *settings[:-1])],
    fake=lambda x, *_: [torch.empty_like(x)],
    saves=lambda given, results: [given[1]],
    backward=lambda grads, saved, divisor, *_: [_apply_to_channels(grads[0].contiguous(), saved[0], divisor), None],
    fake_backward=lambda grads, *_: [contiguous_like(grads[0]), None],
    reference=lambda x, keep, divisor, shift, dropped: torch.where(keep != 0, x / divisor + shift, dropped),
)


def _checked(operator: str, input: Tensor, p: float) -> float:
    """p as a float: kernels take no numbers of NumPy.

    Raises:
        ValueError: p outside [0, 1].
        TypeError: an input that is not floating point.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{operator}: p must be in [0, 1], got {p}")
    check_floating(operator, input=input)
    return float(p)


def _drop_elements(operator: str, input: Tensor, p: float, training: bool, scale_of: Any, reference: Any) -> Tensor:
    """Drops elements of any tensor; `reference` is PyTorch's function."""
    p = _checked(operator, input, p)
    if not training or p == 0.0:
        return input
    route = route_of(operator, ("input",), input)
    if p == 1.0:
        return input * 0.0
    if route is Route.REFERENCE:
        return reference(input, p, training=True)
    seed = new_seed(input.device)
    scale = scale_of(p)
    if route is Route.OPERATOR:
        return dropout_operator(route, input, seed, p, *scale)
    dense = input if is_dense(input) else input.contiguous()
    if needs_gradient(input):
        return DropoutFunction.run(dense, seed, p, scale)
    return _apply(dense, seed, p, *scale)


def _drop_channels(operator: str, input: Tensor, p: float, training: bool, scale_of: Any) -> Tensor:
    """Drops channels of [N, C, ...]: the same that PyTorch drops after the same seed."""
    p = _checked(operator, input, p)
    if input.dim() < 2:
        raise ValueError(f"{operator}: input must have at least 2 dimensions, got shape {tuple(input.shape)}")
    if not training or p == 0.0 or input.numel() == 0:
        return input
    route = route_of(operator, ("input",), input)
    if p == 1.0:
        return input * 0.0
    N, C = input.shape[:2]
    keep = replays.fill(input.new_empty((N, C)), lambda keep: keep.bernoulli_(1.0 - p))
    channels_last = not input.is_contiguous() and input.movedim(1, -1).is_contiguous()
    x = input.movedim(1, -1) if channels_last else input.contiguous()
    rows, keep = (x.reshape(N, -1, C), keep.unsqueeze(1)) if channels_last else (x.reshape(N, C, -1), keep.unsqueeze(2))
    y = channel_dropout_operator(route, rows, keep, *scale_of(p)).view(x.shape)
    return y.movedim(-1, 1) if channels_last else y


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zeroes each element with probability p and scales the others by 1 / (1 - p), where `training`.

    The seed comes from PyTorch's generator of x's device, so `torch.manual_seed` repeats a run; the elements that are
    dropped are others than torch.nn.functional.dropout's.

    Args:
        input: x [...], float32, bfloat16, float16 (kernels) or float64 (reference).
        p: probability, 0 <= p <= 1.
        training: False returns x.
        inplace: taken for compatibility; x is never written to.

    Raises:
        ValueError: p outside [0, 1].
        TypeError: x is not floating point.

    Source: torch.nn.functional.dropout (Srivastava et al. 2014).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout, (input,), input, p, training, inplace)
    return _drop_elements("dropout", input, p, training, dropout_scale, F.dropout)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Sets each element to selu's negative limit with probability p, and keeps mean 0 and variance 1.

    The arguments, errors and random numbers are those of `dropout`, except that `training` is False where left out.

    Source: torch.nn.functional.alpha_dropout (Klambauer et al. 2017).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(alpha_dropout, (input,), input, p, training, inplace)
    return _drop_elements("alpha_dropout", input, p, training, alpha_scale, F.alpha_dropout)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zeroes each channel with probability p and scales the others by 1 / (1 - p), where `training`.

    Args:
        input: [N, C, L] or [C, L], float32, bfloat16, float16 (kernels) or float64 (reference).
        p: probability, 0 <= p <= 1.
        training: False returns the input.
        inplace: taken for compatibility; the input is never written to.

    Returns:
        The input's shape and dtype. The channels that are dropped are those that PyTorch drops after the same seed.

    Raises:
        ValueError: p outside [0, 1], another number of dimensions.
        TypeError: an input that is not floating point.

    Source: torch.nn.functional.dropout1d (Tompson et al. 2015).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout1d, (input,), input, p, training, inplace)
    if input.dim() not in (2, 3):
        raise ValueError(f"dropout1d: input must be [N, C, L] or [C, L], got shape {tuple(input.shape)}")
    batched = input if input.dim() == 3 else input.unsqueeze(0)
    y = _drop_channels("dropout1d", batched, p, training, dropout_scale)
    return y if input.dim() == 3 else y.squeeze(0)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `dropout1d`, of [N, C, H, W]; other inputs of two dimensions or more are taken for [N, C, ...].

    PyTorch takes [a, b, c] for [N, C, L] too, and warns.

    Source: torch.nn.functional.dropout2d (Tompson et al. 2015).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout2d, (input,), input, p, training, inplace)
    if input.dim() == 3:
        warnings.warn("dropout2d: an input of 3 dimensions is taken for [N, C, L]; use dropout1d for it", stacklevel=2)
    return _drop_channels("dropout2d", input, p, training, dropout_scale)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `dropout1d`, of [N, C, D, H, W] or [C, D, H, W].

    Source: torch.nn.functional.dropout3d (Tompson et al. 2015).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout3d, (input,), input, p, training, inplace)
    batched = input if input.dim() == 5 else input.unsqueeze(0)
    y = _drop_channels("dropout3d", batched, p, training, dropout_scale)
    return y if input.dim() == 5 else y.squeeze(0)


def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """As `alpha_dropout`, of whole channels of [N, C, ...].

    Source: torch.nn.functional.feature_alpha_dropout.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(feature_alpha_dropout, (input,), input, p, training, inplace)
    return _drop_channels("feature_alpha_dropout", input, p, training, alpha_scale)

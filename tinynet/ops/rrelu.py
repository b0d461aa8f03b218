"""Randomized leaky ReLU: a leaky ReLU whose slope is random in training, and the mean slope otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.activation import leaky_relu
from tinynet.ops.arguments import is_dense, route_floating
from tinynet.ops.operator import Operator, like_saved
from tinynet.ops.seeds import new_seed


def _backward(grads: Sequence[Any], saved: Sequence[Any], lower: float, upper: float, wanted: Any) -> list[Any]:
    x, seed = saved
    grad = grads[0]
    if grad.stride() != x.stride():  # elements are counted in memory order
        grad = torch.empty_like(x).copy_(grad)
    return [kernels.rrelu.rrelu_apply(x, seed, grad, lower, upper), None]


def _in_terms_of_slopes(x: Tensor, seed: Tensor, lower: float, upper: float) -> Tensor:
    """The operator as a function of x that PyTorch can differentiate."""
    slopes = -kernels.rrelu.rrelu_apply(torch.full_like(x, -1.0), seed, None, lower, upper)
    return torch.where(x <= 0, x * slopes, x)


rrelu_operator = Operator(
    "rrelu(Tensor x, Tensor seed, float lower, float upper) -> Tensor",
    forward=lambda x, seed, lower, upper, save: [kernels.rrelu.rrelu_apply(x, seed, None, lower, upper)],
    fake=lambda x, *_: [torch.empty_like(x)],
    saves=lambda given, results: given[:2],
    backward=_backward,
    fake_backward=lambda grads, saved, *rest: [like_saved(grads, saved, rest[-1])[0], None],
    reference=_in_terms_of_slopes,
)


def rrelu(
    input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """x where positive, else r x: r is random in [lower, upper) for each element where `training`, else their mean.

    The seed comes from PyTorch's generator of x's device, so `torch.manual_seed` repeats a run; the slopes are others
    than torch.nn.functional.rrelu's.

    Args:
        input: x [...], float32, bfloat16, float16 (kernels) or float64 (reference).
        lower, upper: bounds of the slope.
        training: whether slopes are random.
        inplace: taken for compatibility; x is never written to.

    Raises:
        ValueError: bounds that are not finite, or an upper one below the lower.
        TypeError: x is not floating point.

    Source: torch.nn.functional.rrelu (Xu et al. 2015).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(rrelu, (input,), input, lower, upper, training, inplace)
    lower, upper = float(lower), float(upper)  # kernels take no numbers of NumPy
    if not (lower <= upper and math.isfinite(lower) and math.isfinite(upper)):
        raise ValueError(f"rrelu: lower and upper must be finite and in order, got {lower} and {upper}")
    if not training or input.numel() == 0:
        return leaky_relu(input, (lower + upper) / 2)
    route = route_floating("rrelu", None, ("input",), input)
    if route is Route.REFERENCE:
        return F.rrelu(input, lower, upper, training=True)
    x = input if route is Route.KERNELS and is_dense(input) else input.contiguous()
    seed = new_seed(input.device)
    return rrelu_operator(route, x, seed, lower, upper)

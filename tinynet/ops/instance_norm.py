"""Instance normalization: batch normalization of each sample alone."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import needs_gradient
from tinynet.ops.batch_norm import as_number, norm_operator, route_norm, update_running, with_axes


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
) -> Tensor:
    """act((input - mean) / sqrt(variance + eps) weight + bias), with statistics of each channel of each sample.

    Args:
        input: [N, C, ...], as in `batch_norm`.
        running_mean, running_var: [C], or None. Updated in place by the means over all samples where
            `use_input_stats`; else they are the mean and variance.
        weight, bias: [C], or None for ones and zeros.
        use_input_stats: whether mean and variance are those of the input over all dimensions but N and C.
        momentum, eps, activation: as in `batch_norm`.

    Returns:
        Input's shape, dtype and memory order.

    Raises:
        ValueError: one value per channel and sample, no running statistics unless `use_input_stats`; and as
            `batch_norm`.
        TypeError: as `batch_norm`.

    Source: torch.nn.functional.instance_norm (Ulyanov et al. 2016).
    """
    if has_torch_function_unary(input):
        arguments = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        return handle_torch_function(instance_norm, (input,), input, *arguments, activation=activation)
    function = as_activation(activation)
    route = route_norm("instance_norm", input, weight, bias, None, running_mean, running_var)
    if use_input_stats and math.prod(input.shape[2:]) == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {input.size()}")
    if not use_input_stats and running_mean is None:
        raise ValueError("instance_norm: running_mean and running_var must be given unless use_input_stats")
    momentum, eps = as_number("instance_norm", "momentum", momentum), as_number("instance_norm", "eps", eps)
    if route is Route.REFERENCE:
        arguments = running_mean, running_var, weight, bias, bool(use_input_stats), momentum, eps
        return activation_reference(F.instance_norm(input, *arguments), function)
    tensors = with_axes(input, route, per_sample=bool(use_input_stats)), weight, bias, None
    if not use_input_stats:
        return norm_operator(route, *tensors, running_mean, running_var, None, False, False, momentum, eps, function)
    settings = True, True, momentum, eps, function
    if running_mean is None or running_var is None:
        return norm_operator(route, *tensors, None, None, None, *settings)
    y, mean, variance = norm_operator.registered(*tensors, None, None, None, *settings, needs_gradient(*tensors))
    count = math.prod(input.shape[2:])
    update_running(running_mean, running_var, mean.mean(0), variance.mean(0), count, momentum)
    return y

"""Layer normalization and RMS normalization, with an optional residual before and activation after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import as_integer, autocast_norm, bias_to_save, route_norm, with_contiguous_rows
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels.activation_spec import Activation


def layer_norm_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool, activation: Activation
) -> Tensor:
    """act(LayerNorm(x)), or RMSNorm's without `center`, of rows x [..., K], in plain PyTorch."""
    parameter = bias if weight is None else weight
    wide = x if parameter is None else x.to(parameter.dtype)
    columns = x.shape[-1:]
    z = F.layer_norm(wide, columns, weight, bias, eps) if center else F.rms_norm(wide, columns, weight, eps)
    return activation_reference(z, activation).to(x.dtype)


def add_layer_norm_reference(x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """(act(norm(x + residual)), x + residual)."""
    total = x + residual
    return layer_norm_reference(total, *rest), total


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    activation: Activation,
    save: bool,
) -> Tensors:
    """y, the sum with the residual, mean and rstd; None for what is absent."""
    return kernels.layer_norm_forward.layer_norm_forward(
        x, residual, weight, bias, eps, activation, center=center, save=save
    )


def _backward(
    grad: Tensor | None,
    sum_grad: Tensor | None,
    saved: Sequence[Any],
    activation: Activation,
    wanted: Sequence[bool],
) -> Tensors:
    """(dx, dw, db), each None where not wanted."""
    x, weight, bias, mean, rstd = saved
    if grad is None:  # of the two outputs only the sum was used
        grad = torch.zeros_like(x)
    sum_grad = None if sum_grad is None else with_contiguous_rows(sum_grad)
    return kernels.layer_norm_backward.layer_norm_backward(
        *(with_contiguous_rows(grad), sum_grad, x, weight, bias, mean, rstd, activation),
        want_x=wanted[0],
        want_weight=wanted[1],
        want_bias=wanted[2],
    )


def _fake(x: Tensor, residual: Tensor | None, center: bool, save: bool) -> Tensors:
    statistics = x.new_empty(x.shape[0], dtype=torch.float32) if save else None
    y = x.new_empty(x.shape)
    return (
        y,
        None if residual is None else torch.empty_like(y),
        statistics if center else None,
        None if statistics is None else torch.empty_like(statistics),
    )


def _parameters(given: Sequence[Any]) -> Tensors:
    """Those that the backward reads, of a weight, a bias and settings."""
    weight, bias, *_, activation = given
    return weight, bias_to_save(weight, bias, is_read=activation.name != "identity")


def _fake_gradients(saved: Sequence[Any], wanted: Sequence[bool]) -> Tensors:
    x, weight, bias, *_ = saved
    bias = weight if bias is None else bias
    return [
        x.new_empty(t.shape, dtype=t.dtype) if want else None for t, want in zip((x, weight, bias), wanted, strict=True)
    ]


layer_norm_operator = Operator(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, bool center, Activation activation) "
    "-> (Tensor, Tensor, Tensor)",
    forward=lambda x, *rest: _without_sum(_forward(x, None, *rest)),
    fake=lambda x, weight, bias, eps, center, activation, save: _without_sum(_fake(x, None, center, save)),
    saves=lambda given, results: [given[0], *_parameters(given[1:]), *results[1:]],
    backward=lambda grads, saved, eps, center, activation, wanted: _backward(grads[0], None, saved, activation, wanted),
    fake_backward=lambda grads, saved, *rest: _fake_gradients(saved, rest[-1]),
    reference=layer_norm_reference,
)

add_layer_norm_operator = Operator(
    "add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, bool center, "
    "Activation activation) -> (Tensor, Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=lambda x, residual, weight, bias, eps, center, activation, save: _fake(x, residual, center, save),
    saves=lambda given, results: [results[1], *_parameters(given[2:]), *results[2:]],
    backward=lambda grads, saved, eps, center, activation, wanted: _for_both(
        _backward(grads[0], grads[1], saved, activation, [wanted[0] or wanted[1], *wanted[2:]]), wanted
    ),
    fake_backward=lambda grads, saved, *rest: _for_both(
        _fake_gradients(saved, [rest[-1][0] or rest[-1][1], *rest[-1][2:]]), rest[-1]
    ),
    reference=add_layer_norm_reference,
    outputs=2,
)


def _without_sum(results: Tensors) -> Tensors:
    return results[0], *results[2:]


def _for_both(gradients: Tensors, wanted: Sequence[bool]) -> Tensors:
    """The sum's gradient is that of both its terms."""
    dx, dw, db = gradients
    return dx if wanted[0] else None, dx if wanted[1] else None, dw, db


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
) -> Any:
    """act((input - mean) / sqrt(variance + eps) weight + bias), statistics over the last dimensions.

    Args:
        input: [..., *normalized_shape], float32, bfloat16, float16 (kernels) or float64 (reference); any strides. On
            devices other than CPUs in float32 under autocast.
        normalized_shape: the last dimensions, one or more.
        weight, bias: normalized_shape, or None for ones and zeros; input's dtype, or both float32.
        eps: added to the variance.
        activation: applied last, in the same kernel: a name, `Activation`, module, function or None.
        residual: input's shape and dtype; added to input before it is normalized.

    Returns:
        input's shape and dtype, contiguous. With a residual the pair (normalized, input + residual), whose sum is
        rounded before it is normalized, so that the result is the same as with a separate addition.

    Raises:
        ValueError: shapes or devices that don't fit together.
        TypeError: dtypes that are not floating point or don't fit together, sizes that are no integers.

    Example:
        >>> x, weight, bias = torch.randn(2, 768), torch.ones(768), torch.zeros(768)
        >>> y, x = layer_norm(x, (768,), weight, bias, residual=torch.ones(2, 768))  # of x + 1, and that sum

    Source: torch.nn.functional.layer_norm (Ba et al. 2016).
    """
    if has_torch_function_unary(input):
        options = {"activation": activation, "residual": residual}
        return handle_torch_function(layer_norm, (input,), input, normalized_shape, weight, bias, eps, **options)
    return _normalize("layer_norm", input, normalized_shape, weight, bias, float(eps), activation, residual)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
) -> Any:
    """act(input / sqrt(mean of input^2 + eps) weight), the mean over the last dimensions.

    Args:
        input, normalized_shape, weight, activation, residual: as in `layer_norm`.
        eps: added to the mean; None for the epsilon of the dtype in which it is computed, float32 or float64.

    Returns:
        As `layer_norm`.

    Raises:
        ValueError, TypeError: as `layer_norm`.

    Source: torch.nn.functional.rms_norm (Zhang and Sennrich 2019).
    """
    if has_torch_function_unary(input):
        options = {"activation": activation, "residual": residual}
        return handle_torch_function(rms_norm, (input,), input, normalized_shape, weight, eps, **options)
    if eps is None:
        eps = torch.finfo(torch.float64 if input.dtype is torch.float64 else torch.float32).eps
    return _normalize("rms_norm", input, normalized_shape, weight, None, float(eps), activation, residual)


def _normalize(
    name: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: ActivationLike,
    residual: Tensor | None,
) -> Any:
    input, weight, bias, residual = autocast_norm(input, weight, bias, residual)
    route = route_norm(name, input, weight, bias, residual)
    function = as_activation(activation)
    is_remembered = route is Route.KERNELS and type(normalized_shape) is tuple
    check = _remembered_columns if is_remembered and all(type(size) is int for size in normalized_shape) else _columns
    shapes = [None if tensor is None else tensor.shape for tensor in (weight, bias, residual)]
    columns = check(name, input.shape, normalized_shape, *shapes)
    settings = eps, name == "layer_norm", function
    parameters = _as_row(weight), _as_row(bias)
    as_given = route is Route.KERNELS and input.shape[-1] == columns and input.is_contiguous()
    if residual is None:
        x = input if as_given else _as_rows(input, columns)
        y = layer_norm_operator(route, x, *parameters, *settings)
        return y if x is input else y.view(input.shape)
    x, added = input, residual
    if not (as_given and residual.is_contiguous()):
        x, added = _as_rows(input, columns), _as_rows(residual, columns)
    y, total = add_layer_norm_operator(route, x, added, *parameters, *settings)
    if not (input.requires_grad or residual.requires_grad):  # where only a parameter requires a gradient
        total = total.detach()
    return y.view(input.shape), total.view(input.shape)


def _columns(
    name: str,
    input_shape: Sequence[int],
    normalized_shape: Sequence[int],
    weight_shape: Sequence[int] | None,
    bias_shape: Sequence[int] | None,
    residual_shape: Sequence[int] | None,
) -> int:
    """How many elements share statistics, after a check that the shapes fit together."""
    if not isinstance(normalized_shape, Sequence):
        raise TypeError(f"{name}: normalized_shape must be a sequence of integers, got {normalized_shape!r}")
    shape = tuple(map(as_integer, normalized_shape))
    if None in shape:
        raise TypeError(f"{name}: normalized_shape must be a sequence of integers, got {normalized_shape!r}")
    if not shape or input_shape[-len(shape) :] != shape:
        raise ValueError(f"{name}: input {tuple(input_shape)} must end with the normalized_shape {shape}")
    for parameter, given, expected in (
        ("weight", weight_shape, shape),
        ("bias", bias_shape, shape),
        ("residual", residual_shape, tuple(input_shape)),
    ):
        if given is not None and given != expected:
            raise ValueError(f"{name}: {parameter} must have the shape {expected}, got {tuple(given)}")
    return math.prod(shape)


_remembered_columns = lru_cache(maxsize=4096)(_columns)


def _as_row(parameter: Tensor | None) -> Tensor | None:
    """A parameter as a contiguous vector."""
    if parameter is None or (parameter.dim() == 1 and parameter.is_contiguous()):
        return parameter
    return parameter.reshape(-1).contiguous()


def _as_rows(x: Tensor, columns: int) -> Tensor:
    """x as a matrix whose rows are contiguous: a view where the strides allow one."""
    rows = x if x.dim() == 2 and x.shape[1] == columns else x.reshape(x.numel() // max(columns, 1), columns)
    return rows if rows.stride(1) == 1 or columns == 1 else rows.contiguous()

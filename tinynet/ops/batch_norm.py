"""Batch normalization, fused with a residual connection and an activation; and what instance normalization shares."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, are_plain_and_alike, route_of, route_of_plain
from tinynet.ops import kernels
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import bias_to_save, check_device, needs_gradient
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.batch_norm.axes import axes_of, dense_strides


def norm_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    partial: Tensor | None,
    training: bool,
    per_sample: bool,
    momentum: float,
    eps: float,
    activation: Activation,
) -> Tensor:
    """act((x - mean) / sqrt(variance + eps) weight + bias + residual) in plain PyTorch.

    For `training` mean and variance are those of x, of each sample alone for `per_sample`, and the given ones are the
    running statistics, which this does not update. `partial`, statistics of parts of x, is what the kernels need.
    """
    if per_sample:
        z = F.instance_norm(x, None, None, weight, bias, True, momentum, eps)
    else:
        given = (None, None) if training else (mean, variance)
        z = F.batch_norm(x, *given, weight, bias, training, momentum, eps)
    return activation_reference(z if residual is None else z + residual, activation)


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    partial: Tensor | None,
    training: bool,
    per_sample: bool,
    momentum: float,
    eps: float,
    activation: Activation,
    save: bool,
) -> Tensors:
    statistics = None, None, mean, variance  # running ones
    if not training:
        statistics = *_contiguous(mean, variance), None, None
    return kernels.batch_norm_forward.norm_forward(
        *(x, *_contiguous(weight, bias), residual, *statistics, momentum, eps, activation),
        per_sample=per_sample,
        partial=partial,
    )


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]


def _dense(x: Tensor, per_sample: bool) -> Tensor:
    """What the kernels return for x: its shape and order, without gaps and values."""
    axes = axes_of(x.shape, x.stride(), per_sample=per_sample)
    return x.new_empty_strided(x.shape, dense_strides(x.shape, channels_inner=axes is not None and axes.channels_inner))


def _fake(x: Tensor, *rest: Any) -> Tensors:
    training, per_sample = rest[6:8]
    y = _dense(x, per_sample)
    if not training:
        return y, None, None
    shape = x.shape[:2] if per_sample else x.shape[1:2]
    return y, *[x.new_empty(shape, dtype=torch.float32) for _ in range(2)]


def _saves(given: Sequence[Any], results: Sequence[Any]) -> Tensors:
    """What the backward reads: the bias where it computes z again."""
    x, weight, bias, residual, mean, variance, _, training, *_, activation = given
    if training:
        mean, variance = results[1:]
    saved = None
    if residual is not None and activation.name != "identity":
        saved = results[0] if activation.reads_output else residual
    reads_bias = activation.reads_input or (activation.reads_output and saved is None)
    return [x, weight, bias_to_save(weight, bias, is_read=reads_bias), saved, mean, variance]


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    training, per_sample, _, eps, activation, wanted = rest
    x, weight, bias, other, mean, variance = saved
    launcher = kernels.batch_norm_backward
    gradients = launcher.norm_backward(
        grads[0],
        x,
        *_contiguous(weight, bias),
        other,
        *_contiguous(mean, variance),
        eps,
        activation,
        launcher.NormGradients(*wanted[:4]),
        per_sample=per_sample,
        given=not training,
    )
    return *gradients, None, None, None


def _fake_backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    x, weight, bias = saved[:3]
    per_sample, wanted = rest[1], rest[-1]
    like = weight if weight is not None else bias
    parameter = [torch.empty_like(like, memory_format=torch.contiguous_format) if w else None for w in wanted[1:3]]
    images = [_dense(x, per_sample) if wanted[i] else None for i in (0, 3)]
    return [images[0], *parameter, images[1], None, None, None]


# mean and variance: given statistics or, for `training`, running ones that eager calls update in place. A registered
# operator must not, so it is given none then: its callers update them from the second and third result.
norm_operator = Operator(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, Tensor? variance, "
    "Tensor? partial, bool training, bool per_sample, float momentum, float eps, Activation activation) "
    "-> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    saves=_saves,
    backward=_backward,
    fake_backward=_fake_backward,
    reference=norm_reference,
)

_cached_axes = lru_cache(maxsize=4096)(axes_of)


def with_axes(x: Tensor, route: Route, *, per_sample: bool) -> Tensor:
    """x where the kernels can read it as it is in memory, else a contiguous copy."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    find = _cached_axes if route is Route.KERNELS else axes_of
    return x.contiguous() if find(x.shape, x.stride(), per_sample=per_sample) is None else x


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act((input - mean) / sqrt(variance + eps) weight + bias + residual), with statistics of each channel.

    Args:
        input: [N, C, ...], float32, bfloat16, float16 (kernels) or float64 (reference); contiguous and channels_last
            memory is read without a copy.
        running_mean, running_var: [C], or None. For `training` they are updated in place; else they are the mean and
            variance.
        weight, bias: [C], or None for ones and zeros.
        training: whether mean and variance are those of the input over all dimensions but C.
        momentum: the update is (1 - momentum) running + momentum new, the new variance being the unbiased one.
        eps: added to the variance.
        activation: applied last, in the same kernel: a name, `Activation`, module, function or None.
        residual: input's shape and dtype, added before the activation in the same kernel.

    The parameters share one dtype: input's, or float32 for a 16-bit input.

    Returns:
        Input's shape, dtype and memory order.

    Raises:
        ValueError: one value per channel in training, no running statistics otherwise, shapes or devices that don't fit
            together, an eps that is not positive in training, an unknown activation.
        TypeError: dtypes that don't fit together.

    Source: torch.nn.functional.batch_norm (Ioffe & Szegedy 2015).
    """
    if has_torch_function_unary(input):
        arguments = running_mean, running_var, weight, bias, training, momentum, eps
        return handle_torch_function(batch_norm, (input,), input, *arguments, activation=activation, residual=residual)
    options = training, momentum, eps, as_activation(activation)
    return normalize(input, running_mean, running_var, weight, bias, *options, residual)


def normalize(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: Activation,
    residual: Tensor | None = None,
    partial: Tensor | None = None,
) -> Tensor:
    """`batch_norm`, which may be given the statistics of parts of its input, fp32 [parts, 3, C]."""
    route = route_norm("batch_norm", input, weight, bias, residual, running_mean, running_var)
    training = bool(training)
    if training:
        if input.numel() == input.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        if not eps > 0:
            raise ValueError(f"batch_norm: eps must be positive in training, got {eps}")
    elif running_mean is None:
        raise ValueError("batch_norm: running_mean and running_var must be given unless training")
    if not type(momentum) is type(eps) is float:
        momentum, eps = as_number("batch_norm", "momentum", momentum), as_number("batch_norm", "eps", eps)
    if route is Route.REFERENCE:
        z = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return activation_reference(z if residual is None else z + residual, activation)
    tensors = with_axes(input, route, per_sample=False), weight, bias, residual
    settings = training, False, momentum, eps, activation
    if not training or running_mean is None:
        return norm_operator(route, *tensors, running_mean, running_var, partial, *settings)
    assert running_var is not None
    if route is Route.KERNELS and running_mean.is_contiguous() and running_var.is_contiguous():
        # Aliases with versions of their own: second derivatives in training don't read what is updated.
        y = norm_operator(route, *tensors, running_mean.data, running_var.data, partial, *settings)
        torch.autograd.graph.increment_version((running_mean, running_var))
        return y
    y, mean, variance = norm_operator.registered(*tensors, None, None, partial, *settings, needs_gradient(*tensors))
    count = input.numel() // input.shape[1]
    update_running(running_mean, running_var, mean, variance, count, momentum)
    return y


def update_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, variance: Tensor, count: int, momentum: float
) -> None:
    """Moves the running statistics [C] by `momentum` to those of `count` values each, [C]; the variance is biased."""
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)


def route_norm(operator: str, input: Tensor, *others: Tensor | None) -> Route:
    """Checks the operands of a normalization, and chooses what computes it.

    Args:
        operator: named in messages.
        input: [N, C, ...].
        others: weight, bias, residual, running_mean, running_var.

    Raises:
        TypeError, ValueError: as `batch_norm` for its operands.
    """
    if are_plain_and_alike((input, *others)) and input.is_floating_point():
        route = route_of_plain(input)
    else:
        _check_kinds(operator, input, *others)
        route = route_of(operator, ("input", *_OTHERS), input, *others)
    if input.dim() < 2:
        raise ValueError(f"{operator}: input must be [N, C, ...], got {tuple(input.shape)}")
    _check_shapes(operator, input, *others)
    return route


_OTHERS = ("weight", "bias", "residual", "running_mean", "running_var")
_RESIDUAL = 2


def _check_kinds(operator: str, input: Tensor, *others: Tensor | None) -> None:
    """Raises TypeError or ValueError for operands of dtypes or devices that don't fit together."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{operator}: input must be a tensor, got {type(input).__name__}")
    if not input.is_floating_point():
        raise TypeError(f"{operator}: input must be floating point, got {input.dtype}")
    allowed = {input.dtype} if input.dtype.itemsize > 2 else {input.dtype, torch.float32}
    for name, tensor in zip(_OTHERS, others, strict=True):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in (allowed if name != "residual" else {input.dtype}):
            expected = " or ".join(sorted(map(str, allowed if name != "residual" else {input.dtype})))
            raise TypeError(f"{operator}: {name} has dtype {tensor.dtype}, expected {expected} for this input")
        if name != "residual":
            allowed = {tensor.dtype}
        check_device(operator, name, tensor, "input", input)


def _check_shapes(operator: str, input: Tensor, *others: Tensor | None) -> None:
    """Raises ValueError for operands that don't fit together."""
    channels = (input.shape[1],)
    for position, tensor in enumerate(others):
        if tensor is not None and position != _RESIDUAL and tensor.shape != channels:
            name, shape = _OTHERS[position], tuple(tensor.shape)
            raise ValueError(f"{operator}: {name} must be [{channels[0]}] for this input, got {shape}")
    *_, residual, running_mean, running_var = others
    if (running_mean is None) is not (running_var is None):
        raise ValueError(f"{operator}: running_mean and running_var must both be given, or neither")
    if residual is not None and residual.shape != input.shape:
        shape = tuple(residual.shape)
        raise ValueError(f"{operator}: residual must have the shape {tuple(input.shape)} of input, got {shape}")


def as_number(operator: str, name: str, value: Any) -> Any:
    """A number of any kind as a Python float; a symbolic one as it is.

    Raises:
        TypeError: anything else.
    """
    if type(value) is float or isinstance(value, torch.SymFloat):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{operator}: {name} must be a number, got {value!r}") from None

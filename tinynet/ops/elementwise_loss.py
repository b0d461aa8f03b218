"""Losses of each element alone: one operator, whose settings are the fields of a `loss_spec.Loss` and how to reduce it.

The public functions are in `regression_loss`, `binary_loss`, `likelihood_loss` and `hinge_loss`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.arguments import autocast_to_float32, is_dense, needs_gradient, route_floating
from tinynet.ops.labels import look_where_nan
from tinynet.ops.operator import Operator, Tensors, contiguous_like
from tinynet_kernels.loss_spec import Loss


def _gaussian_nll(x: Tensor, t: Tensor, variance: Tensor, loss: Loss) -> Tensor:
    # The gradient passes as if nothing were clamped.
    clamped = torch.where(variance < loss.eps, variance - variance.detach() + loss.eps, variance)
    values = 0.5 * (clamped.log() + (x - t) ** 2 / clamped)
    return values + 0.5 * math.log(2 * math.pi) if loss.full else values


# Each loss of an element in plain PyTorch, of (input, target, other, loss).
_DEFINITIONS: dict[str, Callable[[Any, Any, Any, Loss], Tensor]] = {
    "bce": lambda x, t, _, loss: F.binary_cross_entropy(x, t, reduction="none"),
    "bce_with_logits": lambda x, t, other, loss: F.binary_cross_entropy_with_logits(
        x, t, pos_weight=other, reduction="none"
    ),
    "gaussian_nll": _gaussian_nll,
    "hinge_embedding": lambda x, t, _, loss: F.hinge_embedding_loss(x, t, margin=loss.limit, reduction="none"),
    "huber": lambda x, t, _, loss: F.huber_loss(x, t, delta=loss.limit, reduction="none"),
    "kl_div": lambda x, t, _, loss: F.kl_div(x, t, reduction="none", log_target=loss.log_space),
    "l1": lambda x, t, _, loss: F.l1_loss(x, t, reduction="none"),
    "margin_ranking": lambda x, t, other, loss: F.margin_ranking_loss(x, other, t, loss.limit, reduction="none"),
    "mse": lambda x, t, _, loss: F.mse_loss(x, t, reduction="none"),
    "poisson_nll": lambda x, t, _, loss: F.poisson_nll_loss(
        x, t, loss.log_space, loss.full, eps=loss.eps, reduction="none"
    ),
    "smooth_l1": lambda x, t, _, loss: F.smooth_l1_loss(x, t, beta=loss.limit, reduction="none"),
    "soft_margin": lambda x, t, _, loss: -F.logsigmoid(t * x),
}


def elementwise_loss_reference(
    input: Tensor, target: Tensor, other: Tensor | None, weight: Tensor | None, *settings: Any
) -> Tensor:
    """weight times the loss of each element; the sum of all, or of each row, over divisor. In plain PyTorch."""
    *fields, reduction, divisor = settings
    loss = Loss(*fields)
    values = _DEFINITIONS[loss.name](input, target, other, loss)
    if weight is not None:
        values = values * weight
    if reduction == "none":
        return values
    dtype = torch.promote_types(values.dtype, torch.float32)
    total = values.sum(-1, dtype=dtype) if reduction == "rows" else values.sum(dtype=dtype)
    return (total / divisor).to(values.dtype)


def _empty_result(tensors: Sequence[Any], reduction: str) -> Tensor:
    """Without its values, a tensor of the operands' shape in the order of the first dense one of the tensors."""
    dense = None if reduction == "rows" else next((x for x in tensors if x is not None and is_dense(x)), None)
    return contiguous_like(tensors[0]) if dense is None else torch.empty_like(dense)


def _forward(input: Tensor, target: Tensor, other: Tensor | None, weight: Tensor | None, *settings: Any) -> Tensors:
    """The launcher, and a look at the operands where a loss is NaN and looking costs no wait for a device."""
    *fields, reduction, divisor, _ = settings
    loss = Loss(*fields)
    operands = (input, target, other, weight)
    result = kernels.elementwise_loss.elementwise_loss_forward(operands, loss, reduction, divisor)
    if loss.name in _CHECKS:
        look_where_nan(_CHECKS[loss.name], result, input, target, other)
    return [result]


def _fake(input: Tensor, target: Tensor, other: Tensor | None, weight: Tensor | None, *settings: Any) -> Tensors:
    reduction = settings[-3]
    if reduction == "none":
        return [_empty_result((input, target, other, weight), reduction)]
    return [input.new_empty(input.shape[:1] if reduction == "rows" else ())]


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], *settings: Any) -> Tensors:
    *fields, reduction, divisor, wanted = settings
    grad = grads[0].contiguous() if reduction == "rows" else grads[0]
    backward = kernels.elementwise_loss.elementwise_loss_backward
    return backward(grad, saved, Loss(*fields), reduction, divisor, wanted)


def _fake_backward(grads: Sequence[Tensor], saved: Sequence[Any], *settings: Any) -> Tensors:
    *_, reduction, _, wanted = settings
    of_shape = (*saved, *grads) if reduction == "none" else saved
    return [_empty_result(of_shape, reduction) if want else None for want in wanted]


elementwise_loss_operator = Operator(
    "elementwise_loss(Tensor input, Tensor target, Tensor? other, Tensor? weight, str name, float limit, float eps, "
    "bool log_space, bool full, str reduction, SymInt divisor) -> Tensor",
    forward=_forward,
    fake=_fake,
    saves=lambda given, results: given[:4],
    backward=_backward,
    fake_backward=_fake_backward,
    reference=elementwise_loss_reference,
)


def _check_probabilities(input: Tensor, target: Tensor, other: None) -> None:
    for name, x in (("input", input), ("target", target)):
        if not ((x >= 0) & (x <= 1)).all():
            raise RuntimeError(f"binary_cross_entropy: all elements of {name} should be between 0 and 1")


def check_variance(variance: Tensor) -> None:
    """Raises ValueError for a negative variance."""
    if (variance < 0).any():
        raise ValueError("gaussian_nll_loss: var has negative entry/entries")


# What a NaN may come from: checks of (input, target, other).
_CHECKS: dict[str, Callable[[Tensor, Tensor, Any], None]] = {
    "bce": _check_probabilities,
    "gaussian_nll": lambda input, target, variance: check_variance(variance),
}


def prepared(
    operator: str, names: Sequence[str], *operands: Any, sizes: str = "broadcast", integer_target: bool = True
) -> tuple[Route, list[Any]]:
    """Who computes a loss, and its operands in one shape and one dtype: float32 under autocast.

    Args:
        operator: named in messages.
        names: of the operands.
        operands: input, target, a third one and a weight, each of the last two or None.
        sizes: of the target, where they are not the input's: "broadcast", "warn" (as PyTorch does, and the weight must
            have the input's shape) or "same", which refuses them.
        integer_target: whether a target of integers or booleans is taken.

    Raises:
        TypeError: an operand that is not a tensor or has a wrong dtype.
        ValueError: shapes that don't fit together, tensors on different devices.
    """
    operands = autocast_to_float32(*operands)
    input = operands[0]
    dtype = getattr(input, "dtype", None)
    for x in operands[1:]:
        if x is not None and getattr(x, "dtype", None) is not dtype:
            operands = _in_one_dtype(operator, names, operands, integer_target)
            break
    route = route_floating(operator, None, names, *operands)
    shape = input.shape
    for x in operands[1:]:
        if x is not None and x.shape != shape:
            return route, _in_one_shape(operator, names, operands, sizes)
    return route, list(operands)


def _in_one_dtype(
    operator: str, names: Sequence[str], operands: Sequence[Any], integer_target: bool
) -> tuple[Any, ...]:
    """The operands in the dtype to which PyTorch promotes them."""
    for name, x in zip(names, operands, strict=True):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, got {type(x).__name__}")
        takes_integers = integer_target and name == "target" and not x.is_complex()
        if not x.is_floating_point() and not takes_integers:
            raise TypeError(f"{operator}: {name} must be floating point, got {x.dtype}")
    floating = [x for x in operands if x is not None and x.is_floating_point()]
    of_rank = [x for x in floating if x.dim()] or floating  # a single number adapts to the others, as in PyTorch
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in of_rank])
    return tuple([x if x is None or x.layout is not torch.strided else x.to(dtype) for x in operands])


def _in_one_shape(operator: str, names: Sequence[str], operands: Sequence[Any], sizes: str) -> list[Any]:
    input, target, _, weight = operands
    if sizes == "same" and target.shape != input.shape:
        raise ValueError(
            f"{operator}: target must have the shape {tuple(input.shape)} of input, got {tuple(target.shape)}"
        )
    if sizes == "warn" and target.shape != input.shape:
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
            stacklevel=5,
        )
    if sizes == "warn" and weight is not None and weight.shape != input.shape:
        raise ValueError(
            f"{operator}: weight must have the shape {tuple(input.shape)} of input, got {tuple(weight.shape)}"
        )
    given = [x for x in operands if x is not None]
    try:
        shape = torch.broadcast_shapes(*[x.shape for x in given])
    except RuntimeError as error:
        shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in zip(names, operands, strict=True) if x is not None)
        raise ValueError(f"{operator}: {shapes} do not broadcast") from error
    return [x if x is None or x.shape == shape else x.expand(shape) for x in operands]


def reduced(route: Route, operands: Sequence[Any], loss: Loss, reduction: str, divisor: int | None = None) -> Tensor:
    """The loss of operands from `prepared`.

    Args:
        route: who computes.
        operands: of one shape.
        loss: which.
        reduction: "mean", "sum" or "none".
        divisor: of the sum; None: for "mean" the number of elements, else 1.
    """
    if divisor is None:
        divisor = operands[0].numel() if reduction == "mean" else 1
    return elementwise_loss_operator(route, *operands, *loss, "none" if reduction == "none" else "all", divisor)


def refuse_gradient(operator: str, name: str, tensor: Any) -> None:
    """Raises RuntimeError for a tensor that requires a gradient where PyTorch has none."""
    if isinstance(tensor, Tensor) and needs_gradient(tensor):
        raise RuntimeError(f"{operator}: no gradient of {name} is defined; got one that requires a gradient")

"""Similarities and distances of vectors, and the losses that compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce as fold
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import autocast_to_float32, cast_to, check_device, check_floating, checked_reduction
from tinynet.ops.operator import Operator, Tensors, contiguous_like

COSINE_LOSS_EPS = 1e-12  # PyTorch's, of `cosine_embedding_loss`


def _like_vectors(x: Tensor) -> Tensor:
    """As `empty_vectors` of the kernels."""
    N, D, S = x.shape
    return x.new_empty((N, S, D)).transpose(1, 2) if x.stride(1) == 1 else x.new_empty((N, D, S))


def _fake_gradients(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    return [_like_vectors(saved[0]) if want else None for want in rest[-1][:2]]


cosine_similarity_operator = Operator(
    "cosine_similarity(Tensor x1, Tensor x2, float eps) -> (Tensor, Tensor)",
    forward=lambda x1, x2, eps, save: kernels.cosine_similarity.cosine_similarity_forward(
        x1, x2, None, eps, 0.0, "none", save=save
    ),
    fake=lambda x1, x2, eps, save: (
        x1.new_empty((x1.shape[0], x1.shape[2])),
        x1.new_empty((3, x1.shape[0] * x1.shape[2]), dtype=torch.float32) if save else None,
    ),
    saves=lambda given, results: [*given[:2], results[1]],
    backward=lambda grads, saved, eps, wanted: kernels.cosine_similarity.cosine_similarity_backward(
        grads[0].contiguous(), saved[0], saved[1], saved[2], "none", want_dx1=wanted[0], want_dx2=wanted[1]
    ),
    fake_backward=_fake_gradients,
    reference=lambda x1, x2, eps: F.cosine_similarity(x1, x2, 1, eps),
)

pairwise_distance_operator = Operator(
    "pairwise_distance(Tensor x1, Tensor x2, float p, float eps) -> (Tensor, Tensor)",
    forward=lambda x1, x2, p, eps, save: kernels.distance.pairwise_distance_forward(x1, x2, p, eps, save=save),
    fake=lambda x1, x2, p, eps, save: (
        x1.new_empty((x1.shape[0], x1.shape[2])),
        x1.new_empty((2, x1.shape[0] * x1.shape[2]), dtype=torch.float32) if save else None,
    ),
    saves=lambda given, results: [*given[:2], results[1]],
    backward=lambda grads, saved, p, eps, wanted: kernels.distance.pairwise_distance_backward(
        grads[0].contiguous(), saved[0], saved[1], saved[2], p, eps, want_dx1=wanted[0], want_dx2=wanted[1]
    ),
    fake_backward=_fake_gradients,
    reference=lambda x1, x2, p, eps: F.pairwise_distance(x1.transpose(1, 2), x2.transpose(1, 2), p, eps),
)


def _cosine_loss_backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    _, reduction, wanted = rest
    x1, x2, coefficients = saved
    gradients = kernels.cosine_similarity.cosine_similarity_backward(
        grads[0].contiguous(),
        x1.unsqueeze(2),
        x2.unsqueeze(2),
        coefficients,
        reduction,
        want_dx1=wanted[0],
        want_dx2=wanted[1],
    )
    return *[None if dx is None else dx.squeeze(2) for dx in gradients], None


def _cosine_loss_forward(x1: Tensor, x2: Tensor, target: Tensor, margin: float, reduction: str, save: bool) -> Tensors:
    vectors = x1.unsqueeze(2), x2.unsqueeze(2)
    options = COSINE_LOSS_EPS, margin, reduction
    loss, saved = kernels.cosine_similarity.cosine_similarity_forward(*vectors, target, *options, save=save)
    return loss.view(target.shape) if reduction == "none" else loss, saved


cosine_embedding_loss_operator = Operator(
    "cosine_embedding_loss(Tensor x1, Tensor x2, Tensor target, float margin, str reduction) -> (Tensor, Tensor)",
    forward=_cosine_loss_forward,
    fake=lambda x1, x2, target, margin, reduction, save: (
        x1.new_empty(target.shape if reduction == "none" else ()),
        x1.new_empty((3, x1.shape[0]), dtype=torch.float32) if save else None,
    ),
    saves=lambda given, results: [*given[:2], results[1]],
    backward=_cosine_loss_backward,
    fake_backward=lambda grads, saved, *rest: [
        *(None if dx is None else dx.squeeze(2) for dx in _fake_gradients(grads, [saved[0].unsqueeze(2)], rest[-1])),
        None,
    ],
    reference=lambda x1, x2, target, margin, reduction: F.cosine_embedding_loss(
        x1, x2, target, margin, reduction=reduction
    ),
)


def _triplet_backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    *options, wanted = rest
    given: Sequence[Any] = grads[0].contiguous(), *saved, *options, wanted
    return kernels.triplet_margin_loss.triplet_margin_loss_backward(*given)


triplet_margin_loss_operator = Operator(
    "triplet_margin_loss(Tensor anchor, Tensor positive, Tensor negative, float margin, float p, float eps, "
    "bool swap, str reduction) -> (Tensor, Tensor)",
    forward=lambda *arguments: kernels.triplet_margin_loss.triplet_margin_loss_forward(
        *arguments[:-1], save=arguments[-1]
    ),
    fake=lambda anchor, positive, negative, margin, p, eps, swap, reduction, save: (
        anchor.new_empty(anchor.shape[:1] if reduction == "none" else ()),
        anchor.new_empty((6 if swap else 4, anchor.shape[0]), dtype=torch.float32) if save else None,
    ),
    saves=lambda given, results: [*given[:3], results[1]],
    backward=_triplet_backward,
    fake_backward=lambda grads, saved, *rest: [contiguous_like(saved[0]) if want else None for want in rest[-1]],
    reference=lambda anchor, positive, negative, margin, p, eps, swap, reduction: F.triplet_margin_loss(
        anchor, positive, negative, margin, p, eps, swap, reduction=reduction
    ),
)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 . x2 / (max(|x1|, eps) max(|x2|, eps)) of the vectors along `dim`.

    Args:
        x1, x2: tensors that broadcast with each other, float32, bfloat16, float16 (kernels) or float64 (reference); of
            two dtypes, the wider is computed.
        dim: of the broadcast shape.
        eps: at least 0.

    Returns:
        The broadcast shape without `dim`.

    Raises:
        ValueError: shapes or devices that don't fit together, a negative eps.
        TypeError: an input that is not floating point.
        IndexError: a `dim` that the shape does not have.

    Source: torch.nn.functional.cosine_similarity.
    """
    if has_torch_function_unary(x1):
        return handle_torch_function(cosine_similarity, (x1,), x1, x2, dim, eps)
    route, (x1, x2) = _promoted("cosine_similarity", ("x1", "x2"), x1, x2)
    if eps < 0:
        raise ValueError(f"cosine_similarity: eps must not be negative, got {eps}")
    if route is Route.REFERENCE:
        return F.cosine_similarity(x1, x2, dim, eps)
    shape, dim, x1, x2 = _vectors("cosine_similarity", x1, x2, dim)
    return cosine_similarity_operator(route, x1, x2, float(eps)).view(shape[:dim] + shape[dim + 1 :])


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """|x1 - x2 + eps|_p of the vectors along the last dimension.

    Args:
        x1, x2: [..., D], tensors that broadcast with each other, float32, bfloat16, float16 (kernels) or float64
            (reference); of two dtypes, the wider is computed.
        p: any number, infinities among them. 0 counts the differences that are not 0; the reference computes it.
        eps: added to each difference.
        keepdim: whether the result keeps a last dimension of 1.

    Returns:
        The broadcast shape without its last dimension.

    Raises:
        ValueError: shapes or devices that don't fit together.
        TypeError: an input that is not floating point.

    Source: torch.nn.functional.pairwise_distance.
    """
    if has_torch_function_unary(x1):
        return handle_torch_function(pairwise_distance, (x1,), x1, x2, p, eps, keepdim)
    route, (x1, x2) = _promoted("pairwise_distance", ("x1", "x2"), x1, x2)
    if route is Route.REFERENCE or p == 0:
        return F.pairwise_distance(x1, x2, p, eps, keepdim)
    shape, dim, x1, x2 = _vectors("pairwise_distance", x1, x2, -1)
    y = pairwise_distance_operator(route, x1, x2, float(p), float(eps))
    return y.view((*shape[:dim], 1) if keepdim else shape[:dim])


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - cos for pairs with target 1, max(0, cos - margin) for those with -1, reduced; cos of the pair's vectors.

    Args:
        input1, input2: [N, D] or [D], float32, bfloat16, float16 (kernels) or float64 (reference); of two dtypes, the
            wider is computed. In float32 under autocast.
        target: [N] or [], of any dtype. It gets no gradient.
        margin: usually between 0 and 0.5.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else target's shape.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point.

    Source: torch.nn.functional.cosine_embedding_loss.
    """
    if has_torch_function_unary(input1):
        arguments = margin, size_average, reduce, reduction
        return handle_torch_function(cosine_embedding_loss, (input1,), input1, input2, target, *arguments)
    reduction = checked_reduction("cosine_embedding_loss", reduction, size_average, reduce)
    input1, input2 = autocast_to_float32(input1, input2)
    if not isinstance(target, Tensor):
        raise TypeError(f"cosine_embedding_loss: target must be a tensor, got {type(target).__name__}")
    names = "input1", "input2", "target"
    check_device("cosine_embedding_loss", "target", target, "input1", input1)
    route, (input1, input2) = _promoted("cosine_embedding_loss", names, input1, input2, others=(target.detach(),))
    if target.dim() > 1 or input1.dim() != target.dim() + 1 or input2.dim() != target.dim() + 1:
        raise ValueError(
            "cosine_embedding_loss: expected inputs [N, D] with target [N], or [D] with []; got input1 "
            f"{tuple(input1.shape)}, input2 {tuple(input2.shape)} and target {tuple(target.shape)}"
        )
    if route is Route.REFERENCE:
        return F.cosine_embedding_loss(input1, input2, target, margin, reduction=reduction)
    shape = _broadcast("cosine_embedding_loss", ("input1", "input2", "target"), input1, input2, target.unsqueeze(-1))
    labels = target.detach()
    if labels.dtype is not torch.int64:
        labels = labels.to(input1.dtype)
    rows = shape if len(shape) == 2 else (1, *shape)
    pairs = [x.expand(shape).reshape(rows) for x in (input1, input2)]
    labels = labels.expand(shape[:-1]).reshape(rows[0]).contiguous()
    loss = cosine_embedding_loss_operator(route, *pairs, labels, float(margin), reduction)
    return loss if reduction != "none" else loss.view(shape[:-1])


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, margin + d(anchor, positive) - d(anchor, negative)), reduced; d is `pairwise_distance`.

    Args:
        anchor, positive, negative: [..., D], tensors that broadcast with each other, float32, bfloat16, float16
            (kernels) or float64 (reference); of two dtypes, the wider is computed. In float32 under autocast.
        margin: above 0.
        p, eps: of the distance.
        swap: whether d(positive, negative) stands for d(anchor, negative) where it is smaller.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else the broadcast shape without D.

    Raises:
        ValueError: shapes or devices that don't fit together, a margin that is not positive, an unknown reduction.
        TypeError: an input that is not floating point.

    Source: torch.nn.functional.triplet_margin_loss (Balntas et al. 2016).
    """
    if has_torch_function_unary(anchor):
        arguments = margin, p, eps, swap, size_average, reduce, reduction
        return handle_torch_function(triplet_margin_loss, (anchor,), anchor, positive, negative, *arguments)
    reduction = checked_reduction("triplet_margin_loss", reduction, size_average, reduce)
    names = "anchor", "positive", "negative"
    tensors = autocast_to_float32(anchor, positive, negative)
    route, (anchor, positive, negative) = _promoted("triplet_margin_loss", names, *tensors)
    _check_triplet("triplet_margin_loss", anchor, positive, negative, margin)
    if route is Route.REFERENCE or p == 0:
        return F.triplet_margin_loss(anchor, positive, negative, margin, p, eps, swap, reduction=reduction)
    shape = _broadcast("triplet_margin_loss", names, anchor, positive, negative)
    rows = [
        x.expand(shape).reshape(shape[:-1].numel(), shape[-1] if shape else 1) for x in (anchor, positive, negative)
    ]
    rows = [x if x.stride(1) == 1 else x.contiguous() for x in rows]
    loss = triplet_margin_loss_operator(route, *rows, float(margin), float(p), float(eps), bool(swap), reduction)
    return loss if reduction != "none" else loss.view(shape[:-1])


def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """`triplet_margin_loss` with any distance.

    Args:
        anchor, positive, negative: tensors of as many dimensions, which `distance_function` takes.
        distance_function: takes two of them, returns a tensor; `pairwise_distance` by default.
        margin: above 0.
        swap: whether the distance of positive and negative stands for that of anchor and negative where it is smaller.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: numbers of dimensions that differ, a margin that is not positive, an unknown reduction.

    Source: torch.nn.functional.triplet_margin_with_distance_loss.
    """
    if has_torch_function_unary(anchor):
        options = {"distance_function": distance_function, "margin": margin, "swap": swap, "reduction": reduction}
        return handle_torch_function(
            triplet_margin_with_distance_loss, (anchor,), anchor, positive, negative, **options
        )
    reduction = checked_reduction("triplet_margin_with_distance_loss", reduction, None, None)
    _check_triplet("triplet_margin_with_distance_loss", anchor, positive, negative, margin)
    distance = pairwise_distance if distance_function is None else distance_function
    away = distance(anchor, negative)
    if swap:
        away = torch.minimum(away, distance(positive, negative))
    loss = torch.clamp_min(margin + distance(anchor, positive) - away, 0)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def _promoted(
    operator: str, names: Sequence[str], *tensors: Any, others: Sequence[Tensor] = ()
) -> tuple[Route, list[Tensor]]:
    """Who computes, and the tensors in their common dtype; `others` may have any."""
    given = zip(names, tensors, strict=False)
    if any(not isinstance(x, Tensor) or not x.is_floating_point() for x in tensors):
        for name, x in given:
            check_floating(operator, **{name: x})
    dtypes = [x.dtype for x in tensors]
    if any(dtype is not dtypes[0] for dtype in dtypes):
        tensors = tuple(cast_to(fold(torch.promote_types, dtypes), *tensors))
    check_floating(operator, **dict(zip(names, tensors, strict=False)))
    return route_of(operator, names, *tensors, *others), list(tensors)


def _broadcast(operator: str, names: Sequence[str], *tensors: Tensor) -> torch.Size:
    """The shape of all tensors broadcast."""
    try:
        return torch.broadcast_shapes(*(x.shape for x in tensors))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(names, tensors, strict=True))
        raise ValueError(f"{operator}: shapes do not broadcast: {shapes}") from error


def _vectors(operator: str, x1: Tensor, x2: Tensor, dim: int) -> tuple[torch.Size, int, Tensor, Tensor]:
    """The broadcast shape, `dim` in it from the front, and both as [N, D, S]: views wherever there is one."""
    shape = x1.shape if x1.shape == x2.shape else _broadcast(operator, ("x1", "x2"), x1, x2)
    shape = shape or torch.Size((1,))
    if not -len(shape) <= dim < len(shape):
        raise IndexError(f"{operator}: dim must be between {-len(shape)} and {len(shape) - 1}, got {dim}")
    dim %= len(shape)
    x1, x2 = x1.expand(shape), x2.expand(shape)
    if dim == len(shape) - 1 and dim > 1:
        return shape, dim, x1.flatten(0, -3).transpose(1, 2), x2.flatten(0, -3).transpose(1, 2)
    sizes = shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel()
    return shape, dim, x1.reshape(sizes), x2.reshape(sizes)


def _check_triplet(operator: str, anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> None:
    if margin <= 0:
        raise ValueError(f"{operator}: margin must be greater than 0, got {margin}")
    if not anchor.dim() == positive.dim() == negative.dim():
        raise ValueError(
            f"{operator}: anchor, positive and negative must have the same number of dimensions, got "
            f"{tuple(anchor.shape)}, {tuple(positive.shape)} and {tuple(negative.shape)}"
        )

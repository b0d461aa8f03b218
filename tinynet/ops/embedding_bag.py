"""Sums, means or maxima of bags of rows of an embedding table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import check_device, check_floating
from tinynet.ops.embedding import check_range, check_table, checked_padding, rows_contiguous
from tinynet.ops.operator import Operator, Tensors

MODES = ("sum", "mean", "max")


def bag_of_tokens(index: Tensor, offsets: Tensor) -> Tensor:
    """The bag of each token, int64 [T]; -1 before the first bag, and the number of bags after the last."""
    begins = torch.zeros(index.numel() + 1, device=index.device, dtype=torch.int64)
    return begins.index_add(0, offsets, torch.ones_like(offsets, dtype=torch.int64)).cumsum(0)[:-1] - 1


def embedding_bag_reference(
    index: Tensor,
    offsets: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    rows: int,
    mode: str,
    padding_idx: int | None,
    scale_by_frequency: bool,
) -> Tensor:
    """The bags of index [T], which begin at offsets [B + 1], in plain PyTorch; see `tinynet_kernels.embedding_bag`."""
    bags = offsets.numel() - 1
    if mode == "max":  # as PyTorch chooses among equal ones
        detached = weight.detach()
        tokens, bounds = index.clone(), offsets.clone()  # PyTorch reads zero tensors as if they had memory
        found = torch.embedding_bag(detached, tokens, bounds, False, 2, False, None, True, padding_idx)
        chosen = found[3].to(torch.int64)
        return torch.where(found[2][:, None] > 0, weight.gather(0, chosen.clamp_min(0)), 0.0)
    looked_up = torch.nn.functional.embedding(index, weight, padding_idx, scale_grad_by_freq=scale_by_frequency)
    bag, counts = bag_of_tokens(index, offsets), index != (-1 if padding_idx is None else padding_idx)
    counts = counts & (bag >= 0) & (bag < bags)
    looked_up = torch.where(counts[:, None], looked_up if factor is None else looked_up * factor[:, None], 0.0)
    bag = bag.clamp(0, max(bags - 1, 0))
    y = weight.new_zeros((bags, weight.shape[1]))
    if bags == 0:
        return y + 0.0 * looked_up.sum()
    y = y.index_add(0, bag, looked_up)
    if mode == "sum":
        return y
    return y / y.new_zeros(bags).index_add(0, bag, counts.to(y.dtype)).clamp_min(1.0)[:, None]


def _backward(
    grads: Sequence[Any],
    saved: Sequence[Any],
    rows: int,
    mode: str,
    padding_idx: int | None,
    scale_by_frequency: bool,
    wanted: Sequence[bool],
) -> Tensors:
    index, offsets, weight, factor, count, argmax = saved
    grad, bag = grads[0].contiguous(), bag_of_tokens(index, offsets)
    dw = dfactor = None
    if wanted[2]:
        bags = kernels.embedding.Bags(bag, factor, count, argmax)
        dw = kernels.embedding.embedding_backward(grad, index, rows, padding_idx, scale_by_frequency, bags)
    if wanted[3]:
        dfactor = kernels.embedding_bag.embedding_bag_factor_gradient(
            grad, index, bag, rows_contiguous(weight), padding_idx
        )
    return None, None, dw, dfactor


def _fake(
    index: Tensor, offsets: Tensor, weight: Tensor, factor: Tensor | None, rows: int, mode: str, *_: Any
) -> Tensors:
    bags, columns = offsets.shape[0] - 1, weight.shape[1]
    return (
        weight.new_empty((bags, columns)),
        weight.new_empty((bags,), dtype=torch.float32) if mode == "mean" else None,
        weight.new_empty((bags, columns), dtype=torch.int64) if mode == "max" else None,
    )


embedding_bag_operator = Operator(
    "embedding_bag(Tensor index, Tensor offsets, Tensor weight, Tensor? factor, SymInt rows, str mode, "
    "int? padding_idx, bool scale_by_frequency) -> (Tensor, Tensor, Tensor)",
    forward=lambda index, offsets, weight, factor, rows, mode, padding_idx, *_: (
        kernels.embedding_bag.embedding_bag_forward(index, offsets, rows_contiguous(weight), factor, mode, padding_idx)
    ),
    fake=_fake,
    saves=lambda given, results: [
        *given[:2],
        None if given[3] is None else rows_contiguous(given[2]),
        given[3],
        *results[1:],
    ],
    backward=_backward,
    fake_backward=lambda grads, saved, rows, *rest: [
        None,
        None,
        grads[0].new_empty((rows, grads[0].shape[1])) if rest[-1][2] else None,
        torch.empty_like(saved[3]) if rest[-1][3] else None,
    ],
    reference=embedding_bag_reference,
)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of the rows weight[input] of each bag.

    Args:
        input: indices in [0, V), int32 or int64: [B, N], where each row is a bag, or [T] with `offsets`.
        weight: [V, D], float32, bfloat16, float16 (kernels) or float64 (reference).
        offsets: where each bag begins in [T], [B], int32 or int64; None for [B, N].
        max_norm: rows in `input` whose norm is larger are rescaled to it, in place, before the look-up.
        norm_type: of that norm.
        scale_grad_by_freq: divide a row's gradient by how often it occurs in `input`; not for "max".
        mode: "sum", "mean" or "max". The gradient of a maximum goes to the first of equal ones.
        sparse: not supported.
        per_sample_weights: a factor of each row, input's shape and weight's dtype; for "sum" alone.
        include_last_offset: whether `offsets` is [B + 1], its last element the end of the last bag.
        padding_idx: indices of this row don't count, and it gets no gradient; negative ones count from the end.

    Returns:
        [B, D]; zero for bags without rows.

    Raises:
        ValueError: shapes, options or devices that don't fit together, an unknown mode, `sparse`, offsets that don't
            start at 0 or lie past the end of the input (checked for CPU tensors).
        TypeError: indices or offsets that are neither int32 nor int64, dtypes of floating-point tensors that differ.
        NotImplementedError: per_sample_weights for another mode than "sum".
        IndexError: an index outside the table (checked for CPU tensors; on a device it is undefined, as in PyTorch).

    Source: torch.nn.functional.embedding_bag.
    """
    given = (input, weight, offsets, per_sample_weights)
    if has_torch_function_variadic(*given):
        options = max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights
        return handle_torch_function(
            embedding_bag, given, input, weight, offsets, *options, include_last_offset, padding_idx
        )
    check_table("embedding_bag", input, weight, sparse)
    factor = per_sample_weights
    check_floating("embedding_bag", weight=weight, per_sample_weights=factor)
    names = ("weight", "input", "offsets", "per_sample_weights")
    route = route_of("embedding_bag", names, weight, input, offsets, factor)
    _check_options(input, mode, scale_grad_by_freq, factor)
    rows = weight.shape[0]
    padding_idx = checked_padding("embedding_bag", padding_idx, rows)
    bounds = _bounds(input, offsets, include_last_offset)
    index = input.reshape(-1).contiguous()
    if route is Route.KERNELS and input.device.type == "cpu":
        check_range("embedding_bag", index, rows)
        _check_bounds(index, bounds)
    if max_norm is not None:
        with torch.no_grad():  # as F.embedding_bag does
            torch.embedding_renorm_(weight, index, max_norm, norm_type)
    factor = None if factor is None else factor.reshape(-1).contiguous()
    return embedding_bag_operator(route, index, bounds, weight, factor, rows, mode, padding_idx, scale_grad_by_freq)


def _check_options(input: Tensor, mode: str, scale_grad_by_freq: bool, factor: Tensor | None) -> None:
    if mode not in MODES:
        raise ValueError(f"embedding_bag: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "max" and scale_grad_by_freq:
        raise ValueError("embedding_bag: scale_grad_by_freq is not defined for mode 'max'")
    if factor is not None and mode != "sum":
        raise NotImplementedError(f"embedding_bag: per_sample_weights are for mode 'sum' alone, got {mode!r}")
    if factor is not None and factor.shape != input.shape:
        shapes = f"{tuple(factor.shape)} and {tuple(input.shape)}"
        raise ValueError(f"embedding_bag: per_sample_weights must have the shape of input, got {shapes}")


def _bounds(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> Tensor:
    """Where each bag begins in the flat input, and where the last one ends: [B + 1], contiguous."""
    if input.dim() == 2:
        if offsets is not None:
            raise ValueError("embedding_bag: an input [B, N] takes no offsets: each of its rows is a bag")
        bags, size = input.shape
        return torch.arange(bags + 1, device=input.device, dtype=input.dtype) * size
    if input.dim() != 1:
        raise ValueError(f"embedding_bag: input must be [B, N] or [T], got shape {tuple(input.shape)}")
    if offsets is None or offsets.dim() != 1:
        got = "none" if offsets is None else f"shape {tuple(offsets.shape)}"
        raise ValueError(f"embedding_bag: an input [T] needs offsets [B], got {got}")
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"embedding_bag: offsets must be int32 or int64, got {offsets.dtype}")
    check_device("embedding_bag", "offsets", offsets, "input", input)
    offsets = offsets.to(input.dtype)
    if include_last_offset:
        if offsets.numel() == 0:
            raise ValueError("embedding_bag: offsets must have at least one element with include_last_offset")
        return offsets.contiguous()
    return torch.cat([offsets, offsets.new_full((1,), input.numel())])


def _check_bounds(index: Tensor, bounds: Tensor) -> None:
    first, last = int(bounds[0]), int(bounds[-2:].max())
    if (first != 0 and bounds.numel() > 1) or last > index.numel():
        raise ValueError(
            f"embedding_bag: offsets must start at 0 and end at most at {index.numel()}, got {first} and {last}"
        )

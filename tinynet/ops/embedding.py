"""Embedding look-up with a deterministic gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import as_integer, check_device, check_floating
from tinynet.ops.operator import Operator
from tinynet_kernels import replays


def embedding_reference(
    index: Tensor, weight: Tensor, padding_idx: int | None = None, scale_by_frequency: bool = False
) -> Tensor:
    """weight[index] in plain PyTorch."""
    return F.embedding(index, weight, padding_idx, scale_grad_by_freq=scale_by_frequency)


embedding_operator = Operator(
    "embedding(Tensor index, Tensor weight, SymInt rows, int? padding_idx, bool scale_by_frequency) -> Tensor",
    forward=lambda index, weight, *_: [
        kernels.embedding.embedding_forward(index.contiguous(), rows_contiguous(weight))
    ],
    fake=lambda index, weight, *_: [weight.new_empty((index.shape[0], weight.shape[1]))],
    saves=lambda given, results: given[:1],
    backward=lambda grads, saved, *settings: [
        None,
        kernels.embedding.embedding_backward(grads[0].contiguous(), saved[0].contiguous(), *settings[:-1]),
    ],
    fake_backward=lambda grads, saved, rows, *_: [None, grads[0].new_empty((rows, grads[0].shape[1]))],
    reference=lambda index, weight, rows, *settings: embedding_reference(index, weight, *settings),
)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """weight[input]: a row of the table for each index.

    Args:
        input: indices [...], int32 or int64, each in [0, V).
        weight: [V, D], float32, bfloat16, float16 (kernels) or float64 (reference).
        padding_idx: this row gets no gradient; negative ones count from the end.
        max_norm: rows in `input` whose norm is larger are rescaled to it, in place, before the look-up.
        norm_type: of that norm.
        scale_grad_by_freq: divide a row's gradient by how often it occurs in `input`.
        sparse: not supported.

    Returns:
        [..., D].

    Raises:
        ValueError: `sparse`, a padding_idx outside the table, a weight that is no matrix, or different devices.
        TypeError: indices that are neither int32 nor int64, a padding_idx that is no integer.
        IndexError: an index outside the table (checked for CPU tensors; on a device it is undefined, as in PyTorch).

    Source: torch.nn.functional.embedding.
    """
    if has_torch_function_unary(input):
        arguments = padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        return handle_torch_function(embedding, (input,), input, weight, *arguments)
    check_table("embedding", input, weight, sparse)
    route = route_of("embedding", ("weight", "input"), weight, input)
    rows, columns = weight.shape
    padding_idx = checked_padding("embedding", padding_idx, rows)
    if route is Route.KERNELS and input.device.type == "cpu":
        check_range("embedding", input, rows)
    if max_norm is not None:
        # As F.embedding does; under autograd the in-place change must not be recorded.
        with torch.no_grad():
            torch.embedding_renorm_(weight, input.contiguous(), max_norm, norm_type)
    if route is Route.REFERENCE:
        return embedding_reference(input, weight, padding_idx, scale_grad_by_freq)
    index = input.reshape(-1)
    y = embedding_operator(route, index, weight, rows, padding_idx, scale_grad_by_freq)
    return y.view(*input.shape, columns)


def check_table(operator: str, input: Tensor, weight: Tensor, sparse: bool) -> None:
    """Raises an error unless `input` can be looked up in `weight`; see `embedding`."""
    if sparse:
        raise ValueError(f"{operator}: sparse=True is not supported; the gradient is dense and deterministic")
    check_floating(operator, weight=weight)
    if input.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{operator}: input must be int32 or int64, got {input.dtype}")
    check_device(operator, "input", input, "weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"{operator}: weight must be [V, D], got shape {tuple(weight.shape)}")


def checked_padding(operator: str, padding_idx: Any, rows: int) -> int | None:
    """The row, counted from the start.

    Raises:
        TypeError: no integer.
        ValueError: a row outside the table.
    """
    if padding_idx is None:
        return None
    row = as_integer(padding_idx)
    if row is None:
        raise TypeError(f"{operator}: padding_idx must be an integer, got {padding_idx!r}")
    if not -rows <= row < rows:
        raise ValueError(f"{operator}: padding_idx must be in [-{rows}, {rows}), got {padding_idx}")
    return row % rows


def check_range(operator: str, index: Tensor, rows: int) -> None:
    """Raises IndexError for an index outside a table of so many rows."""
    if index.numel():
        replays.on_host(partial(_look_at_range, operator, rows), index)


def _look_at_range(operator: str, rows: int, index: Tensor) -> None:
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= rows:
        bad = low if low < 0 else high
        raise IndexError(f"{operator}: index {bad} is outside the table of {rows} rows")


def rows_contiguous(weight: Tensor) -> Tensor:
    return weight if weight.stride(1) == 1 else weight.contiguous()

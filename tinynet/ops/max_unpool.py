"""Unpooling: the inverse of max-pooling, with zeros where no maximum was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.operator import Operator
from tinynet.ops.pool import IntOrLengths, Lengths, checked_route, dense, fake, has_adjacent_channels, strided_window


def max_unpool_reference(x: Tensor, index: Tensor, size: Lengths, channels_last: bool) -> Tensor:
    """The operator `max_unpool` in plain PyTorch."""
    flat = x.new_zeros((*x.shape[:2], math.prod(size))).scatter(2, index.flatten(2), x.flatten(2))
    return flat.view(*x.shape[:2], *size)


max_unpool_operator = Operator(
    "max_unpool(Tensor x, Tensor index, SymInt[] size, bool channels_last) -> Tensor",
    forward=lambda x, index, size, channels_last, _: [
        kernels.pool_unpool.unpool_forward(
            dense(x, channels_last), dense(index, channels_last), size, channels_last=channels_last
        )
    ],
    fake=lambda x, index, size, channels_last, _: [fake(x, size, channels_last)],
    saves=lambda given, results: [given[1]],
    backward=lambda grads, saved, size, channels_last, _: [
        kernels.pool_unpool.unpool_backward(
            dense(grads[0], channels_last), dense(saved[0], channels_last), channels_last=channels_last
        ),
        None,
    ],
    fake_backward=lambda grads, saved, size, channels_last, _: [
        fake(grads[0], saved[0].shape[2:], channels_last),
        None,
    ],
    reference=max_unpool_reference,
)


def _max_unpool(
    rank: int, input: Tensor, indices: Tensor, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> Tensor:
    name = f"max_unpool{rank}d"
    checked_route(name, rank, input)
    route = route_of(name, ("input", "indices"), input, indices)
    if indices.dtype is not torch.int64:
        raise TypeError(f"{name}: indices must be int64, got {indices.dtype}")
    if indices.shape != input.shape or indices.device != input.device:
        raise ValueError(
            f"{name}: indices must have input's shape {tuple(input.shape)} and device, got {tuple(indices.shape)} "
            f"on {indices.device}"
        )
    kernel, step, border, _ = strided_window(name, rank, kernel_size, stride, padding)
    size = _unpooled_size(name, input.shape[-rank:], kernel, step, border, output_size)
    if input.is_cpu and route is not Route.OPERATOR and indices.numel():
        least, most = (int(bound) for bound in indices.aminmax())
        if least < 0 or most >= math.prod(size):
            raise ValueError(f"{name}: indices must be in [0, {math.prod(size)}), got {least} to {most}")
    single = input.dim() == rank + 1
    x, index = (input.unsqueeze(0), indices.unsqueeze(0)) if single else (input, indices)
    y = max_unpool_operator(route, x, index, size, has_adjacent_channels(x))
    return y.squeeze(0) if single else y


def _unpooled_size(
    operator: str, size: Lengths, kernel: Lengths, stride: Lengths, padding: Lengths, output_size: Any
) -> Lengths:
    """The axes of the unpooled image: `output_size`, or the least that pooling gives `size` of.

    Raises:
        ValueError: an `output_size` that pooling gives another size of.
    """
    axes = zip(size, kernel, stride, padding, strict=True)
    default = tuple((length - 1) * step + taps - 2 * edge for length, taps, step, edge in axes)
    if output_size is None:
        given = default
    else:
        given = tuple(output_size)
        given = given[2:] if len(given) == len(size) + 2 else given
        if len(given) != len(size):
            raise ValueError(f"{operator}: output_size must have {len(size)} or {len(size) + 2} elements, got {given}")
        if any(abs(length - least) >= step for length, least, step in zip(given, default, stride, strict=True)):
            raise ValueError(f"{operator}: output_size must differ from {default} by less than {stride}, got {given}")
    if min(given) < 1:
        raise ValueError(f"{operator}: the output must have elements, got size {given}")
    return given


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts the maxima of [N, C, L] or [C, L] back; otherwise as `max_unpool2d`.

    Source: torch.nn.functional.max_unpool1d.
    """
    arguments = indices, kernel_size, stride, padding, output_size
    if has_torch_function_unary(input):
        return handle_torch_function(max_unpool1d, (input,), input, *arguments)
    return _max_unpool(1, input, *arguments)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts each maximum back where max-pooling found it, with zeros elsewhere.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference).
        indices: what max-pooling returned beside `input`, int64 in its shape. Of elements with equal indices any one is
            taken.
        kernel_size, stride, padding: of the max-pooling.
        output_size: of the image that was pooled, with or without N and C; None for the least that fits.

    Returns:
        [N, C, *output_size] or [C, *output_size], input's dtype, channels_last where input is.

    Raises:
        ValueError: shapes that differ, an output_size of which the max-pooling would not give input's shape, an index
            outside the output (on a CPU; elsewhere it is skipped).
        TypeError: an input that is not floating point, indices that are not int64.

    Source: torch.nn.functional.max_unpool2d.
    """
    arguments = indices, kernel_size, stride, padding, output_size
    if has_torch_function_unary(input):
        return handle_torch_function(max_unpool2d, (input,), input, *arguments)
    return _max_unpool(2, input, *arguments)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts the maxima of [N, C, D, H, W] or [C, D, H, W] back; otherwise as `max_unpool2d`.

    Source: torch.nn.functional.max_unpool3d.
    """
    arguments = indices, kernel_size, stride, padding, output_size
    if has_torch_function_unary(input):
        return handle_torch_function(max_unpool3d, (input,), input, *arguments)
    return _max_unpool(3, input, *arguments)

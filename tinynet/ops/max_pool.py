"""Maxima of the windows of an image of one, two or three axes: strided, adaptive and fractional windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.arguments import route_floating
from tinynet.ops.operator import Operator, Tensors
from tinynet.ops.pool import (
    IntOrLengths,
    Lengths,
    adaptive_size,
    as_lengths,
    by_axis,
    checked_route,
    dense,
    fake,
    has_adjacent_channels,
    in_pytorch,
    is_ceiled,
    kernel_window,
    pooled_size,
    strided_window,
)


def max_pool_reference(
    x: Tensor,
    samples: Tensor | None,
    window: Sequence[int],
    size: Lengths,
    out_size: Lengths,
    channels_last: bool,
    want_index: bool,
) -> Any:
    """The operator `max_pool` in plain PyTorch: the maxima and their indices."""
    rank = len(size)
    if samples is not None:
        samples = samples.to(x.dtype)
        return in_pytorch("fractional_max_pool", rank)(x, window, out_size, None, True, samples)
    if not window:
        return in_pytorch("adaptive_max_pool", rank)(x, out_size, return_indices=True)
    axes = by_axis(window, size)
    ceil_mode = is_ceiled(axes, size, out_size)
    return in_pytorch("max_pool", rank)(x, *axes, ceil_mode=ceil_mode, return_indices=True)


def _samples_by_axis(samples: Tensor | None) -> Tensor | None:
    """What kernels read of random samples [N, C, rank]: fp32 [N, C, 3] along depth, rows and columns.

    Of two axes PyTorch's order is columns, rows; of three it is depth, rows, columns.
    """
    if samples is None:
        return None
    return F.pad(samples.flip(-1), (1, 0)).float() if samples.shape[-1] == 2 else samples.float().contiguous()


def _fake(x: Tensor, samples: Tensor | None, window: Lengths, size: Lengths, out_size: Lengths, *rest: Any) -> Tensors:
    channels_last, want_index, save = rest
    argmax = torch.int8
    if save and all(type(length) is int for length in (*window, *size, *out_size)):
        argmax = kernels.pool_maximum.argmax_dtype(kernel_window(window, size, out_size))
    return (
        fake(x, out_size, channels_last),
        fake(x, out_size, channels_last, torch.int64) if want_index else None,
        fake(x, out_size, channels_last, argmax) if save else None,
    )


max_pool_operator = Operator(
    "max_pool(Tensor x, Tensor? samples, SymInt[] window, SymInt[] size, SymInt[] out_size, bool channels_last, "
    "bool want_index) -> (Tensor, Tensor, Tensor)",
    forward=lambda x, samples, window, size, out_size, channels_last, want_index, save: (
        kernels.pool_maximum.max_pool_forward(
            x,
            kernel_window(window, size, out_size),
            out_size,
            _samples_by_axis(samples),
            channels_last=channels_last,
            want_argmax=save,
            want_index=want_index,
        )
    ),
    fake=_fake,
    saves=lambda given, results: [results[2], given[1]],
    backward=lambda grads, saved, window, size, out_size, channels_last, *_: [
        kernels.pool_maximum.max_pool_backward(
            dense(grads[0], channels_last),
            saved[0],
            kernel_window(window, size, out_size),
            size,
            _samples_by_axis(saved[1]),
            channels_last=channels_last,
        ),
        None,
    ],
    fake_backward=lambda grads, saved, window, size, out_size, channels_last, *_: [
        fake(grads[0], size, channels_last),
        None,
    ],
    reference=max_pool_reference,
    returned=2,
)


def _largest(
    route: Route, input: Tensor, samples: Tensor | None, window: Lengths, out_size: Lengths, return_indices: bool
) -> Any:
    single = input.dim() == len(out_size) + 1
    x = input.unsqueeze(0) if single else input
    adjacent = has_adjacent_channels(x)
    y, index = max_pool_operator(route, x, samples, window, x.shape[2:], out_size, adjacent, return_indices)
    if single:
        y = y.squeeze(0)
    if not return_indices:
        return y
    return y, index.squeeze(0) if single else index


def max_pool(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    """`max_pool2d` of images of `rank` axes."""
    name = f"max_pool{rank}d"
    route = checked_route(name, rank, input)
    window = strided_window(name, rank, kernel_size, stride, padding, dilation)
    out_size = pooled_size(name, input, window, ceil_mode)
    return _largest(route, input, None, sum(window, ()), out_size, return_indices)


def max_pool1d(
    input: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    dilation: IntOrLengths = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of [N, C, L] or [C, L]; otherwise as `max_pool2d`.

    Source: torch.nn.functional.max_pool1d.
    """
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, dilation, ceil_mode, return_indices
        return handle_torch_function(max_pool1d, (input,), input, *arguments)
    return max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    dilation: IntOrLengths = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        kernel_size: taps of a window; this and the following are one number or one per axis.
        stride: from one window to the next; None for kernel_size.
        padding: elements of -infinity on each side, at most half of kernel_size.
        dilation: from one tap to the next.
        ceil_mode: whether a last window may reach over the padding.
        return_indices: whether to return the element that each maximum is, too.

    Returns:
        [N, C, OH, OW] or [C, OH, OW], input's dtype, channels_last where input is. NaN is larger than every number,
        and of equal taps the first is taken. With return_indices also the indices ih W + iw, int64.

    Raises:
        ValueError: a wrong rank, an output without elements, a kernel, stride or dilation below 1, a padding that is
            negative or over half of kernel_size.
        TypeError: an input that is not floating point, _random_samples of another dtype, sizes that are no integers.

    Source: torch.nn.functional.max_pool2d.
    """
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, dilation, ceil_mode, return_indices
        return handle_torch_function(max_pool2d, (input,), input, *arguments)
    return max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    dilation: IntOrLengths = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of [N, C, D, H, W] or [C, D, H, W]; otherwise as `max_pool2d`.

    Source: torch.nn.functional.max_pool3d.
    """
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, dilation, ceil_mode, return_indices
        return handle_torch_function(max_pool3d, (input,), input, *arguments)
    return max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _adaptive_max_pool(rank: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    name = f"adaptive_max_pool{rank}d"
    route = checked_route(name, rank, input)
    return _largest(route, input, None, (), adaptive_size(name, input, rank, output_size), return_indices)


def adaptive_max_pool1d(input: Tensor, output_size: IntOrLengths, return_indices: bool = False) -> Any:
    """Maxima of windows that divide [N, C, L] or [C, L] into `output_size` parts; otherwise as `adaptive_max_pool2d`.

    Source: torch.nn.functional.adaptive_max_pool1d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_max_pool1d, (input,), input, output_size, return_indices)
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Any:
    """Maxima of windows that divide the image into `output_size` parts, which overlap where they don't divide it.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        output_size: OH and OW, one number or two; None for the input's own.
        return_indices: whether to return the element that each maximum is, too.

    Returns:
        As `max_pool2d`.

    Raises:
        ValueError: a wrong rank, a size below 1.
        TypeError: an input that is not floating point, _random_samples of another dtype, sizes that are no integers.

    Source: torch.nn.functional.adaptive_max_pool2d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_max_pool2d, (input,), input, output_size, return_indices)
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool3d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Any:
    """Maxima of windows that divide [N, C, D, H, W] or [C, D, H, W]; otherwise as `adaptive_max_pool2d`.

    Source: torch.nn.functional.adaptive_max_pool3d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_max_pool3d, (input,), input, output_size, return_indices)
    return _adaptive_max_pool(3, input, output_size, return_indices)


def _fractional_max_pool(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    return_indices: bool,
    samples: Tensor | None,
) -> Any:
    name = f"fractional_max_pool{rank}d"
    route = checked_route(name, rank, input)
    if samples is not None:
        route = route_floating(name, None, ("input", "_random_samples"), input, samples)
    kernel = as_lengths(name, "kernel_size", kernel_size, rank, least=1)
    size = input.shape[-rank:]
    if output_size is not None:
        out_size = as_lengths(name, "output_size", output_size, rank, least=1)
    elif output_ratio is None:
        raise ValueError(f"{name}: one of output_size and output_ratio must be given")
    else:
        ratios = output_ratio if isinstance(output_ratio, Sequence) else (output_ratio,) * rank
        if len(ratios) != rank:
            raise ValueError(f"{name}: output_ratio must be one number or {rank}, got {output_ratio!r}")
        lengths = [int(length * ratio) for length, ratio in zip(size, ratios, strict=True)]
        out_size = as_lengths(name, "output_size", lengths, rank, least=1)
    for length, taps, out in zip(size, kernel, out_size, strict=True):
        if taps + out - 1 > length - (rank == 3):  # PyTorch's rules
            raise ValueError(f"{name}: {out} windows of {taps} are too many for {length} elements of input")
    batch = input.shape[0] if input.dim() == rank + 2 else 1
    shape = (batch, input.shape[-rank - 1], rank)
    if samples is None:
        samples = torch.rand(shape, dtype=input.dtype, device=input.device)
    elif samples.dim() != 3 or samples.shape[0] < batch or tuple(samples.shape[1:]) != shape[1:]:
        raise ValueError(f"{name}: _random_samples must be {list(shape)} for this input, got {list(samples.shape)}")
    return _largest(route, input, samples.detach()[:batch], kernel, out_size, return_indices)


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: IntOrLengths,
    output_size: IntOrLengths | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Maxima of windows at random distances, which differ by at most one and fill the image.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        kernel_size: taps of a window, one number or one per axis.
        output_size: OH and OW, one number or two.
        output_ratio: these as fractions of H and W, if output_size is None.
        return_indices: whether to return the element that each maximum is, too.
        _random_samples: numbers in [0, 1), [N, C, 2] in the order columns, rows; None to draw them. Windows are
            computed from them in fp32.

    Returns:
        As `max_pool2d`.

    Raises:
        ValueError: a wrong rank, neither a size nor a ratio, more windows than fit.
        TypeError: an input that is not floating point, _random_samples of another dtype, sizes that are no integers.

    Source: torch.nn.functional.fractional_max_pool2d (B. Graham, "Fractional Max-Pooling", 2014).
    """
    arguments = kernel_size, output_size, output_ratio, return_indices, _random_samples
    if has_torch_function_variadic(input, _random_samples):
        return handle_torch_function(fractional_max_pool2d, (input, _random_samples), input, *arguments)
    return _fractional_max_pool(2, input, *arguments)


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: IntOrLengths,
    output_size: IntOrLengths | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Maxima of windows at random distances of [N, C, D, H, W] or [C, D, H, W]; otherwise as `fractional_max_pool2d`.

    `_random_samples` is [N, C, 3] in the order depth, rows, columns.

    Source: torch.nn.functional.fractional_max_pool3d.
    """
    arguments = kernel_size, output_size, output_ratio, return_indices, _random_samples
    if has_torch_function_variadic(input, _random_samples):
        return handle_torch_function(fractional_max_pool3d, (input, _random_samples), input, *arguments)
    return _fractional_max_pool(3, input, *arguments)

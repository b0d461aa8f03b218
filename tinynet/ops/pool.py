"""Means and p-norms of the windows of an image of one, two or three axes, and what all pooling shares."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route
from tinynet.ops import kernels
from tinynet.ops.arguments import as_integer, route_floating
from tinynet.ops.operator import Operator
from tinynet_kernels.pool.spec import Axis, Mean, Window, window_of

Lengths = tuple[int, ...]  # along the axes of an image
IntOrLengths = int | Sequence[int]
AXES = ("", "L", "H, W", "D, H, W")  # by rank
COUNTS = ("", "one number", "one number or two", "one number or three")


def in_pytorch(name: str, rank: int) -> Any:
    """torch.nn.functional's function for images of so many axes."""
    return getattr(F, f"{name}{rank}d")


def as_lengths(operator: str, name: str, value: Any, rank: int, least: int) -> Lengths:
    """One number per axis, of one number or of a sequence of one or `rank`.

    Raises:
        TypeError: a value that is not an integer.
        ValueError: another number of them, or one below `least`.
    """
    values = list(map(as_integer, value if isinstance(value, Sequence) else [value]))
    if None in values:
        raise TypeError(f"{operator}: {name} must be an integer or {rank} of them, got {value!r}")
    if len(values) not in (1, rank):
        raise ValueError(f"{operator}: {name} must be {COUNTS[rank]}, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{operator}: {name} must be at least {least}, got {value!r}")
    return tuple(values) if len(values) == rank else (values[0],) * rank


def checked_route(operator: str, rank: int, input: Tensor) -> Route:
    """Who computes, once `input` is checked.

    Raises:
        ValueError: a wrong rank, or an axis without elements.
        TypeError: an input that is not floating point.
    """
    route = route_floating(operator, None, ("input",), input)
    if input.dim() not in (rank + 1, rank + 2):
        axes = AXES[rank]
        raise ValueError(f"{operator}: input must be [N, C, {axes}] or [C, {axes}], got shape {tuple(input.shape)}")
    if 0 in input.shape[-rank - 1 :]:
        raise ValueError(f"{operator}: only the batch of input may be empty, got shape {tuple(input.shape)}")
    return route


def strided_window(
    operator: str, rank: int, kernel_size: Any, stride: Any, padding: Any = 0, dilation: Any = 1
) -> tuple[Lengths, Lengths, Lengths, Lengths]:
    """(kernel, stride, padding, dilation) along each axis.

    Raises:
        ValueError, TypeError: as `as_lengths`; and a padding over half of the kernel.
    """
    kernel = as_lengths(operator, "kernel_size", kernel_size, rank, least=1)
    absent = stride is None or (isinstance(stride, Sequence) and not stride)
    step = kernel if absent else as_lengths(operator, "stride", stride, rank, least=1)
    border = as_lengths(operator, "padding", padding, rank, least=0)
    for taps, edge in zip(kernel, border, strict=True):
        if 2 * edge > taps:
            raise ValueError(f"{operator}: padding must be at most half of kernel_size ({taps}), got {edge}")
    return kernel, step, border, as_lengths(operator, "dilation", dilation, rank, least=1)


def pooled_size(operator: str, input: Tensor, window: Sequence[Lengths], ceil_mode: bool) -> Lengths:
    """The output's axes by PyTorch's rule: the last window starts inside the image or its leading padding.

    Raises:
        ValueError: a window larger than the padded image.
    """
    sizes = []
    for size, kernel, stride, padding, dilation in zip(input.shape[-len(window[0]) :], *window, strict=True):
        reach = (kernel - 1) * dilation + 1
        free = size + 2 * padding - reach
        windows = (free + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and (windows - 1) * stride >= size + padding:
            windows -= 1
        if windows < 1:
            raise ValueError(
                f"{operator}: a kernel_size that reaches {reach} is larger than the padded input, {size + 2 * padding}"
            )
        sizes.append(windows)
    return tuple(sizes)


def adaptive_size(operator: str, input: Tensor, rank: int, output_size: Any) -> Lengths:
    """The output's axes of an adaptive pooling, None standing for the input's.

    Raises:
        ValueError, TypeError: as `as_lengths`.
    """
    sizes = output_size if isinstance(output_size, Sequence) else (output_size,) * rank
    given = input.shape[-rank:]
    filled = [length if size is None else size for size, length in zip(sizes, given, strict=False)]
    if len(sizes) != rank:
        raise ValueError(f"{operator}: output_size must be {COUNTS[rank]}, got {output_size!r}")
    return as_lengths(operator, "output_size", filled, rank, least=1)


def has_adjacent_channels(x: Tensor) -> bool:
    """Whether neighboring channels of an image [N, C, ...] with two or three axes are neighbors in memory."""
    return x.dim() > 3 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """x [N, C, ...] in that layout: itself, or a copy."""
    if not channels_last:
        return x.contiguous()
    return kernels.layout.to_channels_last(x) if x.dim() == 4 else x.contiguous(memory_format=torch.channels_last_3d)


def fake(x: Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns for its images: [N, C, *size]."""
    formats = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    memory_format = formats if channels_last else torch.contiguous_format
    shape = (x.shape[0], x.shape[1], *size)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format)


@lru_cache(maxsize=4096)
def kernel_window(window: Lengths, size: Lengths, out_size: Lengths) -> Window:
    """The kernels' window.

    Args:
        window: kernel, stride, padding and dilation one after the other, each along all axes; kernel alone for
            fractional pooling, none for adaptive pooling.
        size: of the image.
        out_size: of the output. An adaptive window is a plain one where it divides the image.
    """
    rank = len(size)
    if window:
        axes = [Axis(*window[axis::rank]) for axis in range(rank)]
        return window_of(axes, fractional=len(window) == rank)
    if any(length % out for length, out in zip(size, out_size, strict=True)):
        longest = [-(-length // out) + (length % out > 0) for length, out in zip(size, out_size, strict=True)]
        return window_of([Axis(kernel) for kernel in longest], adaptive=True)
    return window_of([Axis(length // out, length // out) for length, out in zip(size, out_size, strict=True)])


def by_axis(window: Sequence[int], size: Sequence[int]) -> list[Lengths]:
    """The kernel, stride, padding and dilation of a strided `window` of images of `size`, each along all axes."""
    return [tuple(window[start : start + len(size)]) for start in range(0, len(window), len(size))]


def is_ceiled(window: Sequence[Lengths], size: Sequence[int], out_size: Sequence[int]) -> bool:
    """Whether `ceil_mode` gave an output of `out_size`, which rounding down would not."""
    axes = zip(size, out_size, *window, strict=True)
    return any((length + 2 * p - (k - 1) * d - 1) // s + 1 != out for length, out, k, s, p, d in axes)


def mean_pool_reference(
    x: Tensor,
    window: Sequence[int],
    size: Lengths,
    out_size: Lengths,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
    norm: float,
) -> Tensor:
    """The operator `mean_pool` in plain PyTorch."""
    rank = len(size)
    if not window:
        return in_pytorch("adaptive_avg_pool", rank)(x, out_size)
    if rank == 3 and x.is_cpu and x.dtype in (torch.bfloat16, torch.float16):  # PyTorch has no such mean of volumes
        mean = window, size, out_size, channels_last, count_include_pad, divisor_override, norm
        return mean_pool_reference(x.float(), *mean).to(x.dtype)
    axes = kernel, stride, padding, _ = by_axis(window, size)
    ceil_mode = is_ceiled(axes, size, out_size)
    if norm:
        return in_pytorch("lp_pool", rank)(x, norm, kernel[0] if rank == 1 else kernel, stride, ceil_mode)
    divisor = () if rank == 1 else (divisor_override or None,)
    return in_pytorch("avg_pool", rank)(x, kernel, stride, padding, ceil_mode, count_include_pad, *divisor)


mean_pool_operator = Operator(
    "mean_pool(Tensor x, SymInt[] window, SymInt[] size, SymInt[] out_size, bool channels_last, "
    "bool count_include_pad, int divisor_override, float norm) -> Tensor",
    forward=lambda x, window, size, out_size, channels_last, *mean: [
        kernels.pool_mean.mean_pool_forward(
            x, kernel_window(window, size, out_size), out_size, Mean(*mean[:3]), channels_last=channels_last
        )
    ],
    fake=lambda x, window, size, out_size, channels_last, *_: [fake(x, out_size, channels_last)],
    saves=lambda given, results: [given[0], results[0]] if given[-1] else [None, None],
    backward=lambda grads, saved, window, size, out_size, channels_last, *mean: [
        kernels.pool_mean.mean_pool_backward(
            dense(grads[0], channels_last),
            *saved,
            kernel_window(window, size, out_size),
            size,
            Mean(*mean[:3]),
            channels_last=channels_last,
        )
    ],
    fake_backward=lambda grads, saved, window, size, out_size, channels_last, *_: [fake(grads[0], size, channels_last)],
    reference=mean_pool_reference,
)


def mean_pool(route: Route, input: Tensor, window: Lengths, out_size: Lengths, *mean: Any) -> Tensor:
    """The operator `mean_pool` of images with a batch or without; `mean` are the fields of `Mean`."""
    if input.dim() == len(out_size) + 1:
        return mean_pool(route, input.unsqueeze(0), window, out_size, *mean).squeeze(0)
    return mean_pool_operator(route, input, window, input.shape[2:], out_size, has_adjacent_channels(input), *mean)


def _avg_pool(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    name = f"avg_pool{rank}d"
    route = checked_route(name, rank, input)
    window = strided_window(name, rank, kernel_size, stride, padding)
    divisor = None if divisor_override is None else as_integer(divisor_override)
    if divisor == 0 or (divisor is None and divisor_override is not None):
        raise ValueError(f"{name}: divisor_override must be an integer other than 0, got {divisor_override!r}")
    out_size = pooled_size(name, input, window, ceil_mode)
    return mean_pool(route, input, sum(window, ()), out_size, bool(count_include_pad), divisor or 0, 0.0)


def avg_pool1d(
    input: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of [N, C, L] or [C, L]; otherwise as `avg_pool2d`.

    Source: torch.nn.functional.avg_pool1d.
    """
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, ceil_mode, count_include_pad
        return handle_torch_function(avg_pool1d, (input,), input, *arguments)
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        kernel_size: elements of a window; this and the following two are one number or one per axis.
        stride: from one window to the next; None for kernel_size.
        padding: zeros on each side, at most half of kernel_size.
        ceil_mode: whether a last window may reach over the padding.
        count_include_pad: whether the padding counts in the divisor.
        divisor_override: what to divide by instead.

    Returns:
        [N, C, OH, OW] or [C, OH, OW], input's dtype, channels_last where input is.

    Raises:
        ValueError: a wrong rank, an output without elements, a kernel or stride below 1, a padding that is negative or
            over half of kernel_size, a divisor of 0.
        TypeError: an input that is not floating point, sizes that are no integers.

    Source: torch.nn.functional.avg_pool2d.
    """
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        return handle_torch_function(avg_pool2d, (input,), input, *arguments)
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    padding: IntOrLengths = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of [N, C, D, H, W] or [C, D, H, W]; otherwise as `avg_pool2d`.

    Source: torch.nn.functional.avg_pool3d.
    """
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        return handle_torch_function(avg_pool3d, (input,), input, *arguments)
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive_avg_pool(rank: int, input: Tensor, output_size: Any) -> Tensor:
    name = f"adaptive_avg_pool{rank}d"
    route = checked_route(name, rank, input)
    return mean_pool(route, input, (), adaptive_size(name, input, rank, output_size), True, 0, 0.0)


def adaptive_avg_pool1d(input: Tensor, output_size: IntOrLengths) -> Tensor:
    """Means of windows that divide [N, C, L] or [C, L] into `output_size` parts; otherwise as `adaptive_avg_pool2d`.

    Source: torch.nn.functional.adaptive_avg_pool1d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool1d, (input,), input, output_size)
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Means of windows that divide the image into `output_size` parts, which overlap where they don't divide it.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        output_size: OH and OW, one number or two; None for the input's own.

    Returns:
        [N, C, OH, OW] or [C, OH, OW], input's dtype, channels_last where input is.

    Raises:
        ValueError: a wrong rank, a size below 1.
        TypeError: an input that is not floating point, sizes that are no integers.

    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Means of windows that divide [N, C, D, H, W] or [C, D, H, W]; otherwise as `adaptive_avg_pool2d`.

    Source: torch.nn.functional.adaptive_avg_pool3d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool3d, (input,), input, output_size)
    return _adaptive_avg_pool(3, input, output_size)

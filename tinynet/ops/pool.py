"""Pooling of images: maximum and mean of windows, and the adaptive mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.engines.dispatch import Route, route
from tinynet.ops.arguments import as_integer, check_floating, needs_gradient
from tinynet.ops.autograd import once_differentiable

Pair = tuple[int, int]


def max_pool2d_reference(
    input: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The maxima and their indices in plain PyTorch; see `max_pool2d`."""
    return F.max_pool2d(input, kernel, stride, padding, dilation, ceil_mode, return_indices=True)  # pyright: ignore


def avg_pool2d_reference(
    input: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """The means in plain PyTorch; see `avg_pool2d`."""
    return F.avg_pool2d(input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool2d_reference(input: Tensor, output_size: Pair) -> Tensor:
    """The adaptive means in plain PyTorch."""
    return F.adaptive_avg_pool2d(input, output_size)


class MaxPool2dFunction(torch.autograd.Function):
    """The maxima of x [N, C, H, W], and their indices where wanted, through the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        window: tuple[Pair, Pair, Pair, Pair],
        out_size: Pair,
        channels_last: bool,
        want_index: bool,
    ) -> tuple[Tensor, Tensor | None]:
        y, winner, index = _max_forward(x, window, out_size, channels_last, True, want_index)
        ctx.save_for_backward(winner)
        ctx.geometry = window, x.shape[2:], channels_last
        if index is not None:
            ctx.mark_non_differentiable(index)
        return y, index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        (winner,) = ctx.saved_tensors
        return _max_backward(grad, winner, *ctx.geometry), None, None, None, None


def _max_forward(
    x: Tensor, window: Sequence[Any], out_size: Any, channels_last: bool, save: bool, want_index: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    from tinynet_kernels.pool import Window, max_pool2d_forward

    return max_pool2d_forward(
        x, Window(*window), out_size, channels_last=channels_last, want_winner=save, want_index=want_index
    )


def _max_backward(grad: Tensor, winner: Tensor, window: Sequence[Any], size: Any, channels_last: bool) -> Tensor:
    from tinynet_kernels.pool import Window, max_pool2d_backward

    return max_pool2d_backward(_dense(grad, channels_last), winner, Window(*window), size, channels_last=channels_last)


class AvgPool2dFunction(torch.autograd.Function):
    """The means of windows of x [N, C, H, W] through the kernels; `window` None stands for adaptive ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        window: tuple[Pair, Pair, Pair] | None,
        out_size: Pair,
        channels_last: bool,
        count_include_pad: bool,
        divisor_override: int,
    ) -> Tensor:
        ctx.geometry = window, x.shape[2:], channels_last, count_include_pad, divisor_override
        return _avg_forward(x, window, out_size, channels_last, count_include_pad, divisor_override)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _avg_backward(grad, *ctx.geometry), None, None, None, None, None


def _mean_window(window: Sequence[Any] | None, size: Any, out_size: Any) -> Any:
    """The kernels' window; None stands for the adaptive one, a plain one where the outputs divide the image."""
    from tinynet_kernels.pool import Window
    from tinynet_kernels.tiles import ceil_div

    if window is not None:
        return Window(*window)
    (H, W), (OH, OW) = size, out_size
    if H % OH == 0 and W % OW == 0:
        kernel = (H // OH, W // OW)
        return Window(kernel, kernel, (0, 0))
    return Window((ceil_div(H, OH) + 1, ceil_div(W, OW) + 1), (1, 1), (0, 0), adaptive=True)


def _avg_forward(
    x: Tensor,
    window: Sequence[Any] | None,
    out_size: Any,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> Tensor:
    from tinynet_kernels.pool import avg_pool2d_forward

    return avg_pool2d_forward(
        x,
        _mean_window(window, x.shape[2:], out_size),
        out_size,
        channels_last=channels_last,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )


def _avg_backward(
    grad: Tensor,
    window: Sequence[Any] | None,
    size: Any,
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> Tensor:
    from tinynet_kernels.pool import avg_pool2d_backward

    return avg_pool2d_backward(
        _dense(grad, channels_last),
        _mean_window(window, size, grad.shape[2:]),
        size,
        channels_last=channels_last,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )


def _pairs(*given: list[int]) -> tuple[tuple[int, ...], ...]:
    """What a registered operator is given as lists, hashable."""
    return tuple(tuple(pair) for pair in given)


def _dense(grad: Tensor, channels_last: bool) -> Tensor:
    from tinynet_kernels.layout import to_channels_last

    return to_channels_last(grad) if channels_last else grad.contiguous()


def _is_channels_last(x: Tensor) -> bool:
    """Whether neighbouring channels of x [N, C, H, W] are neighbours in memory."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def _fake(
    x: Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None, wanted: bool = True
) -> Tensor:
    """What an operator returns for its images: [N, C, *size], or an empty tensor where not wanted."""
    dtype = dtype or x.dtype
    if not wanted:
        return x.new_empty(0, dtype=dtype)
    shape = (x.shape[0], x.shape[1], *size)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=memory_format)


def _winner_dtype(kernel: Sequence[int]) -> torch.dtype:
    from tinynet_kernels.pool import winner_dtype

    return winner_dtype(kernel[0] * kernel[1])


@torch.library.custom_op("tinynet::max_pool2d", mutates_args=())
def max_pool2d_operator(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    channels_last: bool,
    save: bool,
    want_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`max_pool2d` of x [N, C, H, W] for captured graphs: maxima, winners and indices, empty where not wanted."""
    window = _pairs(kernel, stride, padding, dilation)
    y, winner, index = _max_forward(x, window, tuple(out_size), channels_last, save, want_index)
    return (
        y,
        x.new_empty(0, dtype=_winner_dtype(kernel)) if winner is None else winner,
        x.new_empty(0, dtype=torch.int64) if index is None else index,
    )


@max_pool2d_operator.register_fake
def _(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    out_size: list[int],
    channels_last: bool,
    save: bool,
    want_index: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _fake(x, out_size, channels_last),
        _fake(x, out_size, channels_last, _winner_dtype(kernel), save),
        _fake(x, out_size, channels_last, torch.int64, want_index),
    )


@torch.library.custom_op("tinynet::max_pool2d_backward", mutates_args=())
def max_pool2d_backward_operator(
    grad: Tensor,
    winner: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    size: list[int],
    channels_last: bool,
) -> Tensor:
    """Its gradient."""
    return _max_backward(grad, winner, _pairs(kernel, stride, padding, dilation), tuple(size), channels_last)


@max_pool2d_backward_operator.register_fake
def _(
    grad: Tensor,
    winner: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    size: list[int],
    channels_last: bool,
) -> Tensor:
    return _fake(grad, size, channels_last)


def _setup_max_pool2d(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, *ctx.window, _, ctx.channels_last, _, _ = inputs
    _, winner, index = output
    ctx.size = list(x.shape[2:])
    ctx.save_for_backward(winner)
    ctx.mark_non_differentiable(winner, index)


def _backward_max_pool2d(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    (winner,) = ctx.saved_tensors
    dx = max_pool2d_backward_operator(grad, winner, *ctx.window, ctx.size, ctx.channels_last)
    return dx, *[None] * 8


max_pool2d_operator.register_autograd(_backward_max_pool2d, setup_context=_setup_max_pool2d)


@torch.library.custom_op("tinynet::avg_pool2d", mutates_args=())
def avg_pool2d_operator(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    out_size: list[int],
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> Tensor:
    """`avg_pool2d` of x [N, C, H, W] for captured graphs."""
    window = _pairs(kernel, stride, padding)
    return _avg_forward(x, window, tuple(out_size), channels_last, count_include_pad, divisor_override)


@avg_pool2d_operator.register_fake
def _(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    out_size: list[int],
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> Tensor:
    return _fake(x, out_size, channels_last)


@torch.library.custom_op("tinynet::avg_pool2d_backward", mutates_args=())
def avg_pool2d_backward_operator(
    grad: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    size: list[int],
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> Tensor:
    """Its gradient."""
    window = _pairs(kernel, stride, padding)
    return _avg_backward(grad, window, tuple(size), channels_last, count_include_pad, divisor_override)


@avg_pool2d_backward_operator.register_fake
def _(
    grad: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    size: list[int],
    channels_last: bool,
    count_include_pad: bool,
    divisor_override: int,
) -> Tensor:
    return _fake(grad, size, channels_last)


def _setup_avg_pool2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.window, _, ctx.channels_last, ctx.count_include_pad, ctx.divisor_override = inputs
    ctx.size = list(x.shape[2:])


def _backward_avg_pool2d(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    options = (ctx.channels_last, ctx.count_include_pad, ctx.divisor_override)
    return avg_pool2d_backward_operator(grad, *ctx.window, ctx.size, *options), *[None] * 7


avg_pool2d_operator.register_autograd(_backward_avg_pool2d, setup_context=_setup_avg_pool2d)


@torch.library.custom_op("tinynet::adaptive_avg_pool2d", mutates_args=())
def adaptive_avg_pool2d_operator(x: Tensor, out_size: list[int], channels_last: bool) -> Tensor:
    """`adaptive_avg_pool2d` of x [N, C, H, W] for captured graphs."""
    return _avg_forward(x, None, tuple(out_size), channels_last, True, 0)


@adaptive_avg_pool2d_operator.register_fake
def _(x: Tensor, out_size: list[int], channels_last: bool) -> Tensor:
    return _fake(x, out_size, channels_last)


@torch.library.custom_op("tinynet::adaptive_avg_pool2d_backward", mutates_args=())
def adaptive_avg_pool2d_backward_operator(grad: Tensor, size: list[int], channels_last: bool) -> Tensor:
    """Its gradient."""
    return _avg_backward(grad, None, tuple(size), channels_last, True, 0)


@adaptive_avg_pool2d_backward_operator.register_fake
def _(grad: Tensor, size: list[int], channels_last: bool) -> Tensor:
    return _fake(grad, size, channels_last)


def _setup_adaptive_avg_pool2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.channels_last = inputs
    ctx.size = list(x.shape[2:])


def _backward_adaptive_avg_pool2d(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return adaptive_avg_pool2d_backward_operator(grad, ctx.size, ctx.channels_last), None, None


adaptive_avg_pool2d_operator.register_autograd(_backward_adaptive_avg_pool2d, setup_context=_setup_adaptive_avg_pool2d)


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        kernel_size: taps of a window; this and the following are one number or (height, width).
        stride: from one window to the next; None for kernel_size.
        padding: rows and columns of -infinity on each side, at most half of kernel_size.
        dilation: from one tap to the next.
        ceil_mode: whether a last window may reach over the padding.
        return_indices: whether to return the pixel of each maximum too.

    Returns:
        [N, C, OH, OW] or [C, OH, OW], input's dtype, channels_last where input is. NaN wins over every number, ties go
        to the first tap. With return_indices also the indices ih W + iw, int64.

    Raises:
        ValueError: a wrong rank, an output without elements, a kernel, stride or dilation below 1, a padding that is
            negative or over half of kernel_size.
        TypeError: an input that is not floating point, sizes that are no integers.

    Source: torch.nn.functional.max_pool2d.
    """
    _check_input("max_pool2d", input)
    kernel = _pair("max_pool2d", "kernel_size", kernel_size, least=1)
    step = kernel if stride is None else _pair("max_pool2d", "stride", stride, least=1)
    border = _pair("max_pool2d", "padding", padding, least=0)
    spread = _pair("max_pool2d", "dilation", dilation, least=1)
    window = (kernel, step, border, spread)
    out_size = _output_size("max_pool2d", input, window, ceil_mode)
    way = Route.REFERENCE if input.numel() == 0 else route(input)
    if way is Route.REFERENCE:
        y, index = max_pool2d_reference(input, *window, ceil_mode)
        return (y, index) if return_indices else y
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = _is_channels_last(x)
    needs_grad = needs_gradient(input)
    if way is Route.OPERATOR:
        y, _, index = max_pool2d_operator(x, *window, out_size, channels_last, needs_grad, return_indices)
    elif needs_grad:
        y, index = MaxPool2dFunction.apply(x, window, out_size, channels_last, return_indices)  # pyright: ignore
    else:
        y, _, index = _max_forward(x, window, out_size, channels_last, False, return_indices)
    y = y if input.dim() == 4 else y.squeeze(0)
    if not return_indices or index is None:
        return y
    return y, index if input.dim() == 4 else index.squeeze(0)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        kernel_size: elements of a window; this and the following two are one number or (height, width).
        stride: from one window to the next; None for kernel_size.
        padding: rows and columns of zeros on each side, at most half of kernel_size.
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
    _check_input("avg_pool2d", input)
    kernel = _pair("avg_pool2d", "kernel_size", kernel_size, least=1)
    step = kernel if stride is None else _pair("avg_pool2d", "stride", stride, least=1)
    border = _pair("avg_pool2d", "padding", padding, least=0)
    divisor = None if divisor_override is None else as_integer(divisor_override)
    if divisor == 0 or (divisor is None and divisor_override is not None):
        raise ValueError(f"avg_pool2d: divisor_override must be an integer other than 0, got {divisor_override!r}")
    window = (kernel, step, border)
    out_size = _output_size("avg_pool2d", input, (*window, (1, 1)), ceil_mode)
    way = Route.REFERENCE if input.numel() == 0 else route(input)
    if way is Route.REFERENCE:
        return avg_pool2d_reference(input, *window, ceil_mode, count_include_pad, divisor)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    options = (out_size, _is_channels_last(x), count_include_pad, divisor or 0)
    y = avg_pool2d_operator(x, *window, *options) if way is Route.OPERATOR else _avg_eager(x, window, *options)
    return y if input.dim() == 4 else y.squeeze(0)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Means of windows that divide the image into `output_size` parts, which overlap where they don't divide it.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        output_size: OH and OW, one number or two; None keeps the input's.

    Returns:
        [N, C, OH, OW] or [C, OH, OW], input's dtype, channels_last where input is.

    Raises:
        ValueError: a wrong rank, a size below 1.
        TypeError: an input that is not floating point, sizes that are no integers.

    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    _check_input("adaptive_avg_pool2d", input)
    sizes = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    kept = [given if size is None else size for size, given in zip(sizes, input.shape[-2:], strict=False)]
    if len(sizes) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size must be one number or two, got {output_size!r}")
    out_size = _pair("adaptive_avg_pool2d", "output_size", kept, least=1)
    way = Route.REFERENCE if input.numel() == 0 else route(input)
    if way is Route.REFERENCE:
        return adaptive_avg_pool2d_reference(input, out_size)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = _is_channels_last(x)
    if way is Route.OPERATOR:
        y = adaptive_avg_pool2d_operator(x, out_size, channels_last)
    else:
        y = _avg_eager(x, None, out_size, channels_last, True, 0)
    return y if input.dim() == 4 else y.squeeze(0)


def _avg_eager(x: Tensor, *arguments: Any) -> Tensor:
    if needs_gradient(x):
        return AvgPool2dFunction.apply(x, *arguments)  # pyright: ignore[reportReturnType]
    return _avg_forward(x, *arguments)


def _check_input(operator: str, input: Tensor) -> None:
    check_floating(operator, input=input)
    if input.dim() not in (3, 4):
        raise ValueError(f"{operator}: input must be [N, C, H, W] or [C, H, W], got shape {tuple(input.shape)}")
    if 0 in input.shape[-3:]:
        raise ValueError(f"{operator}: only the batch of input may be empty, got shape {tuple(input.shape)}")


def _pair(operator: str, name: str, value: Any, least: int) -> Pair:
    """(height, width) from one number, or from one or two in a sequence."""
    values = list(map(as_integer, value if isinstance(value, Sequence) else [value]))
    if None in values:
        raise TypeError(f"{operator}: {name} must be an integer or a pair of integers, got {value!r}")
    if len(values) not in (1, 2):
        raise ValueError(f"{operator}: {name} must be one number or two, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{operator}: {name} must be at least {least}, got {value!r}")
    return values[0], values[-1]


def _output_size(operator: str, input: Tensor, window: tuple[Pair, Pair, Pair, Pair], ceil_mode: bool) -> Pair:
    """(OH, OW) by PyTorch's rule: the last window starts inside the image or its leading padding."""
    sizes = []
    for size, kernel, stride, padding, dilation in zip(input.shape[-2:], *window, strict=True):
        reach = (kernel - 1) * dilation + 1
        if 2 * padding > kernel:
            raise ValueError(f"{operator}: padding must be at most half of kernel_size ({kernel}), got {padding}")
        free = size + 2 * padding - reach
        windows = (free + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and (windows - 1) * stride >= size + padding:
            windows -= 1
        if windows < 1:
            raise ValueError(
                f"{operator}: a kernel_size that reaches {reach} is larger than the padded input, {size + 2 * padding}"
            )
        sizes.append(windows)
    return sizes[0], sizes[1]

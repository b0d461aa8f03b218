"""Pooling of images: maximum and mean of windows, and the adaptive mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import Pair, as_integer, as_pair, check_floating, needs_gradient
from tinynet.ops.autograd import gradients_of, through_kernels
from tinynet.ops.operator import Operator, Tensors


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


def _max_in_pytorch(ctx: Any, grad: Tensor, _: Tensor | None) -> Sequence[Tensor | None]:
    window, size, _ = ctx.geometry
    return (_to_maxima(grad, ctx.saved_tensors[0], window, size),)


def _to_maxima(grad: Tensor, argmax: Tensor, window: Sequence[Any], size: Sequence[int]) -> Tensor:
    """The gradients of windows [N, C, OH, OW] added to the maxima in x [N, C, *size], in plain PyTorch."""
    (_, columns), (stride_h, stride_w), (padding_h, padding_w), (dilation_h, dilation_w) = window
    tap = argmax.long()
    top = torch.arange(argmax.shape[2], device=tap.device)[:, None] * stride_h - padding_h
    left = torch.arange(argmax.shape[3], device=tap.device) * stride_w - padding_w
    pixel = (top + tap // columns * dilation_h) * size[1] + left + tap % columns * dilation_w
    flat = grad.new_zeros((*argmax.shape[:2], size[0] * size[1])).scatter_add(
        2, pixel.flatten(2), grad.reshape(*argmax.shape[:2], -1)
    )
    return flat.view(*argmax.shape[:2], *size)


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
        y, argmax, index = _max_forward(x, window, out_size, channels_last, True, want_index)
        ctx.save_for_backward(argmax)
        ctx.geometry = window, x.shape[2:], channels_last
        if index is not None:
            ctx.mark_non_differentiable(index)
        return y, index

    @staticmethod
    @through_kernels(_max_in_pytorch)
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        (argmax,) = ctx.saved_tensors
        return _max_backward(grad, argmax, *ctx.geometry), None, None, None, None


@lru_cache(maxsize=256)
def _max_window(window: tuple[Pair, Pair, Pair, Pair]) -> Any:
    """The kernels' window."""
    rows, columns = map(kernels.pool.Axis, *window)
    return kernels.pool.Window(rows, columns)


def _max_forward(
    x: Tensor, window: Any, out_size: Any, channels_last: bool, save: bool, want_index: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return kernels.pool.max_pool2d_forward(
        x, _max_window(window), out_size, channels_last=channels_last, want_argmax=save, want_index=want_index
    )


def _max_backward(grad: Tensor, argmax: Tensor, window: Any, size: Any, channels_last: bool) -> Tensor:
    grad = _dense(grad, channels_last)
    return kernels.pool.max_pool2d_backward(grad, argmax, _max_window(window), size, channels_last=channels_last)


def _avg_in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    window, _, _, *options = ctx.geometry
    x = torch.zeros((), dtype=grad.dtype, device=grad.device).expand(ctx.shape)  # of no effect: means are linear
    return gradients_of(lambda x: _avg_in_size(x, window, ctx.out_size, *options), (x,), (True,), (grad,))


def _avg_in_size(
    x: Tensor, window: Sequence[Any] | None, out_size: Sequence[int], count_include_pad: bool, divisor_override: int
) -> Tensor:
    """The means of x [N, C, H, W] in plain PyTorch; `window` None stands for adaptive ones."""
    if window is None:
        return adaptive_avg_pool2d_reference(x, (out_size[0], out_size[1]))
    kernel, stride, padding = window
    options = count_include_pad, divisor_override or None
    return _of_size(out_size, lambda ceil: avg_pool2d_reference(x, kernel, stride, padding, ceil, *options))


def _of_size(out_size: Sequence[int], pool: Callable[[bool], Tensor]) -> Tensor:
    """`pool(ceil_mode)` with the mode that gives an output of `out_size`."""
    y = pool(False)
    return y if y.shape[-2:] == tuple(out_size) else pool(True)


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
        ctx.shape, ctx.out_size = x.shape, out_size
        ctx.geometry = window, x.shape[2:], channels_last, count_include_pad, divisor_override
        return _avg_forward(x, window, out_size, channels_last, count_include_pad, divisor_override)

    @staticmethod
    @through_kernels(_avg_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _avg_backward(grad, *ctx.geometry), None, None, None, None, None


@lru_cache(maxsize=256)
def _mean_window(
    window: tuple[Pair, Pair, Pair] | None, size: Any, out_size: Any, count_include_pad: bool, divisor_override: int
) -> Any:
    """The kernels' window; None stands for the adaptive one, a plain one where the outputs divide the image."""
    axes = list(zip(size, out_size, strict=True))
    adaptive = window is None and any(length % out for length, out in axes)
    if window is not None:
        rows, columns = map(kernels.pool.Axis, *window)
    elif adaptive:
        rows, columns = (kernels.pool.Axis(-(-length // out) + 1, 1) for length, out in axes)
    else:
        rows, columns = (kernels.pool.Axis(length // out, length // out) for length, out in axes)
    return kernels.pool.Window(rows, columns, adaptive, count_include_pad, divisor_override)


def _avg_forward(x: Tensor, window: Any, out_size: Any, channels_last: bool, *divisor: Any) -> Tensor:
    window = _mean_window(window, x.shape[2:], out_size, *divisor)
    return kernels.pool.avg_pool2d_forward(x, window, out_size, channels_last=channels_last)


def _avg_backward(grad: Tensor, window: Any, size: Any, channels_last: bool, *divisor: Any) -> Tensor:
    window = _mean_window(window, size, grad.shape[2:], *divisor)
    return kernels.pool.avg_pool2d_backward(_dense(grad, channels_last), window, size, channels_last=channels_last)


def _dense(grad: Tensor, channels_last: bool) -> Tensor:
    return kernels.layout.to_channels_last(grad) if channels_last else grad.contiguous()


def _has_adjacent_channels(x: Tensor) -> bool:
    """Whether neighboring channels of x [N, C, H, W] are neighbors in memory."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def _fake(x: Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns for its images: [N, C, *size]."""
    shape = (x.shape[0], x.shape[1], *size)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format)


def _max_fake(x: Tensor, kernel: Pair, *rest: Any) -> Tensors:
    *_, out_size, channels_last, want_index, save = rest
    argmax_dtype = kernels.pool.argmax_dtype(kernel[0] * kernel[1])
    return (
        _fake(x, out_size, channels_last),
        _fake(x, out_size, channels_last, argmax_dtype) if save else None,
        _fake(x, out_size, channels_last, torch.int64) if want_index else None,
    )


max_pool2d_operator = Operator(
    "max_pool2d(Tensor x, SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt[] size, "
    "SymInt[] out_size, bool channels_last, bool want_index) -> (Tensor, Tensor, Tensor)",
    forward=lambda x, kernel, stride, padding, dilation, _, out_size, channels_last, want_index, save: _max_forward(
        x, (kernel, stride, padding, dilation), out_size, channels_last, save, want_index
    ),
    fake=_max_fake,
    saves=lambda given, results: [results[1]],
    backward=lambda grads, saved, kernel, stride, padding, dilation, size, _, channels_last, *__: [
        _max_backward(grads[0], saved[0], (kernel, stride, padding, dilation), size, channels_last)
    ],
    fake_backward=lambda grads, saved, *rest: [_fake(grads[0], rest[-5], rest[-3])],
    reference=lambda x, kernel, stride, padding, dilation, _, out_size, *__: _of_size(
        out_size, lambda ceil: max_pool2d_reference(x, kernel, stride, padding, dilation, ceil)[0]
    ),
)

avg_pool2d_operator = Operator(
    "avg_pool2d(Tensor x, SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] size, SymInt[] out_size, "
    "bool channels_last, bool count_include_pad, int divisor_override) -> Tensor",
    forward=lambda x, kernel, stride, padding, _, *rest: [_avg_forward(x, (kernel, stride, padding), *rest[:-1])],
    fake=lambda x, *rest: [_fake(x, rest[-5], rest[-4])],
    saves=lambda given, results: [],
    backward=lambda grads, saved, kernel, stride, padding, size, _, *rest: [
        _avg_backward(grads[0], (kernel, stride, padding), size, *rest[:-1])
    ],
    fake_backward=lambda grads, saved, *rest: [_fake(grads[0], rest[-6], rest[-4])],
    reference=lambda x, kernel, stride, padding, _, out_size, __, *options: _avg_in_size(
        x, (kernel, stride, padding), out_size, *options
    ),
)

adaptive_avg_pool2d_operator = Operator(
    "adaptive_avg_pool2d(Tensor x, SymInt[] size, SymInt[] out_size, bool channels_last) -> Tensor",
    forward=lambda x, size, out_size, channels_last, _: [_avg_forward(x, None, out_size, channels_last, True, 0)],
    fake=lambda x, size, out_size, channels_last, _: [_fake(x, out_size, channels_last)],
    saves=lambda given, results: [],
    backward=lambda grads, saved, size, out_size, channels_last, _: [
        _avg_backward(grads[0], None, size, channels_last, True, 0)
    ],
    fake_backward=lambda grads, saved, size, out_size, channels_last, _: [_fake(grads[0], size, channels_last)],
    reference=lambda x, size, out_size, _: adaptive_avg_pool2d_reference(x, out_size),
)


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
        [N, C, OH, OW] or [C, OH, OW], input's dtype, channels_last where input is. NaN is larger than every number,
        and of equal taps the first is taken. With return_indices also the indices ih W + iw, int64.

    Raises:
        ValueError: a wrong rank, an output without elements, a kernel, stride or dilation below 1, a padding that is
            negative or over half of kernel_size.
        TypeError: an input that is not floating point, sizes that are no integers.

    Source: torch.nn.functional.max_pool2d.
    """
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, dilation, ceil_mode, return_indices
        return handle_torch_function(max_pool2d, (input,), input, *arguments)
    check_floating("max_pool2d", input=input)
    route = route_of("max_pool2d", ("input",), input)
    _check_shape("max_pool2d", input)
    kernel = as_pair("max_pool2d", "kernel_size", kernel_size, least=1)
    step = kernel if stride is None else as_pair("max_pool2d", "stride", stride, least=1)
    border = as_pair("max_pool2d", "padding", padding, least=0)
    spread = as_pair("max_pool2d", "dilation", dilation, least=1)
    window = (kernel, step, border, spread)
    out_size = _output_size("max_pool2d", input, window, ceil_mode)
    if route is Route.REFERENCE:
        y, index = max_pool2d_reference(input, *window, ceil_mode)
        return (y, index) if return_indices else y
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = _has_adjacent_channels(x)
    if route is Route.OPERATOR:
        settings = *window, x.shape[2:], out_size, channels_last, return_indices
        y, _, index = max_pool2d_operator.registered(x, *settings, needs_gradient(x))
    elif needs_gradient(input):
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
    if has_torch_function_unary(input):
        arguments = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        return handle_torch_function(avg_pool2d, (input,), input, *arguments)
    check_floating("avg_pool2d", input=input)
    route = route_of("avg_pool2d", ("input",), input)
    _check_shape("avg_pool2d", input)
    kernel = as_pair("avg_pool2d", "kernel_size", kernel_size, least=1)
    step = kernel if stride is None else as_pair("avg_pool2d", "stride", stride, least=1)
    border = as_pair("avg_pool2d", "padding", padding, least=0)
    divisor = None if divisor_override is None else as_integer(divisor_override)
    if divisor == 0 or (divisor is None and divisor_override is not None):
        raise ValueError(f"avg_pool2d: divisor_override must be an integer other than 0, got {divisor_override!r}")
    window = (kernel, step, border)
    out_size = _output_size("avg_pool2d", input, (*window, (1, 1)), ceil_mode)
    if route is Route.REFERENCE:
        return avg_pool2d_reference(input, *window, ceil_mode, count_include_pad, divisor)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    options = (out_size, _has_adjacent_channels(x), count_include_pad, divisor or 0)
    if route is Route.OPERATOR:
        y = avg_pool2d_operator(route, x, *window, x.shape[2:], *options)
    else:
        y = _avg_eager(x, window, *options)
    return y if input.dim() == 4 else y.squeeze(0)


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
    check_floating("adaptive_avg_pool2d", input=input)
    route = route_of("adaptive_avg_pool2d", ("input",), input)
    _check_shape("adaptive_avg_pool2d", input)
    sizes = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    filled = [given if size is None else size for size, given in zip(sizes, input.shape[-2:], strict=False)]
    if len(sizes) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size must be one number or two, got {output_size!r}")
    out_size = as_pair("adaptive_avg_pool2d", "output_size", filled, least=1)
    if route is Route.REFERENCE:
        return adaptive_avg_pool2d_reference(input, out_size)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = _has_adjacent_channels(x)
    if route is Route.OPERATOR:
        y = adaptive_avg_pool2d_operator(route, x, x.shape[2:], out_size, channels_last)
    else:
        y = _avg_eager(x, None, out_size, channels_last, True, 0)
    return y if input.dim() == 4 else y.squeeze(0)


def _avg_eager(x: Tensor, *arguments: Any) -> Tensor:
    if needs_gradient(x):
        return AvgPool2dFunction.apply(x, *arguments)  # pyright: ignore[reportReturnType]
    return _avg_forward(x, *arguments)


def _check_shape(operator: str, input: Tensor) -> None:
    if input.dim() not in (3, 4):
        raise ValueError(f"{operator}: input must be [N, C, H, W] or [C, H, W], got shape {tuple(input.shape)}")
    if 0 in input.shape[-3:]:
        raise ValueError(f"{operator}: only the batch of input may be empty, got shape {tuple(input.shape)}")


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

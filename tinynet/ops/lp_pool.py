"""The p-norm of the windows of an image of one, two or three axes."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.ops.max_pool import max_pool
from tinynet.ops.pool import IntOrLengths, checked_route, mean_pool, pooled_size, strided_window


def _lp_pool(rank: int, input: Tensor, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool) -> Tensor:
    name = f"lp_pool{rank}d"
    route = checked_route(name, rank, input)
    norm = float(norm_type)
    if norm == 0.0 or math.isnan(norm):
        raise ValueError(f"{name}: norm_type must be a number other than 0, got {norm_type!r}")
    if math.isinf(norm):
        size = max_pool(rank, input.abs() * math.copysign(1.0, norm), kernel_size, stride, 0, 1, ceil_mode, False)
        return size if norm > 0 else -size
    window = strided_window(name, rank, kernel_size, stride)
    return mean_pool(route, input, sum(window, ()), pooled_size(name, input, window, ceil_mode), True, 0, norm)


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window of [N, C, L] or [C, L]; otherwise as `lp_pool2d`.

    Source: torch.nn.functional.lp_pool1d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(lp_pool1d, (input,), input, norm_type, kernel_size, stride, ceil_mode)
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """(the sum of x^p over each window)^(1 / p).

    Args:
        input: [N, C, H, W] or [C, H, W], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        norm_type: p, not 0. Infinity gives the largest magnitude, minus infinity the smallest.
        kernel_size: elements of a window; this and the stride are one number or one per axis.
        stride: from one window to the next; None for kernel_size.
        ceil_mode: whether a last window may reach over the end; its sum is scaled to a whole window's.

    Returns:
        [N, C, OH, OW] or [C, OH, OW], input's dtype, channels_last where input is. As in PyTorch, a sum below zero
        gives NaN, and so does the gradient of a window of zeros unless p is 1.

    Raises:
        ValueError: a wrong rank, an output without elements, a kernel or stride below 1, a p of 0.
        TypeError: an input that is not floating point, sizes that are no integers.

    Source: torch.nn.functional.lp_pool2d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(lp_pool2d, (input,), input, norm_type, kernel_size, stride, ceil_mode)
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrLengths,
    stride: IntOrLengths | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window of [N, C, D, H, W] or [C, D, H, W]; otherwise as `lp_pool2d`.

    Source: torch.nn.functional.lp_pool3d.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(lp_pool3d, (input,), input, norm_type, kernel_size, stride, ceil_mode)
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)

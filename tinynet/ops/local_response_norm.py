"""Local response normalization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.ops import kernels
from tinynet.ops.arguments import as_integer, route_floating
from tinynet.ops.channels import as_channels, from_channels, in_order_of
from tinynet.ops.operator import Operator

local_response_norm_operator = Operator(
    "local_response_norm(Tensor x, int size, float alpha, float beta, float k) -> (Tensor, Tensor)",
    forward=lambda *arguments: kernels.local_response_norm.local_response_norm_forward(
        *arguments[:-1], save=arguments[-1]
    ),
    fake=lambda x, *rest: [torch.empty_like(x), torch.empty_like(x, dtype=torch.float32) if rest[-1] else None],
    saves=lambda given, results: [given[0], results[1]],
    backward=lambda grads, saved, *rest: [
        kernels.local_response_norm.local_response_norm_backward(in_order_of(grads[0], saved[0]), *saved, *rest[:-1])
    ],
    reference=F.local_response_norm,
)


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """input / (k + alpha m)^beta, where m is the mean of input^2 over `size` neighboring channels.

    Args:
        input: [N, C, *], three dimensions or more, float32, bfloat16, float16 (kernels) or float64 (reference);
            contiguous or channels_last without a copy.
        size: of the window: size // 2 channels before a channel and (size - 1) // 2 after it; those outside are zeros.
        alpha, beta, k: of the formula.

    Returns:
        input's shape and dtype, channels_last where input is.

    Raises:
        ValueError: fewer than three dimensions, a size below 1.
        TypeError: an input that is not floating point, a size that is no integer.

    Source: torch.nn.functional.local_response_norm (Krizhevsky et al. 2012).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(local_response_norm, (input,), input, size, alpha, beta, k)
    route = route_floating("local_response_norm", None, ("input",), input)
    window: Any = as_integer(size)
    if window is None:
        raise TypeError(f"local_response_norm: size must be an integer, got {size!r}")
    if window < 1:
        raise ValueError(f"local_response_norm: size must be at least 1, got {size}")
    if input.dim() < 3:
        raise ValueError(f"local_response_norm: input must be [N, C, *, ...], got shape {tuple(input.shape)}")
    if input.numel() == 0:
        return input
    y = local_response_norm_operator(route, as_channels(input), window, float(alpha), float(beta), float(k))
    return from_channels(y, input)

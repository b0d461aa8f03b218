"""Softmax, log-softmax and softmin along one dimension."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.ops import kernels
from tinynet.ops.arguments import as_integer, autocast_norm, route_floating
from tinynet.ops.operator import Operator, contiguous_like

_REFERENCES: dict[str, Any] = {
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "softmin": lambda x, dim: torch.softmax(-x, dim),
}

softmax_operator = Operator(
    "softmax(Tensor x, str function) -> Tensor",
    forward=lambda x, function, save: [kernels.softmax.softmax_forward(x, function)],
    fake=lambda x, function, save: [contiguous_like(x)],
    saves=lambda given, results: results,
    backward=lambda grads, saved, function, wanted: [
        kernels.softmax.softmax_backward(grads[0].contiguous(), saved[0], function)
    ],
    reference=lambda x, function: _REFERENCES[function](x, 1),
)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """exp(input) divided by its sum along `dim`.

    Args:
        input: any shape and strides, float32, bfloat16, float16 (kernels) or float64 (reference). On devices other than
            CPUs in float32 under autocast.
        dim: the dimension; None for PyTorch's deprecated choice, with its warning: 0 for 0, 1 and 3 dimensions, else 1.
        _stacklevel: of that warning.
        dtype: to convert the input to first.

    Returns:
        input's shape, contiguous. A line that holds only -infinity gives NaN.

    Raises:
        IndexError: a dimension that input does not have.
        TypeError: an input that is not floating point, a dimension that is no integer.

    Source: torch.nn.functional.softmax.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(softmax, (input,), input, dim, _stacklevel=_stacklevel, dtype=dtype)
    return _along(input, dim, _stacklevel, dtype, "softmax")


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """log(softmax(input)) along `dim`, without overflow; arguments, result and errors as `softmax`.

    Source: torch.nn.functional.log_softmax.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(log_softmax, (input,), input, dim, _stacklevel=_stacklevel, dtype=dtype)
    return _along(input, dim, _stacklevel, dtype, "log_softmax")


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """softmax(-input) along `dim`; arguments, result and errors as `softmax`.

    Source: torch.nn.functional.softmin.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(softmin, (input,), input, dim, _stacklevel=_stacklevel, dtype=dtype)
    return _along(input, dim, _stacklevel, dtype, "softmin")


def gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    """Samples of a relaxed categorical distribution: softmax((logits + Gumbel noise) / tau) along `dim`.

    Args:
        logits: log-probabilities up to a constant, floating point.
        tau: temperature.
        hard: whether to return one-hot samples, with the gradient of the soft ones.
        eps: no effect, as in PyTorch.
        dim: along which probabilities sum to 1.

    Returns:
        logits' shape and dtype. The noise is that of PyTorch's function after the same seed.

    Raises:
        IndexError, TypeError: as `softmax`.

    Source: torch.nn.functional.gumbel_softmax (Jang et al. 2017).
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(gumbel_softmax, (logits,), logits, tau=tau, hard=hard, eps=eps, dim=dim)
    noise = -torch.empty_like(logits, memory_format=torch.contiguous_format).exponential_().log()
    soft = softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


def _along(input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None, function: str) -> Tensor:
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {function} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if input.dim() in (0, 1, 3) else 1
    axis = as_integer(dim)
    if axis is None:
        raise TypeError(f"{function}: dim must be an integer, got {dim!r}")
    x = input if dtype is None or dtype is input.dtype else input.to(dtype)
    if dtype is None:
        (x,) = autocast_norm(x)
    route = route_floating(function, None, ("input",), x)
    rank = max(input.dim(), 1)
    if not -rank <= axis < rank:
        raise IndexError(f"{function}: dim must be in [{-rank}, {rank}) for input {tuple(input.shape)}, got {axis}")
    return softmax_operator(route, _as_lines(x, axis % rank), function).view(input.shape)


def _as_lines(x: Tensor, axis: int) -> Tensor:
    """[outer, D, inner]: a view where the strides allow one."""
    if x.dim() < 2:
        return x.reshape(1, -1, 1)
    outer, inner = x.shape[:axis].numel(), x.shape[axis + 1 :].numel()
    return x.reshape(outer, x.shape[axis], inner)

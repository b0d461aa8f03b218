"""Activations that write to their input, with the names of torch.nn.functional: `relu_` and others.

They save no memory: the kernel's result is copied into the input, whose history then holds the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tinynet.ops import activation
from tinynet.ops.arguments import needs_gradient
from tinynet.ops.rrelu import rrelu


def _written_to(input: Tensor, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`input`, after function(input, *arguments) was copied into it. A backward may read what it held before."""
    return input.copy_(function(input.clone() if needs_gradient(input) else input, *arguments))


def relu_(input: Tensor) -> Tensor:
    """`relu` in place. Source: torch.nn.functional.relu_."""
    return _written_to(input, activation.relu)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """`leaky_relu` in place. Source: torch.nn.functional.leaky_relu_."""
    return _written_to(input, activation.leaky_relu, negative_slope)


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`elu` in place. Source: torch.nn.functional.elu_."""
    return _written_to(input, activation.elu, alpha)


def selu_(input: Tensor) -> Tensor:
    """`selu` in place. Source: torch.nn.functional.selu_."""
    return _written_to(input, activation.selu)


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`celu` in place. Source: torch.nn.functional.celu_."""
    return _written_to(input, activation.celu, alpha)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """`hardtanh` in place. Source: torch.nn.functional.hardtanh_."""
    return _written_to(input, activation.hardtanh, min_val, max_val)


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """`threshold` in place. Source: torch.nn.functional.threshold_."""
    return _written_to(input, activation.threshold, threshold, value)


def rrelu_(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False) -> Tensor:
    """`rrelu` in place. Source: torch.nn.functional.rrelu_."""
    return _written_to(input, rrelu, lower, upper, training)

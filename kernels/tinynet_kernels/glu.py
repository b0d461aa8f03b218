"""Gated linear unit: y = a sigmoid(b), a and b the halves of each row of x (Dauphin et al. 2017)."""

import torch
import triton

from tinynet_kernels.activation import sigmoid
from tinynet_kernels.elementwise import elementwise


@triton.jit
def glu(a, b):
    return (a * sigmoid(b),)


@triton.jit
def glu_gradients(dy, a, b):
    gate = sigmoid(b)
    return dy * gate, dy * a * gate * (1.0 - gate)


def glu_forward(x: torch.Tensor, dim: int) -> torch.Tensor:
    """y [..., n, ...] of x [..., 2 n, ...], contiguous; the halves along `dim`."""
    y = x.new_empty((*x.shape[:dim], x.shape[dim] // 2, *x.shape[dim:][1:]))
    a, b = _halves(x, dim)
    elementwise(glu, (a, b), (y.view(a.shape),))
    return y


def glu_backward(grad: torch.Tensor, x: torch.Tensor, dim: int) -> torch.Tensor:
    """dX [..., 2 n, ...] of dY [..., n, ...] and x, contiguous."""
    dx = torch.empty_like(x)
    a, b = _halves(x, dim)
    elementwise(glu_gradients, (grad.view(a.shape), a, b), _halves(dx, dim))
    return dx


def _halves(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    """Matrices [rows, columns] of the first and the second half along `dim`."""
    return x.view(-1, x.shape[dim:].numel()).chunk(2, 1)

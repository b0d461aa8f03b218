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


def glu_forward(x: torch.Tensor) -> torch.Tensor:
    """y [rows, n] of x [rows, 2 n], contiguous."""
    return elementwise(glu, x.chunk(2, 1), (x.new_empty((x.shape[0], x.shape[1] // 2)),))[0]


def glu_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """dX [rows, 2 n] of dY [rows, n] and x, contiguous."""
    dx = torch.empty_like(x)
    elementwise(glu_gradients, (grad, *x.chunk(2, 1)), dx.chunk(2, 1))
    return dx

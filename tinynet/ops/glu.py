"""Gated linear unit: half of the input, times the sigmoid of the other half."""

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.ops import kernels
from tinynet.ops.arguments import as_integer, route_floating
from tinynet.ops.operator import Operator, contiguous_like

glu_operator = Operator(
    "glu(Tensor x, int dim) -> Tensor",
    forward=lambda x, dim, save: [kernels.glu.glu_forward(x, dim)],
    fake=lambda x, dim, save: [contiguous_like(x.chunk(2, dim)[0])],
    saves=lambda given, results: given[:1],
    backward=lambda grads, saved, dim, wanted: [kernels.glu.glu_backward(grads[0].contiguous(), saved[0], dim)],
    reference=F.glu,
)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b), where a and b are the halves of `input` [..., 2 n, ...] along `dim`; [..., n, ...].

    Raises:
        ValueError: an odd size along `dim`.
        TypeError: an input that is not floating point, or a dim that is no integer.

    Source: torch.nn.functional.glu.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(glu, (input,), input, dim)
    axis = as_integer(dim)
    if axis is None:
        raise TypeError(f"glu: dim must be an integer, got {dim!r}")
    route = route_floating("glu", None, ("input",), input)
    if input.dim() == 0 or input.shape[axis] % 2:
        raise ValueError(f"glu: the size of input {tuple(input.shape)} along dim {axis} must be even")
    return glu_operator(route, input.contiguous(), axis)

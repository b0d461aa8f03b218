"""PReLU: a rectifier with a learned slope for negative numbers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.ops import kernels
from tinynet.ops.arguments import autocast, autocast_dtype, route_floating
from tinynet.ops.operator import Operator, contiguous_like, like_saved

prelu_operator = Operator(
    "prelu(Tensor x, Tensor weight) -> Tensor",
    forward=lambda x, weight, save: [kernels.prelu.prelu_forward(x, weight.contiguous())],
    fake=lambda x, weight, save: [contiguous_like(x)],
    saves=lambda given, results: given,
    backward=lambda grads, saved, wanted: kernels.prelu.prelu_backward(
        grads[0].contiguous(), saved[0], saved[1].contiguous(), want_x=wanted[0], want_weight=wanted[1]
    ),
    fake_backward=lambda grads, saved, wanted: like_saved(grads, [contiguous_like(x) for x in saved], wanted),
    reference=F.prelu,
)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """input where positive, else weight times it.

    Args:
        input: [N, C, ...] or, for a weight of one, any shape; float32, bfloat16, float16 (kernels) or float64
            (reference).
        weight: [C], or [1] for all channels; input's dtype and device.

    Returns:
        input's shape, dtype and order in memory.

    Raises:
        ValueError: a weight that is neither [1] nor [C], tensors on different devices.
        TypeError: dtypes that are not floating point or differ outside autocast.

    Source: torch.nn.functional.prelu (He et al. 2015).
    """
    if has_torch_function_unary(input):
        return handle_torch_function(prelu, (input,), input, weight)
    dtype = autocast_dtype(input)
    route = route_floating("prelu", dtype, ("input", "weight"), input, weight)
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.dim() != 1 or weight.shape[0] not in (1, channels):
        raise ValueError(f"prelu: weight must be [1] or [{channels}] for this input, got {tuple(weight.shape)}")
    if dtype is not None:
        input, weight = autocast(input, weight)
    channels_last = input.dim() > 2 and not input.is_contiguous() and input.movedim(1, -1).is_contiguous()
    x = input.movedim(1, -1) if channels_last else input.contiguous()
    C = weight.shape[0]
    if C > 1 and channels_last:
        rows = x.reshape(x.numel() // C, C, 1)
    else:
        N = x.shape[0] if x.dim() > 1 else 1
        rows = x.reshape(N, C, x.numel() // max(N * C, 1))
    y = prelu_operator(route, rows, weight).view(x.shape)
    return y.movedim(-1, 1) if channels_last else y

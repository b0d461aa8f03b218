"""Bilinear layer with a fused activation: y_k = act(x1^T A_k x2 + b_k)."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tinynet.dispatch import check_strided
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.arguments import check_floating, without_autocast
from tinynet.ops.linear import linear


def bilinear(
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: ActivationLike = None,
) -> Tensor:
    """act(x1^T A_k x2 + b_k): a linear layer of the products of all pairs of features, which takes I1 I2 per sample.

    Args:
        input1: x1 [..., I1], float32, bfloat16, float16 (kernels) or float64 (reference); any strides.
        input2: x2 [..., I2], x1's dtype, device and leading dimensions.
        weight: A [K, I1, I2].
        bias: [K] or None.
        activation: a name, `Activation`, module, function or None for identity.

    Returns:
        [..., K], x1's dtype; under autocast too, as in PyTorch.

    Raises:
        ValueError: shapes or devices that don't fit together, or an unknown activation.
        TypeError: dtypes that are not floating point or differ.

    Source: torch.nn.functional.bilinear.
    """
    function = as_activation(activation)
    operands = (input1, input2, weight, bias)
    if has_torch_function_variadic(*operands):
        return handle_torch_function(bilinear, operands, *operands, function)
    check_floating("bilinear", input1=input1, input2=input2, weight=weight, bias=bias)
    for name, x in (("input1", input1), ("input2", input2), ("weight", weight), ("bias", bias)):
        check_strided("bilinear", name, x)
    if weight.dim() != 3:
        raise ValueError(f"bilinear: weight must be [K, I1, I2], got shape {tuple(weight.shape)}")
    _, I1, I2 = weight.shape
    if not input1.dim() or not input2.dim() or input1.shape[:-1] != input2.shape[:-1]:
        shapes = f"{tuple(input1.shape)} and {tuple(input2.shape)}"
        raise ValueError(f"bilinear: input1 and input2 must have the same leading dimensions, got {shapes}")
    for name, x, size in (("input1", input1, I1), ("input2", input2, I2)):
        if x.shape[-1] != size:
            raise ValueError(f"bilinear: the last dimension of {name} {tuple(x.shape)} must be {size}, as in weight")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bilinear: bias must be [{weight.shape[0]}] for this weight, got {tuple(bias.shape)}")
    pairs = (input1.unsqueeze(-1) * input2.unsqueeze(-2)).reshape(*input1.shape[:-1], I1 * I2)
    with without_autocast(input1):
        return linear(pairs, weight.reshape(-1, I1 * I2), bias, function)

"""A sequence of modules, some of them fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from tinynet.dispatch import is_plain_eager
from tinynet.nn.activation import FUNCTIONS
from tinynet.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from tinynet.nn.conv import Conv2d
from tinynet.nn.group_norm import GroupNorm
from tinynet.nn.layer_norm import LayerNorm, RMSNorm
from tinynet.nn.linear import Linear
from tinynet.nn.pool import MaxPool2d
from tinynet.ops.arguments import needs_gradient
from tinynet.ops.linear import linear_chain

# Normalizations, which can apply an activation too.
_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm)
# What a call of a layer runs, unless it was replaced after this import.
_CALL = torch.nn.Module.__call__
_FORWARDS: dict[type[torch.nn.Module], Any] = {
    layer: layer.forward for layer in (Linear, Conv2d, MaxPool2d, *_NORMS, *FUNCTIONS)
}


class Sequential(torch.nn.Sequential):
    """torch.nn.Sequential that fuses neighboring layers:

    - Consecutive `Linear` layers are one autograd function: the matrix product that computes a hidden layer's gradient
      also applies the derivative of its activation and sums its bias gradient.
    - `Conv2d` and `MaxPool2d(2)`: the convolution's kernel computes the maximum of each window, as with `pool=2`.
    - `Conv2d` and `BatchNorm2d`: in training the convolution's kernel leaves statistics of its output, so that the
      normalization reads it once; in evaluation, without gradients, the convolution's kernel normalizes.
    - A normalization and an activation: one kernel, as with `activation=`.

    Layers with a hook, or whose `__call__` or `forward` was replaced, are called as modules. So are all layers under
    torch.fx and torch.compile.
    """

    def forward(self, input: Any) -> Any:
        if torch.compiler.is_compiling() or not isinstance(input, torch.Tensor):
            return super().forward(input)
        modules: list[Any] = list(self._modules.values())
        while modules:
            count = _linear_layers(modules)
            if count:
                input = linear_chain(input, [(layer.weight, layer.bias, layer.activation) for layer in modules[:count]])
            else:
                input, count = _call(modules, input)
            del modules[:count]
        return input


def _linear_layers(modules: Sequence[Any]) -> int:
    """How many plain `Linear` layers come first."""
    for count, module in enumerate(modules):
        if type(module) is not Linear or not _is_plain(module):
            return count
    return len(modules)


def _call(modules: Sequence[Any], x: Any) -> tuple[Any, int]:
    """The first module's output for x, or that of the first few, fused; and how many they are."""
    first, others = modules[0], modules[1:3]
    if type(first) is Conv2d and others and first.pool == 1 and _is_plain(first):
        if _is_half(others[0]):
            return first.convolve(x, first.activation, pool=2)[0], 2
        if type(others[0]) is BatchNorm2d and _is_plain(others[0]) and _can_join(first, others[0], x):
            return _call_convolution_and_norm(first, others, x)
    if type(first) in _NORMS and _is_plain(first):
        activation, count = _activation_of(modules)
        norm: Any = first
        return norm.normalize(x, activation), count
    return first(x), 1


def _call_convolution_and_norm(convolution: Conv2d, others: Sequence[Any], x: Any) -> tuple[Any, int]:
    """The output of a convolution, its normalization and perhaps an activation; and how many modules they are."""
    norm = others[0]
    activation, count = _activation_of(others)
    constants = norm.constants()
    if constants is None:
        y, partial = convolution.convolve(x, convolution.activation, want_statistics=True)
        return norm.normalize(y, activation, partial=partial), 1 + count
    if needs_gradient(x, convolution.weight, convolution.bias, norm.weight, norm.bias):
        return norm.normalize(convolution(x), activation), 1 + count
    return convolution.convolve(x, activation, norm=constants)[0], 1 + count


def _can_join(convolution: Conv2d, norm: BatchNorm2d, x: torch.Tensor) -> bool:
    """Whether a normalization's operands are such that the convolution's kernel can read them."""
    if x.dim() != 4 or convolution.activation.name != "identity":
        return False
    operands = norm.running_mean, norm.running_var, norm.weight, norm.bias
    return is_plain_eager(*operands) and all(
        tensor is None
        or (
            (tensor.shape == (convolution.out_channels,) and tensor.is_contiguous())
            and (tensor.dtype in (x.dtype, torch.float32) and tensor.device == x.device)
        )
        for tensor in operands
    )


def _activation_of(modules: Sequence[Any]) -> tuple[Any, int]:
    """The activation that a normalization applies, its own or the next module's; and how many modules they are."""
    own = modules[0].activation
    if own.name != "identity" or len(modules) == 1:
        return own, 1
    following = modules[1]
    function = FUNCTIONS.get(type(following))
    if function is None or not _is_plain(following):
        return own, 1
    return function(following), 2


def _is_half(module: torch.nn.Module) -> bool:
    """Whether a module is a plain 2 x 2 max-pooling."""
    if type(module) is not MaxPool2d or not _is_plain(module):
        return False
    sizes = module.kernel_size, module.stride
    if not all(_is_in_both_directions(2, size) for size in sizes) or module.ceil_mode or module.return_indices:
        return False
    return _is_in_both_directions(0, module.padding) and _is_in_both_directions(1, module.dilation)


def _is_in_both_directions(number: int, size: Any) -> bool:
    """Whether a size, given as one number or (height, width), is `number` in both directions."""
    return all(part == number for part in size) if isinstance(size, tuple | list) else size == number


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether calling the module runs only its class's own `forward`."""
    layer = type(module)
    return not (
        layer.forward is not _FORWARDS[layer]
        or layer.__call__ is not _CALL
        or module._compiled_call_impl is not None
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )

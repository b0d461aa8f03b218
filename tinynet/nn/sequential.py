"""A sequence of modules, some of them fused."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from tinynet.nn.conv import Conv2d
from tinynet.nn.linear import Linear
from tinynet.nn.pool import MaxPool2d
from tinynet.ops.linear import Layer, linear_chain

# What a call of a layer runs, unless it was replaced after this import.
_CALL = torch.nn.Module.__call__
_FORWARDS: dict[type[torch.nn.Module], Any] = {layer: layer.forward for layer in (Linear, Conv2d, MaxPool2d)}


class Sequential(torch.nn.Sequential):
    """torch.nn.Sequential that fuses neighboring layers into one autograd function.

    Consecutive `Linear` layers: the matrix product that computes a hidden layer's gradient also applies the derivative
    of its activation and sums its bias gradient. `Conv2d` followed by `MaxPool2d(2)`: the convolution's kernel computes
    the maximum of each window, as with `pool=2`. Layers with a hook, or whose `__call__` or `forward` was replaced, are
    called as modules, and so are all layers under torch.fx and torch.compile.
    """

    def forward(self, input: Any) -> Any:
        if torch.compiler.is_compiling() or not isinstance(input, torch.Tensor):
            return super().forward(input)
        chain: list[Layer] = []
        modules = iter(self._modules.values())
        following = next(modules, None)
        while following is not None:
            module, following = following, next(modules, None)
            if type(module) is Linear and _is_plain(module):
                chain.append((module.weight, module.bias, module.activation))
                continue
            if chain:
                input = linear_chain(input, chain)
                chain = []
            if type(module) is Conv2d and following is not None and _can_fuse_pooling(module, following):
                input = module.convolve(input, pool=2)
                following = next(modules, None)
            else:
                input = module(input)
        return linear_chain(input, chain) if chain else input


def _can_fuse_pooling(module: Conv2d, following: torch.nn.Module) -> bool:
    """Whether a convolution can include the layer after it: a plain 2 x 2 max-pooling."""
    if type(following) is not MaxPool2d or module.pool != 1:
        return False
    sizes = following.kernel_size, following.stride
    if not all(_is_in_both_directions(2, size) for size in sizes) or following.ceil_mode or following.return_indices:
        return False
    if not _is_in_both_directions(0, following.padding) or not _is_in_both_directions(1, following.dilation):
        return False
    return _is_plain(module) and _is_plain(following)


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

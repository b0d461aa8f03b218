"""Modules one after another."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from tinynet.nn.linear import Linear
from tinynet.ops.linear import Layer, linear_chain


class Sequential(torch.nn.Sequential):
    """torch.nn.Sequential; `Linear` layers that follow one another run as one autograd function.

    In such a chain the product that makes a hidden layer's gradient also applies the derivative of its activation and
    sums its bias gradient. A layer with a hook is called as a module, so that its hooks run.
    """

    def forward(self, input: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(input)
        chain: list[Layer] = []
        for module in self._modules.values():
            if type(module) is Linear and _is_plain(module):
                chain.append((module.weight, module.bias, module.activation))
                continue
            if chain:
                input = linear_chain(input, chain)
                chain = []
            input = module(input)  # pyright: ignore[reportOptionalCall]
        return linear_chain(input, chain) if chain else input


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether a call of the module is a call of its class's `forward` and nothing else."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )

"""The tensors that a recorded step leaves behind."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_PLAIN = (Tensor, torch.nn.Parameter)


def detached(outputs: Any) -> Any:
    """The outputs with their tensors detached from what computed them."""
    return tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, outputs)


def address_of(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()


def gradients() -> list[tuple[Tensor, Tensor]]:
    """Every leaf of this process that has a gradient, and the gradient; those alone that kernels can read."""
    gc.collect()
    leaves = [each for each in gc.get_objects() if type(each) in _PLAIN and each.is_leaf]
    pairs = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
    return [(leaf, grad) for leaf, grad in pairs if type(grad) is Tensor and grad.layout is torch.strided]

"""The tensors that a recorded step leaves behind."""

from __future__ import annotations

import gc
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


def detached(outputs: Any) -> Any:
    """The outputs with their tensors detached from what computed them."""
    return tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, outputs)


def address_of(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()


def gradients() -> list[tuple[Tensor, Tensor]]:
    """Every leaf of this process that has a gradient, and the gradient."""
    gc.collect()
    leaves = [each for each in gc.get_objects() if issubclass(type(each), Tensor) and each.is_leaf]
    return [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]

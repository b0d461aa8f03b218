"""The tensors that a recorded step leaves behind."""

from __future__ import annotations

import gc
from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

_PLAIN = (Tensor, torch.nn.Parameter)


class _Packed(NamedTuple):
    """A PackedSequence whose sizes are no tensor: they are the same in each replay."""

    data: Tensor
    batch_sizes: array[int]
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None


def flattened(tree: Any) -> tuple[list[Any], TreeSpec]:
    """The leaves of nested lists, tuples, dicts and packed sequences, and their structure."""

    def opened(leaf: Any) -> Any:
        if not isinstance(leaf, PackedSequence):
            return leaf
        return _Packed(leaf.data, array("q", leaf.batch_sizes.tolist()), leaf.sorted_indices, leaf.unsorted_indices)

    return tree_flatten(tree_map(opened, tree, is_leaf=lambda node: isinstance(node, PackedSequence)))


def unflattened(leaves: list[Any], structure: TreeSpec) -> Any:
    """The opposite of `flattened`."""

    def closed(node: Any) -> Any:
        return (
            PackedSequence(node.data, torch.tensor(node.batch_sizes.tolist(), device="cpu"), *node[2:])
            if type(node) is _Packed
            else node
        )

    return tree_map(closed, tree_unflatten(leaves, structure), is_leaf=lambda node: type(node) is _Packed)


def detached(outputs: Any) -> Any:
    """The outputs with their tensors detached from what computed them."""
    leaves, structure = flattened(outputs)
    return unflattened([leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)


def address_of(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()


def gradients() -> list[tuple[Tensor, Tensor]]:
    """Every leaf of this process that has a gradient, and the gradient; those alone that kernels can read."""
    gc.collect()
    leaves = [each for each in gc.get_objects() if type(each) in _PLAIN and each.is_leaf]
    pairs = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
    return [(leaf, grad) for leaf, grad in pairs if type(grad) is Tensor and grad.layout is torch.strided]

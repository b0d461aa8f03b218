"""PyTorch's sums, products, copies and concatenations as launches.

Between the launches of a recording a launch takes no call of Python; a PyTorch operator takes several microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinynet.dispatch import KERNEL_DTYPES, are_plain_and_alike
from tinynet.graphs.tensors import address_of
from tinynet_kernels.arithmetic import added, arithmetic, multiplied

aten = torch.ops.aten
_FUNCTIONS = {aten.add.Tensor: added, aten.mul.Tensor: multiplied}
_ROW = 256  # elements that rows have where memory has no gaps, if they divide it
_SHORTEST_ROW = 8  # with shorter ones PyTorch is faster
_MOST_PARTS = 4  # launches for one operator


def launches(func: Any, args: Sequence[Any], result: Tensor) -> bool:
    """Launches a kernel that computes what an operator returns; returns False where only PyTorch can.

    Args:
        func: the operator.
        args: those that it is called with, none by name.
        result: a new tensor, which receives what it returns.
    """
    if func is aten.cat.default or func is aten.stack.default:
        return _joins(func, *args, result=result)
    function = _FUNCTIONS.get(func)
    return function is not None and len(args) == 2 and _computes(function, args, result)


def copies(source: Tensor, target: Tensor) -> bool:
    """Launches a kernel that copies a tensor to other memory; returns False where only PyTorch can."""
    return address_of(source) != address_of(target) and _computes(None, (source,), target)


def _joins(func: Any, tensors: Sequence[Tensor], dim: int = 0, *, result: Tensor) -> bool:
    """Copies each tensor into its part of the concatenated or stacked ones."""
    if any(each.numel() == 0 for each in tensors):
        return False
    is_stack = func is aten.stack.default
    parts = result.unbind(dim) if is_stack else result.split([each.shape[dim] for each in tensors], dim)
    pairs = list(zip(tensors, parts, strict=True))
    if any(_view(part, (each,)) is None for each, part in pairs):
        return False
    for each, part in pairs:
        _computes(None, (each,), part)
    return True


def _computes(function: Any, operands: Sequence[Any], result: Tensor) -> bool:
    view = _view(result, operands)
    if view is None:
        return result.ndim > 4 and _computes_parts(function, operands, result)
    arithmetic(function, result, operands, *view)
    return True


def _computes_parts(function: Any, operands: Sequence[Any], result: Tensor) -> bool:
    """The same, part by part along the shortest dimension."""
    size, dim = min((size, dim) for dim, size in enumerate(result.shape))
    if size > _MOST_PARTS or not all(isinstance(each, Tensor) for each in operands):
        return False
    whole = [each.expand(result.shape) for each in operands]
    return all(_computes(function, [x.select(dim, n) for x in whole], result.select(dim, n)) for n in range(size))


def _view(result: Tensor, operands: Sequence[Any]) -> tuple[list[int], list[Any]] | None:
    """A shape of four dimensions for all, and the strides of each, the result's first; None where there is none."""
    if result.dtype not in KERNEL_DTYPES or not are_plain_and_alike((result, *operands)):
        return None
    tensors = [result, *(each.expand(result.shape) for each in operands)]
    dims = sorted((d for d in range(result.ndim) if result.shape[d] > 1), key=result.stride, reverse=True)
    shape: list[int] = []
    strides: list[list[int]] = []  # by dimension, of each tensor
    for dim in dims:
        size, here = result.shape[dim], [each.stride(dim) for each in tensors]
        if shape and all(outer == size * inner for outer, inner in zip(strides[-1], here, strict=True)):
            shape[-1], strides[-1] = shape[-1] * size, here  # this dimension continues the one before it
        else:
            shape.append(size)
            strides.append(here)
    if not shape:
        shape, strides = [1], [[1] * len(tensors)]
    if len(shape) == 1:
        columns = math.gcd(shape[0], _ROW)
        columns = shape[0] if columns < _SHORTEST_ROW else columns
        shape, strides = [shape[0] // columns, columns], [[columns * stride for stride in strides[0]], strides[0]]
    is_contiguous = strides[-1][0] == 1 and all(stride in (0, 1) for stride in strides[-1])
    if not is_contiguous or len(shape) > 4 or (shape[-1] < _SHORTEST_ROW and result.numel() > _SHORTEST_ROW):
        return None
    missing = 4 - len(shape)
    strides = [[0] * len(tensors)] * missing + strides
    return [1] * missing + shape, [tuple(each) for each in zip(*strides, strict=True)]

"""How operands of one shape share a matrix [rows, columns] in memory, without copies where they are dense or expanded.

An operand has every element of the matrix, in order ("dense"), one element for each row ("rows") or for each column
("columns"), as a vector that was expanded has, or one in all ("scalar"). The matrix's rows are the leading dimensions
in the order of the dense operands, which need not be that of the shape. No Triton here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Stride = tuple[int, ...]


def contiguous_strides(sizes: Sequence[int]) -> Stride:
    """The strides of a contiguous tensor."""
    return tuple([math.prod(sizes[dimension + 1 :]) for dimension in range(len(sizes))])


def channels_last_strides(shape: Sequence[int]) -> Stride:
    """The strides of a channels_last [N, C, *sizes]."""
    if len(shape) == 4:  # asked at each call of a convolution of images
        _, C, H, W = shape
        return C * H * W, 1, C * W, C
    N, C, *sizes = shape
    first, *others, last = contiguous_strides((N, *sizes, C))
    return first, last, *others


def is_dense(shape: Sequence[int], stride: Stride) -> bool:
    """Whether the elements fill a stretch of memory with no gap and no overlap, in any order of dimensions."""
    order = _descending(shape, stride)
    return tuple([stride[d] for d in order]) == contiguous_strides([shape[d] for d in order])


def layouts_of(shape: Sequence[int], dense: Stride, strides: Sequence[Stride | None]) -> tuple[list[str | None], int]:
    """Each operand's layout, and the matrix's rows.

    Args:
        shape: of every operand.
        dense: the strides that decide the order of dimensions.
        strides: of the operands; None for an absent one, which counts as dense.

    Returns:
        A layout for each, None for an operand that has none of them and is to be copied; the rows: where the first
        vector's end, 1 without a vector.
    """
    order = _descending(shape, dense)
    sizes = [shape[d] for d in order]
    layouts: list[str | None] = []
    split = None
    for stride in strides:
        steps = None if stride is None else tuple([stride[d] for d in order])
        if steps is None or steps == contiguous_strides(sizes):
            layouts.append("dense")
        elif not any(steps):
            layouts.append("scalar")
        else:
            layout, at = _vector(sizes, steps)
            split = at if split is None else split
            layouts.append(layout if at == split else None)
    return layouts, math.prod(sizes[:split]) if split else 1


def _descending(shape: Sequence[int], stride: Stride) -> list[int]:
    """The dimensions of more than one element, the longest stride first."""
    return sorted([d for d in range(len(shape)) if shape[d] != 1], key=lambda d: -stride[d])


def _vector(sizes: Sequence[int], steps: Stride) -> tuple[str | None, int | None]:
    """Whether a vector of rows or of columns was expanded to these strides, and how many dimensions the rows have."""
    present = [d for d in range(len(steps)) if steps[d]]
    first, last = present[0], present[-1] + 1
    if first > 0 and steps[first:] == contiguous_strides(sizes[first:]):
        return "columns", first
    if last < len(steps) and steps[:last] == contiguous_strides(sizes[:last]):
        return "rows", last
    return None, None

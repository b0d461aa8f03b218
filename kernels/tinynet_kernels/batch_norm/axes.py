"""The order in memory of a tensor [N, C, ...], as normalization kernels see it. No Triton here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinynet_kernels.operand_layout import channels_last_strides, contiguous_strides


class Axes(NamedTuple):
    """A tensor as [groups, outer, C, inner], where each group and channel has statistics of its own.

    Attributes:
        outer, inner: sizes.
        stride_outer: of groups and outer, one of which is 1.
        stride_across: of inner for `channels_inner`, else that of channels. The other of these strides is 1.
        channels_inner: whether neighboring channels are neighbors in memory.
    """

    outer: int
    inner: int
    stride_outer: int
    stride_across: int
    channels_inner: bool


def axes_of(shape: Sequence[int], stride: Sequence[int], *, per_sample: bool) -> Axes | None:
    """The axes of a tensor [N, C, ...] without a copy; None where there are none.

    Args:
        shape, stride: of the tensor; not empty.
        per_sample: whether each sample is a group, else there is one group.
    """
    length, stride_inner = 1, 1
    for size, step in zip(reversed(shape[2:]), reversed(stride[2:]), strict=True):
        if size == 1:
            continue
        if length == 1:
            stride_inner = step
        elif step != stride_inner * length:
            return None
        length *= size
    N, C = shape[0], shape[1]
    stride_outer = stride[0] if N > 1 else 1
    stride_channel = stride[1] if C > 1 else 1
    if min(stride_outer, stride_channel, stride_inner) == 0:
        return None
    if length == 1 and not per_sample:  # [N, C]
        return Axes(1, N, 0, stride_outer, True) if stride_channel == 1 else None
    outer = 1 if per_sample else N
    if stride_inner == 1:
        return Axes(outer, length, stride_outer, stride_channel, False)
    if stride_channel != 1:
        return None
    if outer > 1 and stride_outer == length * stride_inner:
        return Axes(1, N * length, 0, stride_inner, True)
    return Axes(outer, length, stride_outer, stride_inner, True)


def dense_strides(shape: Sequence[int], *, channels_inner: bool) -> tuple[int, ...]:
    """Strides of a result [N, C, ...] in the order of an operand with or without `channels_inner`: without gaps."""
    last = channels_inner and any(size != 1 for size in shape[2:])
    return channels_last_strides(shape) if last else contiguous_strides(shape)

"""What a pooling kernel is compiled for, beside its tile; needs no Triton."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Axis(NamedTuple):
    """A window along one axis of the image.

    Attributes:
        kernel: its taps. Adaptive: the most that any window has.
        stride: from one window to the next. Adaptive and fractional: not read.
        padding: elements outside the image on each side, at most half a kernel.
        dilation: from one tap to the next; 1 for means.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1


POINT = Axis(1)  # the window along an axis that an image does not have


class Window(NamedTuple):
    """The window along the three axes.

    Attributes:
        depth, rows, columns: along each axis.
        adaptive: whether the windows divide the image among the outputs.
        fractional: whether they are at random distances.
    """

    depth: Axis
    rows: Axis
    columns: Axis
    adaptive: bool = False
    fractional: bool = False


class Mean(NamedTuple):
    """What is computed of a window's elements.

    Attributes:
        count_include_pad: whether a mean's divisor counts the padding.
        divisor_override: the divisor, or 0 for the number of elements.
        norm: p of the p-norm, or 0.0 for the mean.
    """

    count_include_pad: bool = True
    divisor_override: int = 0
    norm: float = 0.0


def window_of(axes: Iterable[Axis], *, adaptive: bool = False, fractional: bool = False) -> Window:
    """The window along the last one, two or three axes of an image."""
    axes = list(axes)
    return Window(*[POINT] * (3 - len(axes)), *axes, adaptive=adaptive, fractional=fractional)


def reach(axis: Axis) -> int:
    """Elements from a window's first tap to its last."""
    return (axis.kernel - 1) * axis.dilation + 1


def taps(window: Window) -> int:
    """Elements of a window."""
    return window.depth.kernel * window.rows.kernel * window.columns.kernel

"""How far one tile reaches. Offsets within it are int32, half the registers of int64, wherever they fit.

A launcher asks `exceed_int32` once for each problem. Where they don't fit, as in a view of a huge stride or a matrix of
huge rows, the kernel takes its sizes and strides as int64 (`widened`), and all that is computed from them follows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr

LARGEST_OFFSET = (1 << 31) - 1  # of an int32


def exceed_int32(*offsets: tuple[tuple[int, int], ...]) -> bool:
    """Whether any of these offsets does not fit an int32.

    Args:
        offsets: the axes that each is a sum over: (elements in a tile, stride); a mere count has a stride of 1.
    """
    return any(sum((length - 1) * stride for length, stride in axes) > LARGEST_OFFSET for axes in offsets)


@triton.jit
def widened(number, WIDE: constexpr):
    """A size or stride, in int64 for WIDE."""
    if WIDE:
        return tl.cast(number, tl.int64)
    else:
        return number

"""bfloat16 as numbers, for Triton's interpreter.

numpy has no bfloat16, so the stock interpreter (Triton 3.6 - 3.9) stores a bfloat16 tensor as its bit patterns
in uint16, then adds, multiplies and compares those integers, and truncates when it casts from float32.
`bfloat16_patches.py` makes every operation do what the hardware does: widen to float32, compute, round to nearest even.
"""

from __future__ import annotations

import numpy as np

_QUIET_NAN = np.uint16(0x7FC0)


def widen(bits: np.ndarray) -> np.ndarray:
    """Returns the float32 values of bfloat16 bit patterns. Exact.

    Args:
        bits: uint16 array of any shape.

    Returns:
        float32 array of the same shape.
    """
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Rounds values to bfloat16, to nearest, ties to even; overflow becomes infinity, NaN remains NaN.

    Args:
        values: array of any shape; other dtypes are converted to float32 first, as PyTorch does.

    Returns:
        uint16 array of bit patterns, same shape.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(values, dtype=np.float32).reshape(np.shape(values))
    bits = values.view(np.uint32)
    last_kept_bit = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + (np.uint32(0x7FFF) + last_kept_bit)) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), _QUIET_NAN, rounded)

"""Whether results of Winograd's algorithm are right, and the definition where they are not."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tinynet_kernels import replays


def is_right(infinite: torch.Tensor, again: Callable[..., object] | None, *operands: torch.Tensor | None) -> bool:
    """Whether all programs have found their sums finite.

    While a step is recorded nobody knows: the answer is True, and each replay looks.

    Args:
        infinite: a number for each program, 0 or NaN.
        again: computes the results by the definition, from `operands`, in a replay that finds them wrong; None where
            they stay: the statistics of values that are not finite are NaN either way.
        operands: what `again` reads and writes.
    """
    recorder = replays.recorder()
    if recorder is None:
        return not replays.any_nonzero(infinite)
    if again is not None:
        recorder.unless_zero(infinite, again, *operands)
    return True

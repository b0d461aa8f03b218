"""Numbers of an optimizer's step that stay on the device, so that a CUDA graph of the step can be replayed.

fp32 [parameters, 1 + numbers]. A row holds whether its parameter takes the step, which it doesn't where a GradScaler
found an inf or NaN, and then the numbers that a kernel otherwise gets as arguments: learning rate, corrections of
averages, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr

Number = float | torch.Tensor


@triton.jit
def numbers_of_block(numbers_ptr, block_ptr, number, left, COUNT: constexpr):
    """Of a block of a `PointerTable`: how many of its `left` elements take the step, all or none; and its numbers."""
    row = tl.load(block_ptr + 2 * number)  # in bounds: one pair per block
    row_ptr = numbers_ptr + row.to(tl.int64) * (1 + COUNT)
    takes_step = tl.load(row_ptr)  # in bounds: a row of 1 + COUNT
    numbers = ()
    for index in tl.static_range(COUNT):  # pyright: ignore[reportGeneralTypeIssues]
        numbers += (tl.load(row_ptr + 1 + index),)  # in bounds: as above
    return tl.where(takes_step != 0, left, 0), numbers


def device_numbers(
    rows: int, numbers: Sequence[Number], found_inf: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """The numbers of every row.

    Args:
        rows: of the table.
        numbers: floats, tensors of one element, and tensors [rows].
        found_inf: of a GradScaler, one element; where it isn't 0, no parameter takes the step.
        device: of the parameters.
    """
    columns = torch.empty((rows, 1 + len(numbers)), dtype=torch.float32, device=device)
    for index, number in enumerate((1.0 if found_inf is None else found_inf == 0, *numbers)):
        if isinstance(number, torch.Tensor):
            columns[:, index].copy_(number)
        else:
            columns[:, index].fill_(number)
    return columns

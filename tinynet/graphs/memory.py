"""Where temporary tensors lie in one block of memory, so that those of different times share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64  # bytes, of each tensor


class Lifetime(NamedTuple):
    """How long so many bytes are in use: from one step to another, both included."""

    size: int
    first: int
    last: int


def arranged(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """The offset of each in a block of memory, and the block's size: each lies in the first gap of its time."""
    offsets: list[int] = []
    end = 0
    for size, first, last in lifetimes:
        taken = sorted(
            (offset, offset + other.size)
            for offset, other in zip(offsets, lifetimes, strict=False)
            if other.first <= last and first <= other.last
        )
        place = 0
        for start, stop in taken:
            if place + size <= start:
                break
            place = max(place, -(-stop // ALIGNMENT) * ALIGNMENT)
        offsets.append(place)
        end = max(end, place + size)
    return offsets, end

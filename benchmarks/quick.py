"""The selection of `--quick`: a few cases of every column."""

from __future__ import annotations

from collections.abc import Iterator

from .case import COLUMNS as ALL_COLUMNS
from .case import Case

COLUMNS = tuple(column for column in ALL_COLUMNS if column not in ("convert", "linear_cross_entropy"))  # large models
SECONDS = 0.4  # per case
PER_COLUMN = 2
MOST_FLOPS = 3e9
MOST_BYTES = 1e8


def selected(cases: Iterator[Case]) -> Iterator[Case]:
    """Yields the first cases of different names that are not too large."""
    seen: set[str] = set()
    for case in cases:
        if case.name not in seen and case.flops <= MOST_FLOPS and case.bytes <= MOST_BYTES:
            seen.add(case.name)
            yield case
        if len(seen) == PER_COLUMN:
            return

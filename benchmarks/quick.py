"""The selection of `--quick`: a few cases of every column."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from .case import COLUMNS as ALL_COLUMNS
from .case import Case

COLUMNS = tuple(column for column in ALL_COLUMNS if column not in ("convert", "linear_cross_entropy"))  # large models
SECONDS = 0.4  # per case
PER_COLUMN = 2
CONSIDERED = 16  # cases of a column
MOST_FLOPS = 3e9
MOST_BYTES = 1e8


def selected(cases: Iterator[Case]) -> Iterator[Case]:
    """Yields the largest cases of the first names among those that are not too large: small ones measure Python."""
    largest: dict[str, Case] = {}
    for case in islice(cases, CONSIDERED):
        if case.flops > MOST_FLOPS or case.bytes > MOST_BYTES:
            continue
        known = largest.get(case.name)
        if len(largest) < PER_COLUMN if known is None else case.bytes > known.bytes:
            largest[case.name] = case
    yield from largest.values()

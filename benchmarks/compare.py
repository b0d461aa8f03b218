"""Compares two files of results: `python -m benchmarks compare old.json new.json`."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from .results import KEY, load
from .row import Row
from .tables import aligned
from .timing import Interval

HEAD = (*KEY, "old", "new", "change", "")


def main(arguments: Sequence[str], prog: str) -> int:
    """Prints the rows of both files; returns 1 if one became slower beyond the intervals, else 0."""
    parser = argparse.ArgumentParser(
        prog=f"{prog} compare",
        description="Compare two files of results. A row's number is tinynet's time over eager PyTorch's in the same "
        "run, or microseconds where there is no such time. It became slower if its new 95 %% interval is above the old "
        "one, by more than --margin. Exit code 1 if one did.",
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--margin",
        type=float,
        default=0.05,
        help="what two runs of the same program may differ by, since memory is laid out anew (default: 0.05)",
    )
    options = parser.parse_args(arguments)
    try:
        old, new = ({_key(row): row for row in load(path)} for path in (options.old, options.new))
    except OSError as error:
        parser.error(f"{error.filename} cannot be read: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    both = [key for key in old if key in new]
    if not both:
        parser.error("the files have no row in common")
    body, changes, slower = [], [], 0
    for key in both:
        before, after = _numbers(old[key], new[key])
        word = judge(before, after, options.margin)
        slower += word == "slower"
        changes.append(after.median / before.median)
        body.append((*map(str, key), _shown(before), _shown(after), f"{100 * changes[-1] - 100:+.1f} %", word))
    body.sort(key=lambda line: line[-1] != "slower")
    print(aligned(HEAD, body))
    print(
        f"{len(both)} rows in both files, {slower} slower; geometric mean of new over old "
        f"{statistics.geometric_mean(changes):.3f}; {len(old) - len(both)} rows only in the old file, "
        f"{len(new) - len(both)} only in the new one"
    )
    if slower:
        print(f"{slower} rows became slower", file=sys.stderr)
    return 1 if slower else 0


def judge(before: Interval, after: Interval, margin: float) -> str:
    """Returns "slower" or "faster" if the intervals are apart by more than the margin, else nothing."""
    if after.low > before.high * (1 + margin):
        return "slower"
    return "faster" if after.high < before.low / (1 + margin) else ""


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(getattr(row, name)) for name in KEY)


def _numbers(old: Row, new: Row) -> tuple[Interval, Interval]:
    """The ratios to eager PyTorch, which hardly depend on the machine's speed; else microseconds."""
    if old.ratio is not None and new.ratio is not None:
        return old.ratio, new.ratio
    before, after = (Interval(*(1e6 * t for t in (r.ours.median, r.ours.low, r.ours.high))) for r in (old, new))
    return before, after


def _shown(value: Interval) -> str:
    return f"{value.median:.3g} ({value.low:.3g} to {value.high:.3g})"

"""Tables of rows, as text for a terminal and in Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from .row import Row
from .timing import Interval

HEAD = (
    *("work", "size", "dtype", "thr", "cache", "tinynet us", "eager us", "ratio", "", "compile"),
    *("rate", "peak", "MiB", "eager MiB", "first s", "error"),
)
MEANS_HEAD = ("dtype", "thr", "cache", "rows", "mean ratio", "best", "worst", "win", "tie", "loss")


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns one line of cells per row, as `HEAD` names them: medians with the 95 % interval of the ratio."""
    return [_cells(row) for row in rows]


def _cells(row: Row) -> tuple[str, ...]:
    baseline, ratio, compiled = row.baseline, row.ratio, row.ratios.get("compile")
    value, unit = row.rate
    return (
        row.name,
        row.size,
        row.dtype,
        str(row.threads),
        row.cache,
        f"{row.ours.median * 1e6:.1f} ({_spread(row.ours):.0%})",
        "-" if baseline is None else f"{row.times[baseline].median * 1e6:.1f}",
        "-" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        row.verdict or "-",
        "-" if compiled is None else f"{compiled.median:.2f}",
        f"{value:.1f} {unit}",
        f"{row.share_of_peak:.0%}",
        f"{row.memory['tinynet'] / 2**20:.1f}",
        "-" if baseline is None else f"{row.memory[baseline] / 2**20:.1f}",
        f"{row.first_calls['tinynet']:.2f}",
        "-" if row.error is None else f"{row.error:.0e}",
    )


def _spread(interval: Interval) -> float:
    """Half the width of the interval, relative to the median."""
    return (interval.high - interval.low) / 2 / interval.median


def means(rows: Sequence[Row], by: Callable[[Row], str]) -> list[tuple[str, ...]]:
    """Returns the geometric mean of the ratios, the extremes and the verdicts of each group of rows, by `MEANS_HEAD`.

    Args:
        rows: those without a baseline are left out.
        by: a group's name, for example the row's column.
    """
    groups: dict[tuple[str, str, int, str], list[Row]] = {}
    for row in rows:
        if row.ratio is not None:
            groups.setdefault((by(row), row.dtype, row.threads, row.cache), []).append(row)
    return [_mean(key, group) for key, group in groups.items()]


def _mean(key: tuple[str, str, int, str], group: list[Row]) -> tuple[str, ...]:
    ratios = [row.ratio.median for row in group if row.ratio is not None]
    verdicts = Counter(row.verdict for row in group)
    numbers = statistics.geometric_mean(ratios), min(ratios), max(ratios)
    counts = (str(verdicts[name]) for name in ("win", "tie", "loss"))
    name, dtype, threads, cache = key
    return (name, dtype, str(threads), cache, str(len(group)), *(f"{number:.2f}" for number in numbers), *counts)


def aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Returns a table for a terminal."""
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *body)]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(line.rstrip() for line in text)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))

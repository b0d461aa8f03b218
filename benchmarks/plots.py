"""Plots of a column: the ratio to eager PyTorch of every row, and the speed of families of rows against their size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .row import Row, Verdict

COLORS: dict[Verdict, str] = {"win": "tab:green", "tie": "tab:gray", "loss": "tab:red"}


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws the rows of one column, and returns the files; none without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return []
    drawn = []
    for kind, draw in (("ratios", _draw_ratios), ("speed", _draw_speed)):
        figure = draw(pyplot, rows)
        if figure is not None:
            path = folder / f"{kind}_{rows[0].column}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight")
            pyplot.close(figure)
            drawn.append(path)
    return drawn


def _draw_ratios(pyplot: Any, rows: Sequence[Row]) -> Any:
    """One point with its interval per row; left of 1, tinynet is faster."""
    from matplotlib.ticker import LogLocator

    shown = [row for row in rows if row.ratio is not None]
    if not shown:
        return None
    figure, axis = pyplot.subplots(figsize=(8, 0.8 + 0.22 * len(shown)))
    for index, row in enumerate(shown):
        ratio, kind = row.ratio, row.verdict
        assert ratio is not None and kind is not None
        axis.plot([ratio.low, ratio.high], [index, index], color=COLORS[kind], lw=2)
        axis.plot(ratio.median, index, "o", color=COLORS[kind], ms=4)
    labels = [f"{row.name}, {row.size}, {row.dtype}, {row.threads} thr, {row.cache}" for row in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=7)
    axis.axvline(1, color="black", lw=0.8)
    axis.set(xscale="log", xlabel="time relative to eager PyTorch (95 % interval; less is better)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    return figure


def _draw_speed(pyplot: Any, rows: Sequence[Row]) -> Any:
    """One panel per family, dtype, number of threads and cache; one line per contender."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.family is not None:
            families.setdefault(f"{row.family}, {row.dtype}, {row.threads} thr, {row.cache}", []).append(row)
    families = {name: group for name, group in families.items() if len(group) > 1}
    if not families:
        return None
    columns = min(3, len(families))
    height = -(-len(families) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(5 * columns, 3.4 * height), squeeze=False)
    for axis in axes.flat[len(families) :]:
        axis.set_axis_off()
    for axis, (name, group) in zip(axes.flat, families.items(), strict=False):
        group = sorted(group, key=lambda row: row.samples)
        for contender in dict.fromkeys(each for row in group for each in row.times):
            timed = [(row.samples, row.times[contender]) for row in group if contender in row.times]
            sizes = [samples for samples, _ in timed]
            (line,) = axis.plot(sizes, [n / time.median for n, time in timed], marker="o", label=contender)
            low, high = ([n / getattr(time, side) for n, time in timed] for side in ("high", "low"))
            axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2)
        axis.set(title=name, xlabel="size (samples)", ylabel="samples / s", xscale="log", yscale="log")
        axis.title.set_fontsize(8)
        axis.legend(fontsize=6)
    figure.tight_layout()
    return figure

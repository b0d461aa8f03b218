"""Renders the benchmark results in docs/results/*.json into docs/results/benchmarks.md and a plot for each machine.

    python scripts/render_results.py

The files are those that `python -m benchmarks` writes, with an optional entry "note": what else is known about the
machine, in a sentence.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"
GREY, BLUE, ORANGE = "#8a8f98", "#4c6ef5", "#e8890c"
TIE = 1.05  # ratios from 1 / TIE to TIE count as equal
HEAD = """# Benchmarks

Time of tinynet over that of PyTorch, for the same work with the same result: **below 1, tinynet is faster**. PyTorch is
timed in its faster memory order, in the same run, in turns with tinynet. This page is made by
`python scripts/render_results.py` from the JSON files beside it; [Run the benchmarks](../how-to/benchmarks.md) says how
to add a machine. No GPU has been measured yet.
"""

Row = dict[str, Any]


def main() -> None:
    """Writes the page and its plots."""
    parts = [HEAD]
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text())
        rows = [row for row in result["rows"] if row["ratio"] is not None]
        draw(rows, FOLDER / f"{path.stem}.svg")
        parts.append(section(result, rows, path.stem))
    (FOLDER / "benchmarks.md").write_text("\n".join(parts))


def section(result: dict[str, Any], rows: list[Row], stem: str) -> str:
    """The text about one machine."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version != "None")
    lines = [
        f"## {result['device']}",
        "",
        *([result["note"], ""] if "note" in result else []),
        f"Versions: {versions}.",
    ]
    lines += ["", f"![Ratio of each case, by kind of work]({stem}.svg)", "", *summary(rows)]
    lines += ["", "### All cases", "", *table(rows), ""]
    return "\n".join(lines)


def summary(rows: list[Row]) -> list[str]:
    """A line for each column, dtype and number of threads."""
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        groups[row["column"], row["dtype"], row["threads"]].append(row["ratio"])
    lines = ["| column | dtype | threads | mean ratio | smallest to largest | faster | equal | slower |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (column, dtype, threads), ratios in sorted(groups.items()):
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        faster, slower = sum(ratio < 1 / TIE for ratio in ratios), sum(ratio > TIE for ratio in ratios)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        counts = f"{faster} | {len(ratios) - faster - slower} | {slower}"
        lines.append(f"| {column} | {dtype} | {threads} | **{mean:.2f}** | {spread} | {counts} |")
    return [*lines, "", f"Means are geometric; from {1 / TIE:.2f} to {TIE:.2f} counts as equal."]


def table(rows: list[Row]) -> list[str]:
    """A line for each case: the fastest times of both, in microseconds, and the ratio."""
    lines = ["| work | size | dtype | threads | tinynet, µs | PyTorch, µs | ratio |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ours = row["times"]["tinynet"]["minimum"]
        cells = row["name"], row["size"], row["dtype"], row["threads"]
        times = f"{ours * 1e6:.1f} | {ours / row['ratio'] * 1e6:.1f} | {row['ratio']:.2f}"
        lines.append(f"| {' | '.join(map(str, cells))} | {times} |")
    return lines


def draw(rows: list[Row], path: Path) -> None:
    """Plots each case's ratio as a point, a line for each column."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tinynet"  # the same rows give the same file
    from matplotlib import pyplot

    columns = sorted({row["column"] for row in rows}, reverse=True)
    figure, axes = pyplot.subplots(figsize=(5.6, 1.1 + 0.34 * len(columns)))
    for row in rows:
        place = columns.index(row["column"]) + (0.14 if row["dtype"] == "fp32" else -0.14)
        axes.plot(row["ratio"], place, "o", ms=4.5, alpha=0.6, mew=0, color=BLUE if row["dtype"] == "fp32" else ORANGE)
    for color, name in ((BLUE, "fp32"), (ORANGE, "16 bits")):
        axes.plot([], [], "o", ms=5, mew=0, color=color, label=name)
    axes.axvline(1, color=GREY, lw=1)
    axes.set_xscale("log", base=2)
    axes.set_yticks(range(len(columns)), columns)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("time of tinynet / time of PyTorch: left of the line, tinynet is faster")
    axes.tick_params(colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.grid(axis="y", color=GREY, alpha=0.25)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, labelcolor=GREY, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()

"""Renders recorded results into the pages docs/results/benchmarks.md and docs/results/chips.md.

    python scripts/render_results.py

The first is made of docs/results/*.json, with a plot for each: files that `python -m benchmarks` writes, with an
optional entry "note", what else is known about the machine, in a sentence. The second is made of the figures that the
compile matrix has recorded.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "results"
COSTS = ROOT / "tests" / "compile_matrix" / "costs.json"
GREY, BLUE, ORANGE = "#8a8f98", "#4c6ef5", "#e8890c"
TIE = 1.05  # ratios from 1 / TIE to TIE count as equal
HEAD = """# Benchmarks

Time of tinynet over that of PyTorch, for the same work with the same result: **below 1, tinynet is faster**. PyTorch is
timed in its faster memory order, in the same run, in turns with tinynet. This page is made by
`python scripts/render_results.py` from the JSON files beside it; [Run the benchmarks](../how-to/benchmarks.md) says how
to add a machine. No GPU has been measured yet.
"""

CHIPS_HEAD = """# Nine GPUs

No kernel has been timed on a GPU yet, but every one is compiled for nine, for all tiles that the rules choose. All fit
the chips' shared memory, and 16-bit products use the matrix instructions. No main loop spills registers, except for up
to three values in a few kernels on sm_100 and sm_120 ([the checks](../compile-matrix.md)).

What remains is how much a main loop does besides: **main-loop instructions for each matrix instruction**, of the
leanest tile. Instructions of different chips do different amounts of work, so compare within a column only. This page
is made by `python scripts/render_results.py`.
"""
CHIPS = {
    "NVIDIA": ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"),
    "AMD": ("gfx90a", "gfx942", "gfx950"),
}

Row = dict[str, Any]


def main() -> None:
    """Writes the pages and plots."""
    for path, result in results().items():
        draw(compared(result), path.with_suffix(".svg"))
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    sections = [section(result, path.stem) for path, result in results().items()]
    return {
        "benchmarks.md": "\n".join([HEAD, *sections]),
        "chips.md": "\n".join([CHIPS_HEAD, *(chips_section(vendor) for vendor in CHIPS)]),
    }


def results() -> dict[Path, dict[str, Any]]:
    """The machines' results, by file."""
    return {path: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def compared(result: dict[str, Any]) -> list[Row]:
    """The rows with a time of PyTorch's."""
    return [row for row in result["rows"] if row["ratio"] is not None]


def section(result: dict[str, Any], stem: str) -> str:
    """The text about one machine."""
    rows = compared(result)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version != "None")
    lines = [
        f"## {result['device']}",
        "",
        *([result["note"], ""] if "note" in result else []),
        f"Versions: {versions}.",
    ]
    lines += ["", f"![Ratio of each case, by kind of work]({stem}.svg)", "", *summary(rows, "column")]
    lines += ["", f"Means are geometric; from {1 / TIE:.2f} to {TIE:.2f} counts as equal.", ""]
    for title, inside in (("By kind of work", summary(rows, "name")), ("All cases", table(rows))):
        lines += ['<details markdown="1">', f"<summary>{title}</summary>", "", *inside, "", "</details>", ""]
    return "\n".join(lines)


def summary(rows: list[Row], by: str) -> list[str]:
    """A line for each "column" or "name" of cases, dtype and number of threads."""
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        groups[row[by], row["dtype"], row["threads"]].append(row["ratio"])
    lines = [
        f"| {by.replace('name', 'work')} | dtype | threads | mean ratio | least to most | faster | equal | slower |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (name, dtype, threads), ratios in sorted(groups.items()) if by == "column" else groups.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        faster, slower = sum(ratio < 1 / TIE for ratio in ratios), sum(ratio > TIE for ratio in ratios)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        counts = f"{faster} | {len(ratios) - faster - slower} | {slower}"
        lines.append(f"| {name} | {dtype} | {threads} | **{mean:.2f}** | {spread} | {counts} |")
    return lines


def table(rows: list[Row]) -> list[str]:
    """A line for each case: the fastest times of both, in microseconds, and the ratio."""
    lines = ["| work | size | dtype, threads | tinynet, µs | PyTorch, µs | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        ours = row["times"]["tinynet"]["minimum"]
        cells = row["name"], row["size"], f"{row['dtype']}, {row['threads']}"
        times = f"{ours * 1e6:.1f} | {ours / row['ratio'] * 1e6:.1f} | {row['ratio']:.2f}"
        lines.append(f"| {' | '.join(map(str, cells))} | {times} |")
    return lines


def chips_section(vendor: str) -> str:
    """A table with a line for each kernel and type of its operands: the fewest instructions per matrix instruction."""
    recorded: dict[str, dict[str, float]] = json.loads(COSTS.read_text())["costs"]
    fewest: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for chip in CHIPS[vendor]:
        for variant, cost in recorded[chip].items():
            kernel, dtype, _ = variant.split(" ", 2)
            line = fewest[kernel.removesuffix("_kernel"), dtype]
            line[chip] = min(cost, line.get(chip, cost))
    chips = CHIPS[vendor]
    lines = [f"## {vendor}", "", f"| kernel | operands | {' | '.join(chips)} |", f"|---|---|{'---|' * len(chips)}"]
    for (kernel, dtype), line in sorted(fewest.items()):
        costs = " | ".join(f"{line[chip]:.1f}" if chip in line else "" for chip in chips)
        lines.append(f"| {kernel} | {dtype} | {costs} |")
    counts = ", ".join(f"{len(recorded[chip])} on {chip}" for chip in chips)
    return "\n".join([*lines, "", f"Variants with a matrix product in their main loop: {counts}.", ""])


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
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:.0f}")
    axes.set_xlabel("time of tinynet / time of PyTorch")
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

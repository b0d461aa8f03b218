"""Renders recorded results into the pages docs/results/benchmarks.md and docs/results/chips.md.

    python scripts/render_results.py

The first is made of docs/results/*.json, files that `python -m benchmarks` writes, with a plot for each. The second is
made of the figures that the compile matrix has recorded.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results import describe, load  # noqa: E402
from benchmarks.row import Row  # noqa: E402
from benchmarks.tables import HEAD as TABLE_HEAD  # noqa: E402
from benchmarks.tables import MEANS_HEAD, lines, markdown, means  # noqa: E402

FOLDER = ROOT / "docs" / "results"
COSTS = ROOT / "tests" / "compile_matrix" / "costs.json"
GREY, BLUE, ORANGE = "#8a8f98", "#4c6ef5", "#e8890c"
HEAD = """# Benchmarks

Time of tinynet over that of PyTorch, for the same work with the same result: **below 1, tinynet is faster**. PyTorch is
timed in its faster memory order, in the same run, in turns with tinynet. A win or a loss is a ratio whose 95 % interval
is on one side of 1. This page is made by
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


def main() -> None:
    """Writes the pages and plots."""
    for path in files():
        draw(load(path), path.with_suffix(".svg"))
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def files() -> list[Path]:
    """The machines' results."""
    return sorted(FOLDER.glob("*.json"))


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    return {
        "benchmarks.md": "\n".join([HEAD, *map(section, files())]),
        "chips.md": "\n".join([CHIPS_HEAD, *(chips_section(vendor) for vendor in CHIPS)]),
    }


def section(path: Path) -> str:
    """The text about one machine."""
    rows, runs = load(path), json.loads(path.read_text())["runs"]
    parts = [f"## {runs[-1]['device']}", *("\n".join(f"- {line}" for line in describe(run)) for run in runs)]
    parts.append(f"![Ratio of each case, by kind of work]({path.stem}.svg)")
    parts += [markdown(("column", *MEANS_HEAD), means(rows, lambda row: row.column)), "Means are geometric."]
    details = ("By kind of work", markdown(("work", *MEANS_HEAD), means(rows, lambda row: row.name)))
    for title, inside in (details, ("All cases", markdown(TABLE_HEAD, lines(rows)))):
        parts.append(f'<details markdown="1">\n<summary>{title}</summary>\n\n{inside}\n\n</details>')
    return "\n\n".join(parts) + "\n"


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


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plots each case's ratio as a point, a line for each column."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tinynet"  # the same rows give the same file
    from matplotlib import pyplot

    columns = sorted({row.column for row in rows}, reverse=True)
    figure, axes = pyplot.subplots(figsize=(5.6, 1.1 + 0.34 * len(columns)))
    for row in rows:
        if row.ratio is not None:
            color, shift = (BLUE, 0.14) if row.dtype == "fp32" else (ORANGE, -0.14)
            place = columns.index(row.column) + shift
            axes.plot(row.ratio.median, place, "o", ms=4.5, alpha=0.6, mew=0, color=color)
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

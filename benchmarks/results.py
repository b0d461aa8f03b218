"""The files of results: JSON with everything, and beside it Markdown and CSV of the same rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .case import OURS
from .peak import Peak
from .row import Row
from .tables import HEAD, MEANS_HEAD, lines, markdown, means
from .timing import Interval, Time

KEY = ("column", "name", "size", "dtype", "threads", "cache")
CSV_HEAD = (
    *KEY,
    *("contender", "median_s", "low_s", "high_s", "minimum_s", "samples", "ratio", "ratio_low", "ratio_high"),
    *("first_call_s", "memory_bytes", "flops", "bytes", "share_of_peak", "error"),
)


def file_name(device: str, versions: dict[str, str]) -> str:
    """Returns the name, without ending, of the files for a device and versions."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in device).split()).lower()
    return f"{slug}_torch{versions['torch'].split('+')[0]}_triton{versions['triton']}"


def save(rows: Sequence[Row], run: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the rows into the files of their device and versions, and returns the files.

    Rows of earlier runs stay, except those that were measured again.

    Args:
        rows: the rows of one run.
        run: what is known of it: `date`, `device`, `versions`, `commit`, the state of the machine.
        folder: where the files are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_name(run['device'], run['versions'])}.json"
    new = [{**as_dict(row), "run": run["date"]} for row in rows]
    measured = {key(row) for row in new}
    known = json.loads(path.read_text()) if path.exists() else {"runs": [], "rows": []}
    all_rows = [old for old in known["rows"] if key(old) not in measured] + new
    used = {row["run"] for row in all_rows}
    runs = [old for old in [*known["runs"], run] if old["date"] in used]
    path.write_text(json.dumps({"runs": runs, "rows": all_rows}, indent=1) + "\n")
    read = [from_dict(row) for row in all_rows]
    table, page = path.with_suffix(".csv"), path.with_suffix(".md")
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([CSV_HEAD, *(line for row in read for line in _csv_lines(row))])
    page.write_text(_page(read, runs))
    return [path, table, page]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what identifies a row of a JSON file."""
    return tuple(row[name] for name in KEY)


def load(path: Path) -> list[Row]:
    """Reads the rows of a JSON file.

    Raises:
        ValueError: the file is not one of results.
    """
    try:
        return [from_dict(row) for row in json.loads(path.read_text())["rows"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of benchmark results") from error


def as_dict(row: Row) -> dict[str, Any]:
    """Returns a row for a JSON file, with what follows from its numbers."""
    derived = {"baseline": row.baseline, "verdict": row.verdict, "share_of_peak": row.share_of_peak}
    return {**asdict(row), **derived}


def from_dict(row: dict[str, Any]) -> Row:
    """Returns a row of a JSON file."""
    fields = {name: row[name] for name in Row.__dataclass_fields__}
    fields["times"] = {name: Time(**time) for name, time in row["times"].items()}
    fields["ratios"] = {name: Interval(**ratio) for name, ratio in row["ratios"].items()}
    rates = {int(size): rate for size, rate in row["peak"]["bytes_per_second"].items()}
    fields["peak"] = Peak(row["peak"]["flops_per_second"], rates)
    return Row(**fields)


def _csv_lines(row: Row) -> list[tuple[Any, ...]]:
    """One line per contender."""
    found = []
    for name, time in row.times.items():
        ratio = row.ratios.get(name)
        found.append(
            (
                *(getattr(row, each) for each in KEY),
                *(name, time.median, time.low, time.high, time.minimum, time.samples),
                *((ratio.median, ratio.low, ratio.high) if ratio else ("", "", "")),
                *(row.first_calls[name], row.memory[name], row.flops, row.bytes),
                *((row.share_of_peak, row.error) if name == OURS else ("", "")),
            )
        )
    return found


def describe(run: dict[str, Any]) -> list[str]:
    """Returns sentences about a run: what ran where, and first of all whether the machine was busy."""
    found = [run["warning"]] if run["warning"] else []
    used = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version != "None")
    found.append(f"{run['device']}; {used}; commit {run['commit'] or 'unknown'}; {run['date']}")
    for moment in ("before", "after"):
        values = [f"{name.replace('_', ' ')} {value:.1f}" for name, value in run[moment].items()]
        found.append(f"{moment} the run: {', '.join(values)}")
    return found


def _page(rows: Sequence[Row], runs: Sequence[dict[str, Any]]) -> str:
    parts = [f"# Benchmarks: {runs[-1]['device']}"]
    parts += ["\n".join(f"- {line}" for line in describe(run)) for run in runs]
    parts.append(
        "Times are medians; in parentheses, half of the 95 % interval. A ratio is tinynet's time over that of eager "
        "PyTorch in its faster memory layout, with its 95 % interval; a win or a loss is one whose whole interval is "
        "on one side of 1. The peak is the best rate of several kernels on this device."
    )
    parts += ["## Geometric means by column", markdown(("column", *MEANS_HEAD), means(rows, lambda row: row.column))]
    for column in dict.fromkeys(row.column for row in rows):
        own = [row for row in rows if row.column == column]
        parts += [f"## {column}", markdown(HEAD, lines(own))]
        if len({row.name for row in own}) > 1:
            parts.append(markdown(("work", *MEANS_HEAD), means(own, lambda row: row.name)))
    return "\n\n".join(parts) + "\n"

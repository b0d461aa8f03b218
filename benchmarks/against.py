"""Holds measured rows against the launch report: `tinynet inspect --against results.json`.

A row of a file names its column, its work, size and dtype, which is enough to create the same case again and to record
its launches without a GPU. Whoever has one can thus see where the bound and the estimate are wrong.
"""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import tinynet
from tinynet_engines.offline.report import Report, format_time
from tinynet_engines.offline.targets import find_target

from .case import COLUMNS, DTYPES, OURS, Setting
from .results import load
from .row import Row
from .tables import aligned

HEAD = (
    *("column", "work", "size", "dtype", "cache", "launches", "at least", "estimate", "measured"),
    *("measured / at least", "measured / estimate"),
)


class Key(NamedTuple):
    """What identifies a case; its rows differ in the number of threads and the state of the caches."""

    column: str
    name: str
    size: str
    dtype: str

    @classmethod
    def of(cls, row: Row) -> Key:
        """The key of a row's case."""
        return cls(row.column, row.name, row.size, row.dtype)


def compare(path: Path, target: str) -> str:
    """The bound, the estimate and the measurement of every row of a file side by side, as a table.

    Args:
        path: a file of results that were measured on a GPU.
        target: the chip to inspect for, such as `sm_90`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no file of results, was not measured on a GPU, or has no row that can be created again.
    """
    devices, rows, chip = _gpus(path), load(path), find_target(target)
    reports: dict[Key, Report] = {}
    for column, dtype in dict.fromkeys((row.column, row.dtype) for row in rows):
        reports.update(_reports([row for row in rows if (row.column, row.dtype) == (column, dtype)], target))
    pairs = [(row, reports[Key.of(row)]) for row in rows if Key.of(row) in reports]
    if not pairs:
        raise ValueError(f"{path}: none of its {len(rows)} rows is a benchmark of this version")
    unknown = dict.fromkeys(Key.of(row) for row in rows if Key.of(row) not in reports)
    return "\n".join([
        f"measured on {devices}; bound and estimate of {chip.name}, {chip.chip}",
        aligned(HEAD, [_cells(row, report) for row, report in pairs]),
        *_means(pairs),
        *(f"unknown row, not a benchmark of this version: {', '.join(key)}" for key in unknown),
    ])  # fmt: skip


def _gpus(path: Path) -> str:
    """The names of the GPUs on which a file was measured."""
    try:
        runs: Sequence[dict[str, Any]] = json.loads(path.read_text())["runs"]
        others = [run["device"] for run in runs if run.get("device_type") != "cuda"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of benchmark results") from error
    if others:
        raise ValueError(f"{path} was measured on {others[0]}, which is no GPU: the launch report is about GPUs alone")
    return ", ".join(dict.fromkeys(run["device"] for run in runs))


def _reports(rows: Sequence[Row], target: str) -> dict[Key, Report]:
    """The launches of the cases of rows of one column and dtype, on tensors without memory if the column allows."""
    column, dtype = rows[0].column, rows[0].dtype
    if column not in COLUMNS or dtype not in DTYPES:
        return {}
    batches = tuple(sorted({row.samples for row in rows}))  # a convolution's samples are its batch
    wanted = {Key.of(row) for row in rows}
    try:
        return dict(_recorded(Setting(torch.device("meta"), DTYPES[dtype], False, batches), column, wanted, target))
    except RuntimeError:
        return dict(_recorded(Setting(torch.device("cpu"), DTYPES[dtype], False, batches), column, wanted, target))


def _recorded(setting: Setting, column: str, wanted: set[Key], target: str) -> Iterator[tuple[Key, Report]]:
    dtype = next(name for name, each in DTYPES.items() if each is setting.dtype)
    module = importlib.import_module(f".bench_{column}", __package__)
    torch.manual_seed(0)  # as the benchmarks do, for cases of random lengths
    with tinynet.inspect(target):  # launches that create a case are not its own
        for case in module.cases(setting):
            if (key := Key(column, case.name, case.size, dtype)) in wanted:
                case.prepare()
                with tinynet.inspect(target) as report:
                    case.contenders[OURS]()
                yield key, report


def _cells(row: Row, report: Report) -> tuple[str, ...]:
    total, measured = report.total, row.ours.median
    times = (total.bound_seconds, total.estimated_seconds)
    return (
        *(row.column, row.name, row.size, row.dtype, row.cache, str(total.launches)),
        *map(format_time, (*times, measured)),
        *(f"{measured / time:.2f}" if time else "-" for time in times),
    )


def _means(pairs: Sequence[tuple[Row, Report]]) -> Iterator[str]:
    """A line for each column, and one for all rows."""
    ratios: dict[str, list[float]] = {}
    for row, report in pairs:
        if report.total.estimated_seconds:
            ratios.setdefault(row.column, []).append(row.ours.median / report.total.estimated_seconds)
    every = [ratio for each in ratios.values() for ratio in each]
    for name, each in (*ratios.items(), ("all columns", every)):
        if each:
            rows = f"{len(each)} row{'s' if len(each) > 1 else ''}"
            yield f"{name}: geometric mean of measured / estimate {statistics.geometric_mean(each):.2f}, {rows}"

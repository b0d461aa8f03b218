"""Runs the benchmarks: `python -m benchmarks --only conv,linear --dtype fp32,bf16 --threads 1,2 --device cpu`.

Each case is checked before it is timed: if the results differ, the run ends with exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tinynet
from tinynet.dispatch import describe, unavailable_reason

from . import compare, machine, quick, results, tables
from .case import COLUMNS, OURS, Case, Setting, largest_difference
from .memory import peak_memory
from .peak import Peak, measure_peak
from .plots import plot
from .row import Row
from .timing import time_contenders

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare tinynet's kernels with PyTorch.",
        epilog=f"`{prog} compare OLD.json NEW.json` compares two files of results.",
    )
    add, gpu = parser.add_argument, torch.cuda.is_available()
    add("--only", type=_list(COLUMNS), default=COLUMNS, help=f"comma-separated list of {', '.join(COLUMNS)}")
    add(
        "--dtype",
        type=_list(DTYPES),
        default=None,
        help="comma-separated list of fp32, bf16, fp16 (default: fp32,bf16)",
    )
    add("--threads", type=_counts, default=(torch.get_num_threads(),), help="numbers of CPU threads, e.g. 1,2")
    add("--batch", type=_counts, default=(8,), help="batch sizes of convolutions, e.g. 1,8,32")
    add("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    add("--cache", type=_list(("warm", "cold")), default=None, help="warm (default on a CPU), cold (on a GPU), or both")
    add("--seconds", type=float, default=2.0, help="time per case, for all contenders together (default: 2)")
    add("--compile", action="store_true", help="also time torch.compile (minutes of compilation)")
    add("--match", default="", help="run only cases whose name or size contains this text")
    add("--quick", action="store_true", help="a few cases of every column, if not told otherwise in fp32")
    add("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the results")
    options = parser.parse_args(arguments)
    options.cache = options.cache or ("cold" if options.device == "cuda" else "warm",)
    options.dtype = options.dtype or (("fp32",) if options.quick else ("fp32", "bf16"))
    if options.quick:
        options.only = tuple(column for column in options.only if column in quick.COLUMNS)
        options.seconds = min(options.seconds, quick.SECONDS)
    return options


def _list(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse_names(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"got {name!r}, expected one of {', '.join(known)}")
        return names

    return parse_names


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected positive counts")
    return counts


class Peaks:
    """The peaks of a device by dtype, number of threads and cache, measured when they are first asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[str, int, str], Peak] = {}

    def __call__(self, dtype: str, threads: int, cache: str) -> Peak:
        key = dtype, threads, cache
        if key not in self._known:
            self._known[key] = self._measured(*key)
        return self._known[key]

    def measure_again(self) -> None:
        """Measures all peaks once more, and keeps the better of both: the first moment may not have been quiet."""
        self._known = {key: peak.or_better(self._measured(*key)) for key, peak in self._known.items()}

    def _measured(self, dtype: str, threads: int, cache: str) -> Peak:
        torch.set_num_threads(threads)
        return measure_peak(self._device, DTYPES[dtype], cache == "cold")


def rows(options: argparse.Namespace, device: torch.device, peaks: Peaks) -> Iterator[Row]:
    """Measures all requested cases."""
    for column in options.only:
        module = importlib.import_module(f".bench_{column}", __package__)
        for dtype in options.dtype:
            setting = Setting(device, DTYPES[dtype], options.compile, options.batch)
            torch.manual_seed(0)
            cases = (case for case in module.cases(setting) if options.match in f"{case.name} {case.size}")
            if options.quick:
                cases = quick.selected(cases)
            for case in tqdm(cases, desc=f"{module.TITLE}, {dtype}", leave=False):  # each made when its turn comes
                first_calls, error = check(case)
                memory = {name: peak_memory(call, device) for name, call in case.contenders.items()}
                for threads in options.threads:
                    for cache in options.cache:
                        peak = peaks(dtype, threads, cache)
                        torch.set_num_threads(threads)
                        compared = time_contenders(case.contenders, device, options.seconds, cache == "cold")
                        yield Row(
                            column=column,
                            name=case.name,
                            size=case.size,
                            samples=case.samples,
                            family=case.family,
                            dtype=dtype,
                            threads=threads,
                            cache=cache,
                            flops=case.flops,
                            least_flops=case.flops if case.least_flops is None else case.least_flops,
                            bytes=case.bytes,
                            error=error,
                            times=compared.times,
                            ratios=compared.ratios,
                            first_calls=first_calls,
                            memory=memory,
                            peak=peak,
                        )


def check(case: Case) -> tuple[dict[str, float], float | None]:
    """Calls each contender once and returns the seconds, and the largest difference of tinynet's result to another.

    Raises:
        SystemExit: the difference is larger than the case allows.
    """
    case.prepare()
    seconds, found = {}, {}
    for name, call in case.contenders.items():
        start = time.perf_counter()
        found[name] = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - start
    if case.error is None:
        return seconds, None
    differences = {name: largest_difference(found[OURS], result) for name, result in found.items() if name != OURS}
    for name, difference in differences.items():
        if not difference <= case.error:
            sys.exit(f"{case.name} {case.size}: differs from {name} by {difference:.2e}, allowed {case.error:.2e}")
    return seconds, max(differences.values(), default=None)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> int:
    """Runs the command line and returns the exit code: 1 if a row is faster than the peak, which must be wrong."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["compare"]:
        return compare.main(arguments[1:], prog)
    options = parse(arguments, prog)
    device = torch.device(options.device)
    reason = unavailable_reason(device.type)
    if reason is not None:
        sys.exit(f"no kernels to time on {device}: {reason}")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # PyTorch at its best
    measured, run = measure(options, device)
    if not measured:
        sys.exit("no case matched")
    files = results.save(measured, run, options.out)
    for column in dict.fromkeys(row.column for row in measured):
        files += plot([row for row in measured if row.column == column], options.out)
    print("\n".join(results.describe(run)))
    print(tables.aligned(tables.HEAD, tables.lines(measured)))
    print(tables.aligned(("work", *tables.MEANS_HEAD), tables.means(measured, lambda row: row.name)))
    print(tables.aligned(("column", *tables.MEANS_HEAD), tables.means(measured, lambda row: row.column)))
    print(f"wrote {', '.join(map(str, files))}")
    impossible = [row for row in measured if row.share_of_peak > 1]
    for row in impossible:
        print(
            f"{row.name}, {row.size}, {row.dtype}, {row.threads} threads: {row.share_of_peak:.0%} of the peak, "
            "so that its count of operations or bytes, or the peak, is wrong",
            file=sys.stderr,
        )
    return 1 if impossible else 0


def measure(options: argparse.Namespace, device: torch.device) -> tuple[list[Row], dict[str, Any]]:
    """Measures all rows, and returns them with what is known of the run."""
    print(describe(device), flush=True)
    peaks = Peaks(device)
    measured: list[Row] = []
    before, start = machine.State.now(device), time.monotonic()
    if before.load > machine.BUSY * (os.cpu_count() or 1):
        print(f"load average {before.load:.1f} on {os.cpu_count()} processors: intervals may be wide", flush=True)
    with tinynet.engine("kernels"):
        try:
            for row in rows(options, device, peaks):
                measured.append(row)
        except KeyboardInterrupt:
            print("interrupted; the results so far are saved", flush=True)
        after, seconds = machine.State.now(device), time.monotonic() - start
        if measured:
            peaks.measure_again()
    measured = [replace(row, peak=peaks(row.dtype, row.threads, row.cache)) for row in measured]
    others = machine.used_by_others(before, after, seconds)
    run = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": machine.device_name(device),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "used_by_others": others,
        "warning": None
        if others is None or others < machine.BUSY
        else f"THE MACHINE WAS BUSY: other programs used {others:.0%} of its processors during the run",
        "before": before.as_dict(),
        "after": after.as_dict(),
    }
    return measured, run

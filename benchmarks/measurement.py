"""Measures cases: checks their results, and times them beside the device's peaks."""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch
from tqdm import tqdm

import tinynet
from tinynet.dispatch import describe

from . import machine, quick
from .case import DTYPES, OURS, Case, Setting, largest_difference
from .memory import peak_memory
from .peak import Peak, measure_peak
from .row import Row
from .timing import time_contenders


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


class WrongResult(Exception):
    """Two contenders compute different results."""


def rows(options: argparse.Namespace, device: torch.device, peaks: Peaks, failures: list[str]) -> Iterator[Row]:
    """Measures all requested cases. One that fails adds a sentence to `failures` and ends nothing."""
    for column in options.only:
        module = importlib.import_module(f".bench_{column}", __package__)
        for dtype in options.dtype:
            setting = Setting(device, DTYPES[dtype], options.compile, options.batch)
            torch.manual_seed(0)
            cases = (case for case in module.cases(setting) if options.match in f"{case.name} {case.size}")
            if options.quick:
                cases = quick.selected(cases)
            title = f"{module.TITLE}, {dtype}"
            try:
                for case in tqdm(cases, desc=title, leave=False):  # each made when its turn comes
                    title = f"{case.name}, {case.size}, {dtype}"
                    try:
                        yield from _rows_of(case, column, dtype, options, device, peaks)
                    except Exception as error:  # the wrong result, or whatever a driver or compiler raises
                        failures.append(f"{title}: {type(error).__name__}: {error}")
            except Exception as error:  # the next case cannot be made
                failures.append(f"after {title}: {type(error).__name__}: {error}")


def _rows_of(
    case: Case, column: str, dtype: str, options: argparse.Namespace, device: torch.device, peaks: Peaks
) -> Iterator[Row]:
    """Measures a case with each number of threads and state of the caches."""
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
        WrongResult: the difference is larger than the case allows.
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
            raise WrongResult(f"differs from {name} by {difference:.2e}, allowed {case.error:.2e}")
    return seconds, max(differences.values(), default=None)


def measure(options: argparse.Namespace, device: torch.device) -> tuple[list[Row], list[str], dict[str, Any]]:
    """Measures all rows; returns them, sentences about the cases that failed, and what is known of the run."""
    print(describe(device), flush=True)
    peaks = Peaks(device)
    measured: list[Row] = []
    failures: list[str] = []
    before, start = machine.State.now(device), time.monotonic()
    if before.load > machine.BUSY * (os.cpu_count() or 1):
        print(f"load average {before.load:.1f} on {os.cpu_count()} processors: intervals may be wide", flush=True)
    with tinynet.engine("kernels"):
        try:
            for row in rows(options, device, peaks, failures):
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
        "device_type": device.type,
        "versions": machine.versions(),
        "commit": machine.commit(),
        "used_by_others": others,
        "warning": None
        if others is None or others < machine.BUSY
        else f"THE MACHINE WAS BUSY: other programs used {others:.0%} of its processors during the run",
        "before": before.as_dict(),
        "after": after.as_dict(),
    }
    return measured, failures, run

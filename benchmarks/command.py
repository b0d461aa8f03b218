"""Runs the benchmarks: `python -m benchmarks --only conv,linear --dtype fp32,bf16 --threads 1,2 --device cpu`.

Each case is checked before it is timed. If results differ, or a case cannot run, the others are measured all the same,
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from tinynet.dispatch import unavailable_reason

from . import compare, quick, results, tables
from .case import COLUMNS, DTYPES
from .measurement import measure
from .plots import plot


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


def main(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> int:
    """Runs the command line and returns the exit code: 1 if a case failed, or is faster than the peak allows."""
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
    measured, failures, run = measure(options, device)
    if not measured:
        sys.exit("\n".join(failures) or "no case matched")
    files = results.save(measured, run, options.out)
    for column in dict.fromkeys(row.column for row in measured):
        files += plot([row for row in measured if row.column == column], options.out)
    print("\n".join(results.describe(run)))
    print(tables.aligned(tables.HEAD, tables.lines(measured)))
    print(tables.aligned(("work", *tables.MEANS_HEAD), tables.means(measured, lambda row: row.name)))
    print(tables.aligned(("column", *tables.MEANS_HEAD), tables.means(measured, lambda row: row.column)))
    print(f"wrote {', '.join(map(str, files))}")
    failures += [
        f"{row.name}, {row.size}, {row.dtype}, {row.threads} threads: {row.share_of_peak:.0%} of the peak, "
        "so that its count of operations or bytes, or the peak, is wrong"
        for row in measured
        if row.share_of_peak > 1
    ]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0

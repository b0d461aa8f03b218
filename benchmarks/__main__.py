"""Runs the benchmarks: `python -m benchmarks --only conv,linear --dtype fp32,bf16 --threads 1,2 --device cpu`.

Each case is checked before it is timed: if the results differ, the run ends with exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

import tinynet
from benchmarks import results
from benchmarks.case import OURS, Case, Setting, largest_difference
from benchmarks.timing import Peak, measure_peak, time_contenders
from tinynet import streams
from tinynet.dispatch import describe, unavailable_reason

COLUMNS = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Compares tinynet's kernels with PyTorch."
    )
    parser.add_argument(
        "--only", type=_choices(COLUMNS), default=COLUMNS, help=f"comma-separated list of {', '.join(COLUMNS)}"
    )
    parser.add_argument(
        "--dtype", type=_choices(DTYPES), default=("fp32", "bf16"), help="comma-separated list of fp32, bf16, fp16"
    )
    parser.add_argument(
        "--threads", type=_positive_list, default=None, help="comma-separated numbers of CPU threads, e.g. 1,2"
    )
    parser.add_argument("--batch", type=_positive_list, default=(8,), help="batch sizes of convolutions, e.g. 1,8,32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per case, for all contenders together")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile (minutes of compilation)")
    parser.add_argument("--match", default="", help="run only cases whose name or size contains this text")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the results")
    return parser.parse_args(arguments)


def _choices(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse_names(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"got {name!r}, expected one of {', '.join(known)}")
        return names

    return parse_names


def _positive_list(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected positive counts")
    return counts


def rows(options: argparse.Namespace, device: torch.device) -> Iterator[results.Row]:
    """Measures all requested cases."""
    peaks: dict[tuple[str, int], Peak] = {}
    threads = options.threads or (torch.get_num_threads(),)
    for column in options.only:
        module = importlib.import_module(f"benchmarks.bench_{column}")
        for dtype in options.dtype:
            setting = Setting(device, DTYPES[dtype], options.compile, options.batch)
            torch.manual_seed(0)
            cases = (case for case in module.cases(setting) if options.match in f"{case.name} {case.size}")
            for case in tqdm(cases, desc=f"{module.TITLE}, {dtype}", leave=False):  # each made when its turn comes
                error = check(case)
                for count in threads:
                    torch.set_num_threads(count)
                    if (dtype, count) not in peaks:
                        peaks[dtype, count] = measure_peak(device, DTYPES[dtype])
                    times = time_contenders(case.contenders, device, options.seconds)
                    yield results.Row(
                        column,
                        case.name,
                        case.size,
                        case.samples,
                        dtype,
                        count,
                        case.flops,
                        case.bytes,
                        error,
                        times,
                        peaks[dtype, count],
                    )


def check(case: Case) -> float | None:
    """Returns the largest difference between tinynet's result and the others.

    Raises:
        SystemExit: the difference is larger than the case allows.
    """
    if case.error is None:
        return None
    ours = case.contenders[OURS]()
    differences = {name: largest_difference(ours, call()) for name, call in case.contenders.items() if name != OURS}
    for name, difference in differences.items():
        if not difference <= case.error:
            sys.exit(f"{case.name} {case.size}: differs from {name} by {difference:.2e}, allowed {case.error:.2e}")
    return max(differences.values())


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    reason = unavailable_reason(device.type)
    if reason is not None:
        sys.exit(f"no kernels to time on {device}: {reason}")
    print(f"{results.device_name(device)}; {results.versions()}")
    print(describe(device))
    measured: list[results.Row] = []
    with tinynet.engine("kernels"):
        try:
            for row in rows(options, device):
                measured.append(row)
        except KeyboardInterrupt:
            print("interrupted; the results so far are saved")
    if not measured:
        sys.exit("no case matched")
    print(results.table(measured))
    print(results.means(measured))
    print(f"wrote {results.save(measured, device, options.out)}")
    for column in dict.fromkeys(row.column for row in measured):
        path = results.plot([row for row in measured if row.column == column], options.out)
        if path is not None:
            print(f"wrote {path}")


if __name__ == "__main__":
    streams.protect()
    main()

"""The compile matrix: every variant of every kernel that the tile rules produce, compiled and checked for every target.

    make compile-matrix                                          # all of it
    make compile-matrix ARGS='--target sm_90 --column conv'
    make compile-matrix ARGS='--record'                          # write the figures that later runs are compared with

A variant passes if it compiles and

- spills no registers (except for `SPILLS_ALLOWED`, with reasons) and stays within shared memory and grid limits;
- uses no compare-and-swap loop for an atomic;
- if its product has 16-bit operands, rows aligned to 16 bytes and at least 64 rows: has no 16-bit load in its main
  loop, copies asynchronously if the chip can, and uses the matrix instruction that it should use on the chip;
- needs no more main-loop instructions per matrix instruction than recorded in `costs.json`.

Triton's disk cache, keyed by the source, makes a second run quick. Compilation runs in worker processes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import triton

from compile_matrix.cases import COLUMNS, Case, cases
from compile_matrix.workers import WorkerError, run_in_workers
from tinynet import streams
from tinynet_engines.offline import inspect
from tinynet_engines.offline.launch import Launch
from tinynet_engines.offline.targets import TARGETS, find_target

COSTS_FILE = Path(__file__).with_name("costs.json")
CASES_PER_TASK = 16  # their binaries are read together
TOLERANCE = 1.02  # relative to a recorded figure, for the assembler's noise


class AllowedSpill(NamedTuple):
    """A spill that is accepted: the maximum of bytes per thread and of accesses inside loops, and the reason."""

    bytes: int
    in_loops: int
    reason: str


# NVIDIA's assembler spills a value or two if that lets one more program reside on a multiprocessor. With a limit of 128
# or 255 registers it spills nothing here, and uses up to twice as many.
PARKED = AllowedSpill(16, 0, "values not needed in the main loop: one store and one load per program")
RELOADED = AllowedSpill(24, 3, "constants, reloaded in each iteration of a loop of more than a hundred instructions")

# (kernel, target) -> the accepted spill; "*" stands for every target.
SPILLS_ALLOWED: dict[tuple[str, str], AllowedSpill] = {
    ("mean_pool_backward_kernel", "*"): PARKED,
    ("convolution_input_gradient_kernel", "*"): PARKED,
    ("cross_entropy_forward_kernel", "*"): PARKED,
    ("activation_backward_kernel", "sm_100"): RELOADED,
    ("convolution_weight_gradient_boxes_kernel", "sm_100"): RELOADED._replace(in_loops=4),
    ("layer_norm_backward_kernel", "sm_100"): RELOADED,
    ("linear_weight_gradient_kernel", "sm_100"): RELOADED,
    ("max_pool_backward_kernel", "sm_100"): RELOADED,
    ("activation_backward_kernel", "sm_120"): RELOADED,
    ("convolution_forward_kernel", "sm_120"): PARKED,
    ("depthwise_input_gradient_kernel", "sm_120"): RELOADED,
    ("mean_pool_forward_kernel", "sm_120"): PARKED._replace(bytes=32),
    ("mean_pool_forward_kernel", "sm_90"): PARKED,
    ("linear_forward_kernel", "sm_120"): PARKED,
    ("batched_product_kernel", "sm_120"): PARKED,
    ("linear_input_gradient_kernel", "sm_120"): RELOADED,
    ("linear_weight_gradient_kernel", "sm_120"): RELOADED,
}

Costs = dict[str, dict[str, float]]


class Task(NamedTuple):
    """Consecutive cases of one column for one target, by position."""

    target: str
    column: str
    start: int
    stop: int


class Outcome(NamedTuple):
    """The result of one case.

    Attributes:
        name: name of the case.
        launches: number of kernel launches.
        failures: the faults, one sentence each.
        costs: main-loop instructions per matrix instruction, by kernel, operand type and tile.
    """

    name: str
    launches: int
    failures: list[str]
    costs: dict[str, float]


def run_task(task: Task) -> list[Outcome]:
    """Compile the cases of a task, then check them all, in this process: reading binaries together is fastest."""
    chosen = cases(find_target(task.target))[task.column][task.start : task.stop]
    compiled = [compile_case(task.target, case) for case in chosen]
    return [judge(case, result) for case, result in zip(chosen, compiled, strict=True)]


def run_case(target: str, case: Case) -> Outcome:
    """Compile and check one case."""
    return judge(case, compile_case(target, case))


def compile_case(target: str, case: Case) -> Sequence[Launch] | Exception:
    """The launches of a case, or the compiler's exception."""
    try:
        with inspect(target) as report:
            case.run()
    except Exception as error:  # whatever the compiler raises is the case's result
        return error
    return report.launches


def judge(case: Case, compiled: Sequence[Launch] | Exception) -> Outcome:
    """Check the launches of a case."""
    if isinstance(compiled, Exception):
        message = str(compiled).strip().splitlines() or [""]
        return Outcome(case.name, 0, [f"{type(compiled).__name__}: {message[-1]}"], {})
    failures = [failure for launch in compiled for failure in check(launch, case.aligned)]
    if not compiled:
        failures.append("launched no kernel")
    costs: dict[str, float] = {}
    for launch in compiled:
        figure = launch.kernel.code.instructions_per_matrix_instruction
        if figure is not None and case.aligned:
            keep_worst(costs, {cost_key(launch): figure})
    return Outcome(case.name, len(compiled), failures, costs)


def cost_key(launch: Launch) -> str:
    """Kernel, operand type and tile: variants that differ only in flags share one figure, the worst.

    Windows that are pooled, that have a depth, that have more taps than a bitmask holds, or whose reduction is split
    get keys of their own: their main loops compute more addresses or conditions.
    """
    numbers = dict(launch.numbers())
    tile = " ".join(f"{name}={numbers[name]}" for name in sorted(numbers) if name.startswith(("block", "box")))
    walk = numbers.get("walk", ())
    kinds = {name: numbers.get(name) for name in ("pool", "volume", "split")} | {"many taps": math.prod(walk[:3]) > 32}
    return " ".join([launch.name, launch.operand_type, tile, *(kind for kind, is_kind in kinds.items() if is_kind)])


def check(launch: Launch, aligned: bool) -> list[str]:
    """The faults of a launch's code, one sentence each."""
    code, target = launch.kernel.code, launch.target
    wrong = [finding.message for finding in launch.findings if finding.fatal]
    if code.spill_bytes and not is_spill_allowed(launch):
        accesses = f"{code.loop_spills} accesses in loops, {code.registers} registers in use"
        wrong.append(f"spills {code.spill_bytes} bytes per thread, {accesses}")
    if code.compare_and_swap:
        wrong.append("uses a compare-and-swap loop for an atomic")
    deserves_matrix = launch.operand_type in ("bf16", "fp16") and aligned and (launch.dot_rows or 0) >= 64
    if deserves_matrix:
        narrow = sum(count for bits, count in code.loop_load_bits.items() if bits <= 16)
        if narrow:
            wrong.append(f"loads 16 bits or fewer {narrow} times in its main loop")
        if target.asynchronous_copies and code.loop_instructions and not code.asynchronous_copies:
            wrong.append("copies nothing asynchronously")
        if not code.matrix_instruction.startswith(target.matrix_instructions):
            wrong.append(
                f"uses {code.matrix_instruction or 'no matrix instruction'}, not {target.matrix_instructions[0]}"
            )
    return [f"{launch.name} ({launch.tile}): {reason}" for reason in wrong]


def is_spill_allowed(launch: Launch) -> bool:
    """Whether a launch's spill is listed, and no larger than listed."""
    code = launch.kernel.code
    listed = [SPILLS_ALLOWED.get((launch.name, name)) for name in (launch.target.name, "*")]
    return any(spill and code.spill_bytes <= spill.bytes and code.loop_spills <= spill.in_loops for spill in listed)


def tasks(targets: Iterable[str], columns: Iterable[str]) -> list[Task]:
    """The work for these targets and columns, split into tasks."""
    result = []
    for target in targets:
        by_column = cases(find_target(target))
        for column in columns:
            count = len(by_column[column])
            starts = range(0, count, CASES_PER_TASK)
            result += [Task(target, column, start, min(start + CASES_PER_TASK, count)) for start in starts]
    return result


def load_costs(path: Path = COSTS_FILE) -> Costs:
    """The recorded figures by target; empty if they were recorded with another Triton version.

    Raises:
        FileNotFoundError: nothing has been recorded.
    """
    recorded = json.loads(path.read_text())
    return recorded["costs"] if recorded["triton"] == triton.__version__ else {}


def save_costs(costs: Mapping[str, Mapping[str, float]], path: Path = COSTS_FILE) -> None:
    """Write the figures sorted, so that each change is one line in a review."""
    ordered = {
        target: {key: round(figures[key], 2) for key in sorted(figures)} for target, figures in sorted(costs.items())
    }
    about = "main-loop instructions for each matrix instruction; see tests/compile_matrix/matrix.py"
    path.write_text(json.dumps({"about": about, "triton": triton.__version__, "costs": ordered}, indent=1) + "\n")


def worse_than_recorded(target: str, costs: Mapping[str, float], recorded: Costs) -> list[str]:
    """Figures above the recorded ones, one sentence each; a variant without a recorded figure is no regression."""
    known = recorded.get(target, {})
    return [
        f"{key}: {figure:.1f} main-loop instructions per matrix instruction, recorded {known[key]}"
        for key, figure in costs.items()
        if key in known and figure > known[key] * TOLERANCE
    ]


def run(work: Sequence[Task], workers: int) -> Iterator[tuple[Task, list[Outcome]]]:
    """Run the tasks in worker processes; the cases of a task whose worker died are run again one by one."""
    alone: list[Task] = []
    for task, outcomes in run_in_workers(run_task, work, workers):
        if isinstance(outcomes, WorkerError) and task.stop - task.start > 1:
            alone += [task._replace(start=at, stop=at + 1) for at in range(task.start, task.stop)]
        else:
            yield task, _outcomes(task, outcomes)
    for task, outcomes in run_in_workers(run_task, alone, workers):
        yield task, _outcomes(task, outcomes)


def _outcomes(task: Task, result: list[Outcome] | WorkerError) -> list[Outcome]:
    if not isinstance(result, WorkerError):
        return result
    name = cases(find_target(task.target))[task.column][task.start].name
    return [Outcome(name, 0, [str(result)], {})]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the matrix; returns 0 if every variant passes."""
    options = _options(arguments)
    recorded = {} if options.record or not COSTS_FILE.exists() else load_costs()
    work = tasks(options.target, options.column)
    began, done, launches, failed = time.monotonic(), 0, 0, 0
    measured: Costs = {target: {} for target in options.target}
    for task, outcomes in run(work, options.workers):
        for outcome in outcomes:
            wrong = [*outcome.failures, *worse_than_recorded(task.target, outcome.costs, recorded)]
            for sentence in wrong:
                print(f"FAILED {task.target} {task.column} {outcome.name}: {sentence}", flush=True)
            launches, failed = launches + outcome.launches, failed + bool(wrong)
            keep_worst(measured[task.target], outcome.costs)
        done += task.stop - task.start
        if sys.stderr.isatty():
            print(f"\r{done}/{sum(task.stop - task.start for task in work)} cases", end="\r", file=sys.stderr)
    print(f"{done} cases, {launches} launches, {failed} failed, {time.monotonic() - began:.0f} s")
    if options.record:
        previous = load_costs() if COSTS_FILE.exists() else {}
        if set(options.column) < set(COLUMNS):  # preserve the figures of other columns; columns share kernels
            for target, figures in measured.items():
                keep_worst(figures, previous.get(target, {}))
        save_costs({**previous, **measured})
    return 1 if failed else 0


def keep_worst(figures: dict[str, float], more: Mapping[str, float]) -> None:
    """Add figures; of two for one key, the larger remains."""
    for key, figure in more.items():
        figures[key] = max(figure, figures.get(key, 0.0))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compile_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", default=",".join(TARGETS), help="separated by commas (default: all)")
    parser.add_argument("--column", default=",".join(COLUMNS), help="separated by commas (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    about_record = "replace the recorded figures of these targets; with --column only raise them"
    parser.add_argument("--record", action="store_true", help=about_record)
    options = parser.parse_args(arguments)
    for name, known in (("target", TARGETS), ("column", COLUMNS)):
        given = getattr(options, name).split(",")
        setattr(options, name, given)
        if unknown := [each for each in given if each not in known]:
            parser.error(f"--{name}: got {', '.join(unknown)}; expected some of {', '.join(known)}")
    return options


if __name__ == "__main__":
    streams.protect()
    sys.exit(main())

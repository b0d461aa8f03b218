"""`tinynet inspect`: the kernel launches of a program on GPUs that the machine need not have."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinynet.arguments import positive_int


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="report the kernel launches of a program, without a GPU",
        description="Compile a training step or a script for GPUs that the machine need not have, and report every "
        "kernel launch. Times are lower bounds computed from published peaks, and estimates, not measurements.",
    )
    parser.add_argument("script", nargs="?", help="a Python script to run; its arguments follow --")
    parser.add_argument(
        "--model", help="inspect one training step of this model of tinynet.models, such as cnn or forecaster"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RESULTS.json",
        help="compare bounds and estimates with a file of benchmark results that were measured on a GPU",
    )
    parser.add_argument("--batch-size", type=positive_int, default=256)
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--target", default="sm_90", help="one or more, separated by commas (default: sm_90)")
    parser.add_argument("--json", type=Path, help="write the whole report to this JSON file")
    parser.add_argument("--html", type=Path, help="write the report to this HTML page")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Returns exit status 0 if all targets accept every launch, or 1 if there is an error."""
    from tinynet_engines.offline import inspect
    from tinynet_engines.offline.targets import TARGETS

    targets = [name.strip() for name in options.target.split(",")]
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        parser.error(f"--target: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    if sum(each is not None for each in (options.script, options.model, options.against)) != 1:
        parser.error("give one of a script, --model and --against")
    if options.against is not None:
        return _compare(parser, options, targets)
    if options.model is None:
        title, program = options.script, _script(parser, options)
    else:
        title = f"{options.model}: a training step, batch {options.batch_size}, {options.dtype}"
        program = _training_step(parser, options)
    reports = []
    for name in targets:
        with inspect(name) as report:
            program()
        reports.append(report)
    failure = _write(reports, title, options)
    for report in reports:
        print(report.table(), end="\n\n")
    if failure:
        parser.error(failure)
    return 1 if any(report.errors for report in reports) else 0


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace, targets: Sequence[str]) -> int:
    """Prints a file's measurements beside bounds and estimates."""
    from tinynet.cli.bench import benchmarks_module

    if len(targets) > 1 or options.json or options.html:
        parser.error("--against takes one --target, and neither --json nor --html")
    try:
        print(benchmarks_module("against").compare(options.against, targets[0]))
    except OSError as error:
        parser.error(f"{error.filename} cannot be read: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    return 0


def _write(reports: Sequence[Any], title: str, options: argparse.Namespace) -> str | None:
    """Writes the files that the options name; returns why one cannot be written, or None."""
    from tinynet_engines.offline.html import write_html
    from tinynet_engines.offline.report import write_json

    try:
        if options.json:
            write_json(reports, options.json)
        if options.html:
            write_html(reports, options.html, title)
    except OSError as error:
        return f"{error.filename or 'the report'} cannot be written: {error.strerror}"
    return None


def _script(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Callable[[], None]:
    """Returns a function that runs the script as a main program."""
    path = Path(options.script)
    if not path.is_file():
        parser.error(f"no script {options.script}")

    def run() -> None:
        saved = sys.argv, list(sys.path)
        sys.argv = [str(path), *options.script_arguments]
        sys.path.insert(0, str(path.parent))
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as finished:
            if finished.code not in (None, 0):
                raise
        finally:
            sys.argv, sys.path[:] = saved

    return run


def _training_step(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Callable[[], None]:
    """Returns a function that runs one training step of a model on tensors without memory."""
    import torch

    from tinynet.models.steps import STEPS, training_step

    if options.model not in STEPS:
        parser.error(f"--model: expected one of {', '.join(STEPS)}, got {options.model!r}")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.dtype]
    return partial(training_step, options.model, options.batch_size, dtype)

"""Runs the training of a program: training, files and printed lines."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from tinynet.dispatch import describe
from tinynet.train.options import RunParser
from tinynet.train.pictures import can_draw
from tinynet.train.trainer import CHECKPOINT_NAME, METRICS_NAME, Trainer


def run_training(
    parser: RunParser,
    options: argparse.Namespace,
    trainer: Trainer,
    total_steps: int,
    *,
    model: str,
    data: object,
    folder_name: str,
    report_names: Sequence[str],
    report: Callable[[Path], list[str]],
    summary: Callable[[], str],
) -> int:
    """Trains (from a checkpoint with --resume), writes the run's files into its folder, and prints the result.

    If the resumed run has already finished, only writes its files again if one of them is missing.

    Args:
        parser: the parser of `options`.
        options: the options of the run.
        trainer: a new trainer; its folder is set here.
        total_steps: total number of optimizer steps.
        model: the model's name, to print.
        data: the data set; `str(data)` is printed.
        folder_name: name of the folder in runs/, used if --out is not given.
        report_names: the files that `report` writes; .png files only if matplotlib is installed.
        report: writes files into the folder and returns their names.
        summary: returns a short text that says how good the model is.

    Returns:
        The program's exit code: 0, or 130 if Ctrl-C ended the training, or 143 if SIGTERM did.
    """
    if options.graph and options.dtype == "fp16":
        parser.error("--graph: fp16's gradient scaling reads values of each step on the host; use fp32 or bf16")
    trainer.graph = options.graph
    if options.resume is not None:
        trainer.resume(options.resume)
    trainer.folder = folder = parser.make_folder(options.out, folder_name, options.resume)
    is_done = trainer.progress.step >= total_steps
    if is_done and not _missing(folder, (METRICS_NAME, CHECKPOINT_NAME, *report_names)):
        parser.error(f"{options.resume} has finished its {trainer.progress.step} steps: train longer with --epochs")

    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{model} with {weights:,} weights on {data}")
    print(describe(options.device), flush=True)
    trainer.fit(total_steps)
    files = [METRICS_NAME, CHECKPOINT_NAME, *report(folder)]

    steps = trainer.progress.step
    print(f"{summary()} after {steps:,} steps, {trainer.progress.seconds:.1f} s of training")
    print(f"{folder}: {', '.join(files)}")
    if trainer.stopped_by is not None:
        print(f"stopped at step {steps:,} of {total_steps:,}: --resume {folder} continues from there")
        return 128 + trainer.stopped_by
    return 0


def _missing(folder: Path, names: Sequence[str]) -> bool:
    """Whether one of the files is missing, ignoring pictures without matplotlib."""
    return any(not (folder / name).exists() and (can_draw() or not name.endswith(".png")) for name in names)

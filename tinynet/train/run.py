"""A run of an example from its trainer to its last line, the same for every one."""

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
    """Trains into a folder, on from a checkpoint where --resume names one, and says what came of it.

    Of a run that has done all its steps, it writes the files again if one of them is missing.

    Args:
        parser: what made `options`.
        options: the flags of the run.
        trainer: at its beginning; it gets its folder here.
        total_steps: optimizer steps in all.
        model: what is trained, in words.
        data: what is trained on, in words by `str`.
        folder_name: what the folder in runs/ is called where --out names no other.
        report_names: the files that `report` writes; those called .png only where matplotlib is installed.
        report: writes into the folder what is worth looking at, and returns the files' names.
        summary: says in a few words how good the model is.

    Returns:
        The program's exit code: 0, or 130 where Ctrl-C ended the training, or 143 where SIGTERM did.
    """
    if options.resume is not None:
        trainer.resume(options.resume)
    trainer.folder = folder = parser.make_folder(options.out, folder_name, options.resume)
    is_done = trainer.progress.step >= total_steps
    if is_done and not _missing(folder, (METRICS_NAME, CHECKPOINT_NAME, *report_names)):
        parser.error(f"{options.resume} has done its {trainer.progress.step} steps: give more with --epochs")

    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{model} with {weights:,} weights on {data}")
    print(describe(options.device), flush=True)
    trainer.fit(total_steps)
    files = [METRICS_NAME, CHECKPOINT_NAME, *report(folder)]

    steps = trainer.progress.step
    print(f"{summary()} after {steps:,} steps, {trainer.progress.seconds:.1f} s of training")
    print(f"{folder}: {', '.join(files)}")
    if trainer.stopped_by is not None:
        print(f"stopped at step {steps:,} of {total_steps:,}: --resume {folder} goes on from there")
        return 128 + trainer.stopped_by
    return 0


def _missing(folder: Path, names: Sequence[str]) -> bool:
    """Whether a file that can be written is not there."""
    return any(not (folder / name).exists() and (can_draw() or not name.endswith(".png")) for name in names)

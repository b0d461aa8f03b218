"""A run of an example from its trainer to its last line, the same for every one."""

import argparse
from collections.abc import Callable
from pathlib import Path

from tinynet.engines.dispatch import describe
from tinynet.train.options import RunParser
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
    report: Callable[[Path], list[str]],
    summary: Callable[[], str],
) -> int:
    """Trains into a folder, on from a checkpoint where --resume names one, and says what came of it.

    Args:
        parser: what made `options`.
        options: the flags of the run.
        trainer: at its beginning; it gets its folder here.
        total_steps: optimizer steps in all.
        model: what is trained, in words.
        data: what is trained on, in words by `str`.
        folder_name: what the folder in runs/ is called where --out names no other.
        report: writes into the folder what is worth looking at, and returns the files' names.
        summary: says in a few words how good the model is.

    Returns:
        The program's exit code: 0, or 130 where Ctrl-C ended the training.
    """
    if options.resume is not None:
        trainer.resume(options.resume)
        if trainer.progress.step >= total_steps:
            parser.error(f"{options.resume} has done its {trainer.progress.step} steps: give more with --epochs")
    trainer.folder = folder = parser.make_folder(options.out, folder_name, options.resume)

    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"{model} with {weights:,} weights on {data}")
    print(describe(options.device), flush=True)
    is_complete = trainer.fit(total_steps)
    files = [METRICS_NAME, CHECKPOINT_NAME, *report(folder)]

    steps = trainer.progress.step
    print(f"{summary()} after {steps:,} steps, {trainer.progress.seconds:.1f} s of training")
    print(f"{folder}: {', '.join(files)}")
    if not is_complete:
        print(f"stopped at step {steps:,} of {total_steps:,}: --resume {folder} goes on from there")
        return 130
    return 0

"""The progress of a run, and its validation when it is loaded from a checkpoint."""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """The progress of a run. A checkpoint restores it exactly.

    Attributes:
        epoch: number of finished epochs.
        batch: number of finished batches of the current epoch.
        step: number of finished optimizer steps.
        seconds: time spent training.
        steps: for each step, the number of samples, and the sums of the loss and each measure over them.
        rows: for each epoch, the measures on the training and test sets: the rows of metrics.csv.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    steps: list[list[float]] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)


def row_names(measures: Sequence[str]) -> list[str]:
    """Returns the columns of metrics.csv for these measures, which include the loss; lr is that of the next step."""
    train, test = [f"train_{name}" for name in measures], [f"test_{name}" for name in measures]
    return ["epoch", "step", "lr", *train, *test, "seconds"]


def read_progress(saved: Any, *, batches: int, samples: int, measures: Sequence[str]) -> Progress:
    """Validates and returns the progress saved in a checkpoint.

    Args:
        saved: the fields of a `Progress` by name.
        batches: number of training batches per epoch.
        samples: number of training samples per epoch.
        measures: names of the loss and the measures.

    Raises:
        ValueError: a value that is impossible for a run on these batches; the message names it.
    """
    names = {each.name for each in fields(Progress)}
    if not isinstance(saved, dict) or saved.keys() != names:
        raise ValueError(f"progress: got {reprlib.repr(saved)}, expected a dict of {', '.join(sorted(names))}")
    progress = Progress(**saved)
    for name in ("epoch", "batch", "step"):
        value = getattr(progress, name)
        _expect(type(value) is int and value >= 0, name, value, "an integer of at least 0")
    done = progress.epoch * batches + progress.batch
    _expect(progress.batch < batches, "batch", progress.batch, f"less than the {batches} batches of an epoch")
    _expect(
        progress.step == done,
        "step",
        progress.step,
        f"{done} after {progress.epoch} epochs of {batches} batches and {progress.batch} more batches",
    )
    seconds = progress.seconds
    _expect(_is_number(seconds) and 0 <= seconds < math.inf, "seconds", seconds, "a finite number of at least 0")
    _expect_list("steps", progress.steps, progress.step)
    for index, step in enumerate(progress.steps):
        _check_step(f"steps[{index}]", step, samples, 1 + len(measures))
    _expect_list("rows", progress.rows, progress.epoch)
    for index, row in enumerate(progress.rows):
        _check_row(f"rows[{index}]", row, index + 1, batches, row_names(measures))
    return progress


def _check_step(name: str, step: Any, samples: int, length: int) -> None:
    _expect_list(name, step, length)
    _expect(type(step[0]) is int and 1 <= step[0] <= samples, f"{name}[0]", step[0], f"a count from 1 to {samples}")
    for index in range(1, length):
        _expect(_is_number(step[index]), f"{name}[{index}]", step[index], "a number")


def _check_row(name: str, row: Any, epoch: int, batches: int, columns: list[str]) -> None:
    _expect(isinstance(row, dict) and list(row) == columns, name, row, f"a dict of {', '.join(columns)}")
    for column in columns:
        _expect(_is_number(row[column]), f"{name}.{column}", row[column], "a number")
    for column, expected in (("epoch", epoch), ("step", epoch * batches)):
        _expect(row[column] == expected, f"{name}.{column}", row[column], str(expected))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _expect_list(name: str, value: Any, length: int) -> None:
    _expect(isinstance(value, list) and len(value) == length, name, value, f"a list of {length}")


def _expect(is_met: bool, name: str, value: Any, expected: str) -> None:
    if not is_met:
        raise ValueError(f"progress.{name}: got {reprlib.repr(value)}, expected {expected}")

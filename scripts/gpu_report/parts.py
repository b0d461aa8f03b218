"""The parts of the report, the most valuable one first."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Tests of what every network needs come first; then those of all columns.
FIRST_TESTS = ("linear", "conv", "batch_norm", "pool", "loss", "optimizer", "activation", "recurrent")

PROCESSES = 4  # of tests: the compiler takes most of their time


@dataclass(frozen=True)
class Part:
    """A command to run.

    Attributes:
        name: of the part, and of the file with its output.
        what: a sentence for the report.
        share: the part of all the time that it may take.
        command, environment: what to run; variables to add.
    """

    name: str
    what: str
    share: float
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a part: its status in words, seconds, and the state of the machine before and after."""

    name: str
    what: str
    command: list[str]
    status: str
    limit: float
    seconds: float
    before: dict[str, Any]
    after: dict[str, Any]


def parts_of(device: str, out: Path, toy: bool) -> list[Part]:
    """Returns the parts for a device.

    Args:
        device: "cuda" (also for ROCm), or "cpu".
        out: the report's folder.
        toy: whether to run each of them at the smallest size.
    """
    results = ["--device", device, "--out", str(out / "benchmarks")]
    if toy:
        tests, quick = [["tests/test_glu.py", "-k", "forward"]], ["--only", "dropout", "--match", "65,536"]
        steps, training = ["--match", "mlp"], ["--data", "digits", "--model", "mlp", "--steps", "2"]
        short = ["--seconds", "0", "--dtype", "fp32"]
    else:
        tests = [[f"tests/test_{name}.py" for name in FIRST_TESTS], ["tests"]]
        quick, steps, training, short = ["--quick", "--dtype", "fp32,bf16"], [], [], ["--seconds", "1"]
    step = _benchmarks("--only", "training_step", *steps, *short, *results)
    test = [*_python("pytest"), "-q", "--engine", device, "--share", "8", "-p", "no:cacheprovider"]
    if not toy and find_spec("xdist") is not None:
        test += ["-n", str(PROCESSES)]
    train = [*_python("tinynet"), "train", "image-classifier", *training]
    train += ["--device", device, "--engine", "kernels", "--out", str(out / "training")]
    found = [
        Part("environment", "Versions, devices and the engine.", 0.1, [*_python("tinynet"), "env"]),
        Part("first tests", "The kernels that most networks need, against PyTorch.", 0.25, [*test, *tests[0]]),
        Part("training steps", "Whole training steps beside eager PyTorch, in both layouts.", 0.15, step),
        Part("columns", "A few cases of every column.", 0.25, _benchmarks(*quick, *short, *results)),
        Part("training", "The image classifier, trained on the GPU.", 0.2, train),
    ]
    if not toy:
        apart = [*results[:-1], str(out / "benchmarks-compile")]
        compiled = _benchmarks("--compile", "--only", "training_step", *short, *apart)
        found += [
            Part("compiled steps", "Training steps beside torch.compile at its best.", 0.25, compiled),
            Part("all tests", "The whole suite.", 1.0, [*test, "-m", "kernels", *tests[1]]),
        ]
    return found


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _benchmarks(*arguments: str) -> list[str]:
    return [*_python("benchmarks"), *arguments]

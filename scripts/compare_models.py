"""Trains image models with several seeds, and prints a Markdown table: accuracy, seconds, parameters.

    python scripts/compare_models.py                                  # hours on two cores
    python scripts/compare_models.py --models mlp,cnn --data digits --seeds 2
    python scripts/compare_models.py --flags='--fast --lr 0.05'       # options of examples/train_image_classifier.py

The table of docs/models.md is made by this program.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import NamedTuple

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_image_classifier.py"


class Run(NamedTuple):
    """One training: the accuracy on the test images from 0 to 1, seconds of training, and parameters."""

    accuracy: float
    seconds: float
    parameters: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Train image models and print a table.", allow_abbrev=False)
    parser.add_argument("--models", default="convnet,cnn,mlp,airbench,resnet18,mobilenet-v2")
    parser.add_argument("--data", default="mnist5k,digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--flags", default="", help="further options of the training program")
    options = parser.parse_args()
    print("| data | model | parameters | test accuracy, mean (least to most) | seeds | seconds, mean |")
    print("|---|---|---|---|---|---|")
    for data in options.data.split(","):
        for model in options.models.split(","):
            runs = [train(model, data, seed, options.flags.split()) for seed in range(options.seeds)]
            print(row(data, model, runs), flush=True)


def train(model: str, data: str, seed: int, flags: list[str]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        arguments = ["--model", model, "--data", data, "--seed", str(seed), "--out", str(out), *flags]
        ran = subprocess.run([sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"{model} on {data}: {ran.stderr.strip()}")
        with open(out / "metrics.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
    parameters = re.search(r"with ([\d,]+) weights", ran.stdout)
    assert parameters is not None
    return Run(float(last["test_accuracy"]), float(last["seconds"]), int(parameters[1].replace(",", "")))


def row(data: str, model: str, runs: list[Run]) -> str:
    accuracies = [100 * run.accuracy for run in runs]
    spread = f"{mean(accuracies):.2f} % ({min(accuracies):.1f} to {max(accuracies):.1f})"
    seconds = mean(run.seconds for run in runs)
    return f"| {data} | {model} | {runs[0].parameters:,} | {spread} | {len(runs)} | {seconds:.0f} |"


if __name__ == "__main__":
    main()

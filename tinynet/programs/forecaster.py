"""Trains a recurrent network to forecast next year's sunspots.

    tinynet train forecaster                            # trains on 251 years, 58 are held out
    tinynet train forecaster --resume runs/lstm-sunspots

Writes metrics.csv, checkpoint.pt, curve.png and forecast.png into runs/NAME/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tinynet import nn, optim
from tinynet.data import SunspotBatches, load_sunspots
from tinynet.dispatch import engine
from tinynet.models import Forecaster
from tinynet.train import DTYPES, Trainer, make_deterministic, warm_up_and_cosine
from tinynet.train.options import RunParser
from tinynet.train.report import FORECAST_PICTURES, write_forecast_report
from tinynet.train.run import run_training

NAME = "train_forecaster"  # in checkpoints
WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # fraction of all steps


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the program, called `prog` in its messages, and returns the exit code."""
    parser = RunParser(NAME, "Train a network to forecast sunspots.", prog=prog, epochs=60, batch_size=16, lr=5e-3)
    options = parser.parse_run(arguments)
    make_deterministic(options.seed)

    with parser.report_errors(), engine(options.engine):
        data = load_sunspots()
        batches = SunspotBatches(data, options.batch_size, seed=options.seed, device=options.device)
        model = Forecaster().to(options.device)
        total_steps = options.steps or options.epochs * len(batches)
        optimizer = optim.AdamW(model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY)

        def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
            return batches.scale * (outputs - targets).abs().sum()

        trainer = Trainer(
            model,
            batches,
            nn.MSELoss(),
            optimizer,
            warm_up_and_cosine(optimizer, total_steps, round(WARM_UP * total_steps)),
            measures={"absolute_error": absolute_error},
            dtype=DTYPES[options.dtype],
            unit="years",
            config=parser.config(options),
        )

        def forecast() -> Tensor:
            return batches.scale * torch.cat([outputs for outputs, _ in trainer.predict()]).float().cpu()[:, 0]

        def report(folder: Path) -> list[str]:
            return write_forecast_report(folder, trainer, data, forecast())

        def summary() -> str:
            truth = data.sunspots[-data.test_years :]
            errors = [float((each - truth).square().mean().sqrt()) for each in (forecast(), data.persistence)]
            return f"RMSE {errors[0]:.2f} sunspots ({errors[1]:.2f} for the previous year's value)"

        return run_training(
            parser,
            options,
            trainer,
            total_steps,
            model="lstm",
            data=data,
            folder_name="lstm-sunspots",
            report_names=FORECAST_PICTURES,
            report=report,
            summary=summary,
        )

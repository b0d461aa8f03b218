"""Trains a recurrent network to classify surnames by language.

    tinynet train name-classifier                       # 3,974 names in 13 languages
    tinynet train name-classifier --cell lstm
    tinynet train name-classifier --resume runs/gru-names

Writes metrics.csv, checkpoint.pt, curve.png and confusion.png into runs/NAME/.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinynet import nn, optim
from tinynet.data import NameBatches, load_names
from tinynet.dispatch import engine
from tinynet.models import SequenceClassifier
from tinynet.train import DTYPES, Trainer, accuracy, make_deterministic, warm_up_and_cosine
from tinynet.train.options import RunParser
from tinynet.train.report import CLASSIFIER_PICTURES, write_classifier_report
from tinynet.train.run import run_training

NAME = "train_name_classifier"  # in checkpoints
LABEL_SMOOTHING = 0.05
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # fraction of all steps


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the program, called `prog` in its messages, and returns the exit code."""
    parser = RunParser(NAME, "Train a network to classify surnames.", prog=prog, epochs=20, batch_size=64, lr=5e-3)
    parser.add_argument("--cell", choices=["gru", "lstm"], default="gru", help="the type of recurrent layer")
    options = parser.parse_run(arguments)
    make_deterministic(options.seed)

    with parser.report_errors(), engine(options.engine):
        data = load_names()
        batches = NameBatches(data, options.batch_size, seed=options.seed, device=options.device)
        model = SequenceClassifier(data.vocabulary_size, len(data.languages), cell=options.cell).to(options.device)
        total_steps = options.steps or options.epochs * len(batches)
        optimizer = optim.AdamW(model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY)
        trainer = Trainer(
            model,
            batches,
            nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING),
            optimizer,
            warm_up_and_cosine(optimizer, total_steps, round(WARM_UP * total_steps)),
            measures={"accuracy": accuracy},
            dtype=DTYPES[options.dtype],
            unit="names",
            config=parser.config(options),
        )

        def summary() -> str:
            percent = 100 * trainer.rows[-1]["test_accuracy"]
            return f"test accuracy {percent:.2f} % ({100 * data.majority:.1f} % for the most frequent language)"

        return run_training(
            parser,
            options,
            trainer,
            total_steps,
            model=options.cell,
            data=data,
            folder_name=f"{options.cell}-names",
            report_names=CLASSIFIER_PICTURES,
            report=lambda folder: write_classifier_report(folder, trainer, data.languages),
            summary=summary,
        )

"""Trains a character-level language model and generates text with it.

    tinynet train text-model                            # Python's documentation, 500 steps
    tinynet train text-model --prompt "The for statement"
    tinynet train text-model --resume runs/lstm-text --epochs 10

Writes metrics.csv, checkpoint.pt, curve.png and samples.txt into runs/NAME/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tinynet import functional, optim
from tinynet.data import TextBatches, TextData, load_text
from tinynet.dispatch import engine
from tinynet.models import CharLanguageModel
from tinynet.train import DTYPES, Trainer, make_deterministic, warm_up_and_cosine
from tinynet.train.files import replacing
from tinynet.train.options import RunParser
from tinynet.train.report import CURVE_PICTURES, write_curve_report
from tinynet.train.run import run_training

NAME = "train_text_model"  # in checkpoints
WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # fraction of all steps
TEMPERATURES = (0.3, 0.7, 1.0)
SAMPLE_LENGTH = 300
SAMPLES_NAME = "samples.txt"


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the program, called `prog` in its messages, and returns the exit code."""
    parser = RunParser(NAME, "Train a character-level language model.", prog=prog, epochs=5, batch_size=32, lr=6e-3)
    parser.add_argument("--prompt", default='The "', help="beginning of the generated samples")
    options = parser.parse_run(arguments)
    make_deterministic(options.seed)

    with parser.report_errors(), engine(options.engine):
        data = load_text()
        prompt = encode_prompt(parser, options, data)
        batches = TextBatches(data, options.batch_size, seed=options.seed, device=options.device)
        model = CharLanguageModel(len(data.characters)).to(options.device)
        total_steps = options.steps or options.epochs * len(batches)
        optimizer = optim.AdamW(model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY)
        trainer = Trainer(
            model,
            batches,
            next_character_loss,
            optimizer,
            warm_up_and_cosine(optimizer, total_steps, round(WARM_UP * total_steps)),
            measures={},
            dtype=DTYPES[options.dtype],
            unit="windows",
            config=parser.config(options, without=["prompt"]),
        )

        def report(folder: Path) -> list[str]:
            samples = write_samples(model, data, prompt, options.seed)
            with replacing(folder / SAMPLES_NAME) as part:
                part.write_text(samples + "\n", encoding="utf-8")
            files = [*write_curve_report(folder, trainer), SAMPLES_NAME]
            print(samples)
            return files

        return run_training(
            parser,
            options,
            trainer,
            total_steps,
            model="lstm",
            data=data,
            folder_name="lstm-text",
            report_names=(*CURVE_PICTURES, SAMPLES_NAME),
            report=report,
            summary=lambda: f"held-out text: {trainer.rows[-1]['test_loss']:.3f} nats per character",
        )


def encode_prompt(parser: RunParser, options: argparse.Namespace, data: TextData) -> Tensor:
    """Returns the prompt as indices [1, length]; characters that do not occur in the text are an error."""
    if not options.prompt:
        parser.error("--prompt must have at least one character")
    try:
        return data.encode(options.prompt)[None].to(options.device)
    except ValueError as error:
        parser.error(f"--prompt {options.prompt!r}: {error}")


def next_character_loss(logits: Tensor, characters: Tensor) -> Tensor:
    """Returns the mean cross-entropy in nats per character: logits [B, T, vocabulary], characters [B, T] -> scalar."""
    return functional.cross_entropy(logits.flatten(0, 1), characters.flatten())


def write_samples(model: CharLanguageModel, data: TextData, prompt: Tensor, seed: int) -> str:
    """Returns text generated at each temperature, from the same random numbers."""
    samples = []
    for temperature in TEMPERATURES:
        drawn = model.sample(prompt, SAMPLE_LENGTH, temperature, torch.Generator().manual_seed(seed))
        samples.append(f"--- temperature {temperature} ---\n{data.decode(torch.cat([prompt, drawn], dim=1)[0])}")
    return "\n".join(samples)

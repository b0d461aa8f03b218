"""Trains an image classifier and draws pictures of the result.

    tinynet train image-classifier                                 # on 4,000 handwritten digits
    tinynet train image-classifier --fast                          # the same in a quarter of the time
    tinynet train image-classifier --model mlp --data digits
    tinynet train image-classifier --data path/                    # images of one's own, a folder per class
    tinynet train image-classifier --resume runs/convnet-mnist5k   # continues from its checkpoint

Writes metrics.csv, checkpoint.pt, curve.png, confusion.png, filters.png and samples.png into runs/NAME/. After that,
`tinynet predict runs/NAME image.png` prints the probabilities of an image's classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from tinynet import nn
from tinynet.arguments import not_negative_float
from tinynet.data import (
    IMAGE_DATA,
    Affine,
    Augmentation,
    FlipAndCrop,
    ImageBatches,
    ImageData,
    load_image_folder,
    load_images,
)
from tinynet.dispatch import engine
from tinynet.models import MODELS, Airbench, build
from tinynet.train import DTYPES, MultiCrop, Trainer, accuracy, make_deterministic
from tinynet.train.classifier import about_classifier
from tinynet.train.log import TensorBoardLog
from tinynet.train.optimizers import OPTIMIZERS
from tinynet.train.options import RunParser
from tinynet.train.recipes import Recipe, optimizer_and_schedule, recipe_of
from tinynet.train.report import IMAGE_PICTURES, write_image_report
from tinynet.train.run import run_training

NAME = "train_image_classifier"  # in checkpoints
FAST_EPOCHS = 6
ONLY_HERE = ("eval", "fast", "log", "tta")  # options that a resumed run need not share


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the program, called `prog` in its messages, and returns the exit code."""
    parser = RunParser(NAME, "Train an image classifier.", prog=prog, epochs=None, batch_size=None, lr=None)
    add = parser.add_argument
    add("--model", choices=MODELS, default="convnet", help="the model to train")
    add("--data", type=data_name, default="mnist5k", help=f"{', '.join(IMAGE_DATA)}, or a folder with one per class")
    add("--optimizer", choices=OPTIMIZERS, default=None, help="sgd, if neither this nor the model says otherwise")
    add("--weight-decay", type=not_negative_float, default=None, help="of weights, not of norms and biases")
    add("--fast", action="store_true", help=f"train for {FAST_EPOCHS} epochs")
    add("--log", choices=["tensorboard"], default=None, help="also write the metrics for another program")
    add("--tta", action="store_true", help="also evaluate with the mean over shifted copies of each test image")
    add("--eval", action="store_true", help="only evaluate the checkpoint of --resume")
    options = parser.parse_run(arguments)
    if options.eval and options.resume is None:
        parser.error("--eval evaluates a checkpoint: give its run as --resume runs/NAME")
    recipe = recipe_of(options.model)
    options.epochs = FAST_EPOCHS if options.fast else options.epochs or recipe.epochs
    options.batch_size = options.batch_size or recipe.batch_size
    make_deterministic(options.seed)
    with parser.report_errors(), engine(options.engine):
        return train(parser, options, recipe)


def train(parser: RunParser, options: argparse.Namespace, recipe: Recipe) -> int:
    data = load_images(options.data) if options.data in IMAGE_DATA else load_image_folder(options.data)
    model = build_model(parser, options, data)
    batches = ImageBatches(
        data, options.batch_size, seed=options.seed, device=options.device, augmentation=augmentation(data)
    )
    if isinstance(model, Airbench):
        model.whiten(batches.normalize(batches.train_images[:5000]))
    total_steps = options.steps or options.epochs * len(batches)
    optimizer, schedule = optimizer_and_schedule(
        options.optimizer or ("airbench" if options.model == "airbench" else "sgd"),
        model,
        options.lr,
        recipe.weight_decay if options.weight_decay is None else options.weight_decay,
        options.batch_size,
        total_steps,
    )
    log = tensorboard_log(parser) if options.log else None
    trainer = Trainer(
        model,
        batches,
        nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing),
        optimizer,
        schedule,
        measures={"accuracy": accuracy},
        dtype=DTYPES[options.dtype],
        unit="images",
        config=parser.config(options, without=ONLY_HERE),
        about=about_classifier(options.model, data),
        on_row=lambda row: log(trainer.folder, row) if log and trainer.folder else None,
    )
    with_crops = options.tta or recipe.crops
    if options.eval:
        trainer.resume(options.resume)
        print(summary(trainer, data, with_crops))
        return 0
    return run_training(
        parser,
        options,
        trainer,
        total_steps,
        model=options.model,
        data=data,
        folder_name=f"{options.model}-{data.name}",
        report_names=IMAGE_PICTURES,
        report=lambda folder: write_image_report(folder, trainer, data),
        summary=lambda: summary(trainer, data, with_crops),
    )


def build_model(parser: RunParser, options: argparse.Namespace, data: ImageData) -> nn.Module:
    try:
        model = build(options.model, image_shape=data.image_shape, classes=data.classes)
    except ValueError as error:
        parser.error(f"--model {options.model}: {error}")
    return model.to(options.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def augmentation(data: ImageData) -> Augmentation | None:
    """Photographs are mirrored and shifted, digits turned and stretched; 8x8 pixels are too few for either."""
    if data.image_shape[0] == 3:
        return FlipAndCrop(max(1, data.shift))
    return Affine(shift=data.shift) if data.shift else None


def summary(trainer: Trainer, data: ImageData, with_crops: bool) -> str:
    text = f"test accuracy {100 * trainer.evaluate()['accuracy']:.2f} %"
    if with_crops:
        trainer.model, model = MultiCrop(trainer.model, mirror=data.image_shape[0] == 3), trainer.model
        text += f", {100 * trainer.evaluate()['accuracy']:.2f} % with shifted copies"
        trainer.model = model
    return f"{text} ({100 * data.baseline:.1f} % for always predicting the most frequent class)"


def tensorboard_log(parser: RunParser) -> TensorBoardLog:
    try:
        return TensorBoardLog()
    except ImportError as error:
        parser.error(f"--log tensorboard: {error}")


def data_name(text: str) -> str:
    """A data set's name, or a folder."""
    if text not in IMAGE_DATA and not Path(text).is_dir():
        names = ", ".join(map(repr, IMAGE_DATA))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} is no folder (choose from {names}, or a folder)")
    return text

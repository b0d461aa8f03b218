"""`tinynet predict RUN IMAGE...`: the classes' probabilities of images."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from tinynet.arguments import positive_int


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("predict", help="print the classes' probabilities of images")
    parser.add_argument("path", type=Path, metavar="RUN", help="folder of an image classifier's run, or its checkpoint")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files of any size, grey or color")
    parser.add_argument("--top", type=positive_int, default=3, help="how many classes to print (default: 3)")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Prints one line for each image: the most probable classes."""
    import torch

    from tinynet.data import DataError
    from tinynet.train import CheckpointError, Classifier

    try:
        classifier = Classifier.load(options.path)
        read = [classifier.read(path) for path in options.images]
    except (CheckpointError, DataError) as error:
        parser.error(str(error))
    probabilities = classifier.probabilities(torch.stack([pixels for pixels, _ in read]))
    for path, (_, is_inverted), row in zip(options.images, read, probabilities, strict=True):
        best = row.topk(min(options.top, len(row)))
        classes = [f"{classifier.class_names[index]} {100 * row[index]:.1f} %" for index in best.indices.tolist()]
        print(f"{path}: {', '.join(classes)}{' (inverted)' if is_inverted else ''}")
    return 0

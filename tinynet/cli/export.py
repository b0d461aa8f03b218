"""`tinynet export RUN --to FORMAT`: a trained image classifier as a file for other programs."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("export", help="write a trained image classifier for other programs")
    parser.add_argument("path", type=Path, metavar="RUN", help="folder of an image classifier's run, or its checkpoint")
    parser.add_argument("--to", choices=("safetensors", "onnx"), required=True, help="the file's format")
    parser.add_argument("--out", type=Path, help="the file to write (default: model.FORMAT beside the checkpoint)")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Writes the classifier's weights, or its whole computation, into a file."""
    import torch

    import tinynet
    from tinynet.train import CheckpointError, Classifier, export_weights

    folder = options.path if options.path.is_dir() else options.path.parent
    path = options.out or folder / f"model.{options.to}"
    try:
        classifier = Classifier.load(options.path)
        if options.to == "safetensors":
            about = {"class_names": classifier.class_names, "image_shape": classifier.image_shape}
            pixels = {"mean": classifier.mean.flatten().tolist(), "std": classifier.std.flatten().tolist()}
            metadata = {name: json.dumps(value) for name, value in {**about, **pixels}.items()}
            export_weights(classifier.model, path, metadata)
        else:
            tinynet.export(classifier.model, torch.zeros(1, *classifier.image_shape), path)
    except (CheckpointError, ImportError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{path} cannot be written: {error.strerror or error}")
    print(path)
    return 0

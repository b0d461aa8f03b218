"""An image classifier from a checkpoint, for images of any size and color."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinynet import nn
from tinynet.data import ImageData
from tinynet.data.folder import as_pixels, read_image
from tinynet.models import build
from tinynet.train.checkpoint import CheckpointError, read_checkpoint
from tinynet.train.trainer import CHECKPOINT_NAME


def about_classifier(model: str, data: ImageData) -> dict[str, Any]:
    """What a checkpoint says of a classifier, so that `Classifier.load` needs nothing else.

    Args:
        model: its name in `tinynet.models`.
        data: what it is trained on.
    """
    mean, std = data.mean_and_std()
    return {
        "model": model,
        "image_shape": list(data.image_shape),
        "class_names": list(data.class_names),
        "mean": mean,
        "std": std,
        "background": data.background,
    }


@dataclass
class Classifier:
    """A trained model with its preprocessing.

    Attributes:
        model: maps normalized images [N, C, H, W] to logits, in evaluation mode.
        image_shape: (C, H, W).
        class_names: one name per class.
        mean, std: of the pixels in training, [1, C, 1, 1].
        background: mean brightness of the training images' outermost pixels, from 0 to 255.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    class_names: list[str]
    mean: Tensor
    std: Tensor
    background: float

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Loads a classifier.

        Args:
            path: a checkpoint, or the folder of a run of `tinynet train image-classifier`.

        Raises:
            CheckpointError: no checkpoint, or one of something else.
        """
        file = path / CHECKPOINT_NAME if path.is_dir() else path
        state = read_checkpoint(file)
        about = state.get("about")
        try:
            shape = tuple(about["image_shape"])  # pyright: ignore[reportOptionalSubscript]
            model = build(about["model"], image_shape=shape, classes=len(about["class_names"]))  # pyright: ignore
            model.load_state_dict(state["model"])
            rest = {name: about[name] for name in ("class_names", "mean", "std", "background")}  # pyright: ignore
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{file} is not a checkpoint of an image classifier") from error
        return cls(model=model.eval(), image_shape=shape, **rest)

    def read(self, path: Path) -> tuple[Tensor, bool]:
        """Reads an image as the model sees it.

        Returns:
            uint8 [C, H, W], the image's central square in the model's size and colors; and whether it was inverted,
            because its background is light where that of the training images is dark, or dark where theirs is light.

        Raises:
            DataError: the file is missing or no image.
        """
        channels, height, width = self.image_shape
        pixels = as_pixels(read_image(path), (width, height), channels)
        sides = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], dim=-1)
        is_plain = channels == 1 and abs(self.background - 127.5) > 64
        inverted = is_plain and (sides.double().mean().item() > 127.5) != (self.background > 127.5)
        return (255 - pixels if inverted else pixels), inverted

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Maps uint8 images [N, C, H, W] to the classes' probabilities [N, classes]."""
        return self.model((images.float() - self.mean) / self.std).softmax(dim=1)

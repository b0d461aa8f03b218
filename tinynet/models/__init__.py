"""Models built from `tinynet.nn`: those of images by name, those of sequences by class."""

from collections.abc import Callable
from typing import Any

from tinynet import nn
from tinynet.models.char_language_model import CharLanguageModel
from tinynet.models.cnn import CNN
from tinynet.models.forecaster import Forecaster
from tinynet.models.mlp import MLP
from tinynet.models.sequence_classifier import SequenceClassifier

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
}

__all__ = ["CNN", "MLP", "MODELS", "CharLanguageModel", "Forecaster", "SequenceClassifier", "build"]


def build(name: str, **arguments: Any) -> nn.Module:
    """Builds an image model by its name.

    Args:
        name: a key of `MODELS`.
        **arguments: what the model's class takes: `image_shape` (C, H, W), `classes`, and more.

    Raises:
        ValueError: no such model, or a size that the model cannot have.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there is {', '.join(MODELS)}")
    return MODELS[name](**arguments)

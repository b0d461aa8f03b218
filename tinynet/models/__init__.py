"""Models built from `tinynet.nn`. Image models can also be built by name."""

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
    """Builds an image model by name.

    Args:
        name: a key of `MODELS`.
        **arguments: of the model's class: `image_shape` (C, H, W), `classes`, and others.

    Raises:
        ValueError: an unknown model, or a size that the model does not support.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join(MODELS)}")
    return MODELS[name](**arguments)

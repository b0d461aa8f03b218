"""Models built from `tinynet.nn`, by name."""

from collections.abc import Callable
from typing import Any

from tinynet import nn
from tinynet.models.cnn import CNN
from tinynet.models.mlp import MLP

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
}

__all__ = ["CNN", "MLP", "MODELS", "build"]


def build(name: str, **arguments: Any) -> nn.Module:
    """Builds a model by its name.

    Args:
        name: a key of `MODELS`.
        **arguments: what the model's class takes; image models take `image_shape` (C, H, W) and `classes`.

    Raises:
        ValueError: no such model, or a size that the model cannot have.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there is {', '.join(MODELS)}")
    return MODELS[name](**arguments)

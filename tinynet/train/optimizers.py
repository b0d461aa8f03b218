"""The optimizers that the image classifier can be trained with, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tinynet import nn, optim

# By name: the optimizer, and its default learning rate.
OPTIMIZERS: dict[str, tuple[Callable[..., optim.Optimizer], float]] = {
    "sgd": (partial(optim.SGD, momentum=0.9, nesterov=True), 0.1),
    "adam": (optim.Adam, 3e-3),
    "adamw": (optim.AdamW, 3e-3),
    "nadam": (optim.NAdam, 3e-3),
    "radam": (optim.RAdam, 3e-3),
    "adamax": (optim.Adamax, 6e-3),
    "rmsprop": (partial(optim.RMSprop, momentum=0.9), 3e-4),
    "adagrad": (optim.Adagrad, 0.03),
    "adadelta": (optim.Adadelta, 1.0),
    "lion": (optim.Lion, 5e-4),
    "lamb": (optim.LAMB, 0.02),
}


def build_optimizer(name: str, model: nn.Module, lr: float | None, weight_decay: float) -> Any:
    """An optimizer of a model's parameters that gives weight decay to weights alone.

    Args:
        name: a key of `OPTIMIZERS`.
        model: the model.
        lr: learning rate; None for the optimizer's own.
        weight_decay: of the weights; normalizations and biases have none.
    """
    make, default_lr = OPTIMIZERS[name]
    return make(optim.parameter_groups(model, weight_decay), lr=default_lr if lr is None else lr)

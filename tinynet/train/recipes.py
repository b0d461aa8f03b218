"""How image models are trained if no option says otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import LambdaLR

from tinynet import nn, optim
from tinynet.train.optimizers import build_optimizer
from tinynet.train.trainer import warm_up_and_cosine

WARM_UP = 0.2  # fraction of all steps


class Recipe(NamedTuple):
    """Defaults of a training.

    Attributes:
        epochs, batch_size, label_smoothing: of the training.
        weight_decay: of weights alone; for Airbench, in its own unit.
        crops: whether the result is evaluated with shifted copies too.
    """

    epochs: int = 24
    batch_size: int = 64
    label_smoothing: float = 0.1
    weight_decay: float = 5e-4
    crops: bool = False


# Of models that differ from the default.
RECIPES = {"airbench": Recipe(10, 1024, 0.2, 0.0153, crops=True), "convnet": Recipe(epochs=32)}


def recipe_of(model: str) -> Recipe:
    """The recipe of a model of `tinynet.models`, by its name."""
    return RECIPES.get(model, Recipe())


def optimizer_and_schedule(
    name: str, model: nn.Module, lr: float | None, weight_decay: float, batch_size: int, total_steps: int
) -> tuple[Any, LambdaLR]:
    """The optimizer and the learning rates of a training.

    Args:
        name: a key of `OPTIMIZERS`, or "airbench" for that paper's SGD, whose numbers don't depend on the batch size.
        model: the model.
        lr: learning rate; None for the optimizer's own.
        weight_decay: of the weights.
        batch_size: images per step.
        total_steps: steps of the training.
    """
    if name == "airbench":
        groups = airbench_groups(model, batch_size, 11.5 if lr is None else lr, weight_decay)
        optimizer = optim.SGD(groups, momentum=AIRBENCH_MOMENTUM, nesterov=True)
        return optimizer, triangle(optimizer, total_steps)
    optimizer = build_optimizer(name, model, lr, weight_decay)
    return optimizer, warm_up_and_cosine(optimizer, total_steps, round(WARM_UP * total_steps))


AIRBENCH_MOMENTUM = 0.85
_BIAS_FACTOR = 64  # of the learning rate, for the biases of normalizations


def airbench_groups(model: nn.Module, batch_size: int, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Airbench's parameter groups for SGD and a mean loss: the normalizations' biases learn 64 times as fast.

    Args:
        model: the model.
        batch_size: images per step.
        lr: learning rate per 1,024 images, for a momentum of 0 in the limit: SGD's is lr batch_size / (1024 (1 + 1 / (1
            - momentum))).
        weight_decay: per 1,024 images, not multiplied by the learning rate.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU".
    """
    scale = batch_size / (1024 * (1 + 1 / (1 - AIRBENCH_MOMENTUM)))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    biases = [weight for norm in norms for weight in norm.parameters() if weight.requires_grad]
    known = set(biases)
    others = [weight for weight in model.parameters() if weight.requires_grad and weight not in known]
    groups = (biases, _BIAS_FACTOR * lr * scale), (others, lr * scale)
    return [{"params": params, "lr": rate, "weight_decay": weight_decay * scale / rate} for params, rate in groups]


def triangle(
    optimizer: torch.optim.Optimizer, total_steps: int, start: float = 0.2, peak: float = 0.23, end: float = 0.07
) -> LambdaLR:
    """Learning rates that grow linearly from `start` of their own to all of it after `peak` of the steps, then sink."""
    top = max(1, int(peak * total_steps))

    def factor(step: int) -> float:
        if step < top:
            return start + (1 - start) * step / top
        return 1 + (end - 1) * min(1.0, (step - top) / max(1, total_steps - top))

    return LambdaLR(optimizer, factor)

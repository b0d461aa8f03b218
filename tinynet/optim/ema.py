"""The moving average of a model's weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel


class EMA(AveragedModel):
    """A copy of a model whose weights and statistics are exponential moving averages of the model's.

    PyTorch's AveragedModel with buffers averaged too, as a normalization's running statistics; integers are copied.
    The copy often generalizes better than the model; evaluate, export and save it instead.

    Args:
        model: it is copied.
        decay: w <- decay w + (1 - decay) the model's, in [0, 1]; the first update copies the model.

    Raises:
        ValueError: decay outside of [0, 1].

    Source: torch.optim.swa_utils.AveragedModel; Polyak and Juditsky 1992.

    Example:
        >>> model = tinynet.nn.Linear(3, 4)
        >>> average = tinynet.optim.EMA(model, decay=0.99)
        >>> average.update_parameters(model)  # after each step of the optimizer
        >>> average(torch.ones(2, 3)).shape
        torch.Size([2, 4])
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay: got {decay}, expected a number from 0 to 1")
        average: Any = partial(_average, decay=decay)
        super().__init__(model, multi_avg_fn=average, use_buffers=True)


@torch.no_grad()
def _average(averages: list[Tensor], values: list[Tensor], count: Any, *, decay: float) -> None:
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    else:
        torch._foreach_copy_(averages, values)  # pyright: ignore[reportPrivateImportUsage]

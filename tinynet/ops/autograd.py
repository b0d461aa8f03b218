"""What every autograd function of ours does the same way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch.autograd.function.once_differentiable, whose guard is set up only where a second derivative may be asked.

    Autograd runs a backward with gradients enabled for `create_graph=True` alone.
    """
    refusing = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Any) -> Any:
        return refusing(ctx, *gradients) if torch.is_grad_enabled() else backward(ctx, *gradients)

    return once

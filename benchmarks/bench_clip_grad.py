"""Clipping the gradients of the example CNN by their norm and by value; PyTorch with foreach=True."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from tinynet.models import build
from tinynet.nn import utils

from .case import OURS, Case, Setting, allowed_error

TITLE = "clip_grad"
LIMIT = 1.0  # of the norm, which it then keeps, and of each element


def cases(setting: Setting) -> Iterator[Case]:
    shapes = [parameter.shape for parameter in build("cnn").parameters()]
    elements = sum(shape.numel() for shape in shapes)
    for name, passes in (("clip_grad_norm_", 3), ("clip_grad_value_", 2)):
        theirs = partial(getattr(torch.nn.utils, name), foreach=True)
        yield Case(
            name,
            f"{len(shapes)} tensors, {elements:,}",
            3 * elements,
            passes * elements * setting.dtype.itemsize,
            {
                OURS: _step(setting, shapes, getattr(utils, name)),
                "eager foreach": _step(setting, shapes, theirs),
            },
            None if name == "clip_grad_value_" else allowed_error(setting.dtype, elements),
            elements,
        )


def _step(setting: Setting, shapes: list[torch.Size], clip: Callable[..., Any]) -> Callable[[], Any]:
    generator = torch.Generator(setting.device).manual_seed(0)
    parameters = [setting.random(*shape, grad=True) for shape in shapes]
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator, device=setting.device)
        parameter.grad = gradient.to(setting.dtype)
    return lambda: clip(parameters, LIMIT)

"""Elementwise activations, forward and backward: limited by memory bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.case import OURS, Case, Setting, allowed_error
from tinynet.functional import gelu, relu

TITLE = "activation"


def cases(setting: Setting) -> Iterator[Case]:
    for name, ours, eager in (("relu", relu, F.relu), ("gelu", gelu, F.gelu)):
        for elements in (1 << 16, 1 << 22):
            x = setting.random(elements, grad=True)
            frozen = x.detach()
            grad = setting.random(elements)
            size = elements * setting.dtype.itemsize
            y, z = ours(x), eager(x)
            yield Case(
                f"{name}, forward",
                f"{elements:,}",
                elements,
                2 * size,
                {
                    OURS: lambda f=ours, x=frozen: f(x),
                    "eager": lambda f=eager, x=frozen: f(x),
                    **setting.compiled(eager, frozen),
                },
                allowed_error(setting.dtype),
                elements,
            )
            yield Case(
                f"{name}, backward",
                f"{elements:,}",
                elements,
                3 * size,
                {
                    OURS: lambda y=y, x=x, g=grad: torch.autograd.grad(y, x, g, retain_graph=True),
                    "eager": lambda y=z, x=x, g=grad: torch.autograd.grad(y, x, g, retain_graph=True),
                },
                allowed_error(setting.dtype),
                elements,
            )

"""Dropout, forward and backward: limited by memory bandwidth and by the random numbers, which are PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tinynet.functional import dropout

from .case import OURS, Case, Setting

TITLE = "dropout"


def cases(setting: Setting) -> Iterator[Case]:
    for elements in (1 << 16, 1 << 22):
        x = setting.random(elements, grad=True)
        frozen, grad = x.detach(), setting.random(elements)
        y, z = dropout(x, 0.1), F.dropout(x, 0.1)
        forward = {OURS: lambda x=frozen: dropout(x, 0.1), "eager": lambda x=frozen: F.dropout(x, 0.1)}
        backward = {
            OURS: lambda y=y, x=x, g=grad: torch.autograd.grad(y, x, g, retain_graph=True),
            "eager": lambda y=z, x=x, g=grad: torch.autograd.grad(y, x, g, retain_graph=True),
        }
        size = 2 * elements * setting.dtype.itemsize
        for name, contenders in (("forward", forward), ("backward", backward)):
            yield Case(
                f"dropout, {name}", f"{elements:,}", elements, size, contenders, None, elements, f"dropout, {name}"
            )

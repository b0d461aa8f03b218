"""Softmax and log-softmax, forward + backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tinynet.functional import log_softmax, softmax

from .case import OURS, Case, Setting, allowed_error

TITLE = "softmax"
SIZES = ((4096, 1000), (64, 32000), (8, 21, 128, 128))


def cases(setting: Setting) -> Iterator[Case]:
    for shape in SIZES:
        x, grad = setting.random(*shape, grad=True), setting.random(*shape)
        for name, ours, eager in (("softmax", softmax, F.softmax), ("log_softmax", log_softmax, F.log_softmax)):
            yield Case(
                f"{name}, forward + backward",
                "x".join(map(str, shape)),
                10 * x.numel(),
                5 * x.numel() * setting.dtype.itemsize,
                {
                    OURS: lambda f=ours, x=x, g=grad: torch.autograd.grad(f(x, 1), x, g),
                    "eager": lambda f=eager, x=x, g=grad: torch.autograd.grad(f(x, 1), x, g),
                },
                4 * allowed_error(setting.dtype),
                shape[0],
            )

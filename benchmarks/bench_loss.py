"""Softmax cross-entropy, forward + backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.case import OURS, Case, Setting, allowed_error
from tinynet.functional import cross_entropy

TITLE = "loss"
SIZES = ((128, 10), (4096, 1000))


def cases(setting: Setting) -> Iterator[Case]:
    for rows, classes in SIZES:
        logits = setting.random(rows, classes, grad=True)
        target = torch.randint(0, classes, (rows,), device=setting.device)
        yield Case(
            "cross_entropy, forward + backward",
            f"{rows}x{classes}",
            8 * rows * classes,
            2 * rows * classes * setting.dtype.itemsize,
            {
                OURS: lambda x=logits, t=target: torch.autograd.grad(cross_entropy(x, t), x),
                "eager": lambda x=logits, t=target: torch.autograd.grad(F.cross_entropy(x, t), x),
            },
            allowed_error(setting.dtype, classes),
            rows,
        )

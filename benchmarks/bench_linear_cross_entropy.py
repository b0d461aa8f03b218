"""A language model's last layer and its loss, forward + backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from tinynet import functional as ours

from .case import OURS, Case, Setting, allowed_error, forward_and_backward

TITLE = "linear_cross_entropy"


def cases(setting: Setting) -> Iterator[Case]:
    rows, features, classes = 4096, 768, 32000
    x = setting.random(rows, features, grad=True)
    weight = (setting.random(classes, features) / features**0.5).requires_grad_()
    target = torch.randint(0, classes, (rows,), device=setting.device)
    tensors, leaves = (x, weight, target), (x, weight)
    separate: Any = lambda x, weight, target: F.cross_entropy(F.linear(x, weight), target)  # noqa: E731
    contenders = {
        OURS: forward_and_backward(ours.linear_cross_entropy, tensors, leaves),
        "eager, linear and cross_entropy": forward_and_backward(separate, tensors, leaves),
    }
    if hasattr(F, "linear_cross_entropy"):  # since PyTorch 2.13
        contenders["eager"] = forward_and_backward(getattr(F, "linear_cross_entropy"), tensors, leaves)  # noqa: B009
    moved = 2 * (x.numel() + weight.numel()) * setting.dtype.itemsize
    error, work = allowed_error(setting.dtype, classes), 6 * rows * features * classes
    size = f"{rows}x{features}->{classes}"
    yield Case("linear_cross_entropy, forward + backward", size, work, moved, contenders, error, rows)

"""Losses of rows with labels, forward + backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from tinynet import functional as ours

from .case import OURS, Case, Setting, allowed_error, forward_and_backward

TITLE = "losses with labels"


def cases(setting: Setting) -> Iterator[Case]:
    rows, classes = 4096, 1000
    x = setting.random(rows, classes, grad=True)
    label = torch.randint(0, classes, (rows,), device=setting.device)
    several = torch.full((rows, classes), -1, device=setting.device)
    several[:, :5] = torch.randint(0, classes, (rows, 5), device=setting.device)
    given: dict[str, tuple[Any, ...]] = {
        "nll_loss": (x, label),
        "multi_margin_loss": (x, label),
        "multilabel_margin_loss": (x, several),
    }
    for name, tensors in given.items():
        contenders = {OURS: forward_and_backward(getattr(ours, name), tensors, x)}
        if name == "nll_loss" or setting.dtype is torch.float32 or setting.device.type != "cpu":
            contenders["eager"] = forward_and_backward(getattr(F, name), tensors, x)  # not in 16 bits on a CPU
        passes = 1 if name == "nll_loss" else 2  # its forward reads one element of each row
        moved, error = passes * x.numel() * setting.dtype.itemsize, allowed_error(setting.dtype, classes)
        yield Case(f"{name}, forward + backward", f"{rows}x{classes}", 6 * x.numel(), moved, contenders, error, rows)

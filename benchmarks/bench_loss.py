"""Losses, forward + backward: softmax cross-entropy, and the mean of every elementwise loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet import functional as ours
from tinynet.functional import cross_entropy

from .case import OURS, Case, Setting, allowed_error

TITLE = "loss"
SIZES = ((128, 10), (4096, 1000))
ELEMENTS = (1024, 1024)


def _probabilities(x: Tensor) -> Tensor:
    return x.sigmoid().clamp(0.01, 0.99)


def _signs(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


# Each loss in either library, and how its operands follow from normally distributed numbers.
ELEMENTWISE: dict[str, tuple[Callable[..., Tensor], list[Callable[[Tensor], Tensor]]]] = {
    "mse_loss": (lambda f, x, t: f.mse_loss(x, t), [Tensor.clone, Tensor.clone]),
    "l1_loss": (lambda f, x, t: f.l1_loss(x, t), [Tensor.clone, Tensor.clone]),
    "smooth_l1_loss": (lambda f, x, t: f.smooth_l1_loss(x, t), [Tensor.clone, Tensor.clone]),
    "huber_loss": (lambda f, x, t: f.huber_loss(x, t), [Tensor.clone, Tensor.clone]),
    "binary_cross_entropy": (lambda f, x, t: f.binary_cross_entropy(x, t), [_probabilities, _probabilities]),
    "binary_cross_entropy_with_logits": (
        lambda f, x, t: f.binary_cross_entropy_with_logits(x, t),
        [Tensor.clone, _probabilities],
    ),
    "binary_cross_entropy_with_logits, pos_weight": (
        lambda f, x, t, p: f.binary_cross_entropy_with_logits(x, t, pos_weight=p),
        [Tensor.clone, _probabilities, lambda x: x[0].exp()],
    ),
    "multilabel_soft_margin_loss": (
        lambda f, x, t: f.multilabel_soft_margin_loss(x, t),
        [Tensor.clone, _probabilities],
    ),
    "soft_margin_loss": (lambda f, x, t: f.soft_margin_loss(x, t), [Tensor.clone, _signs]),
    "kl_div": (lambda f, x, t: f.kl_div(x, t, reduction="batchmean"), [Tensor.clone, _probabilities]),
    "gaussian_nll_loss": (lambda f, x, t, v: f.gaussian_nll_loss(x, t, v), [Tensor.clone, Tensor.clone, Tensor.exp]),
    "poisson_nll_loss": (lambda f, x, t: f.poisson_nll_loss(x, t), [Tensor.clone, Tensor.exp]),
    "hinge_embedding_loss": (lambda f, x, t: f.hinge_embedding_loss(x, t), [Tensor.exp, _signs]),
    "margin_ranking_loss": (
        lambda f, x, y, t: f.margin_ranking_loss(x, y, t),
        [Tensor.clone, Tensor.clone, _signs],
    ),
}


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
    for name, (call, makers) in ELEMENTWISE.items():
        operands = [make(setting.random(*ELEMENTS)) for make in makers]
        operands[0].requires_grad_()
        elements = operands[0].numel()
        yield Case(
            f"{name}, forward + backward",
            "x".join(map(str, ELEMENTS)),
            6 * elements,
            (2 * len(operands) + 1) * elements * setting.dtype.itemsize,
            {
                OURS: partial(_step, call, ours, operands),
                "eager": partial(_step, call, F, operands),
            },
            allowed_error(setting.dtype, elements),
            elements,
        )


def _step(call: Callable[..., Tensor], library: Any, operands: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(library, *operands), operands[0])

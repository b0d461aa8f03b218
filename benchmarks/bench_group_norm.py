"""Group normalization and local response normalization, forward + backward; PyTorch in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.functional import group_norm, local_response_norm

from .case import OURS, Case, Setting, allowed_error

TITLE = "group_norm"
LAYOUTS = {"": torch.contiguous_format, " channels_last": torch.channels_last}


def cases(setting: Setting) -> Iterator[Case]:
    shape = (8, 320, 32, 32)
    x, grad = setting.random(*shape), setting.random(*shape)
    parameters = [setting.random(shape[1], grad=True) for _ in range(2)]
    for name, ours, eager, own in (
        ("group_norm", _grouped(group_norm), _grouped(F.group_norm), parameters),
        (
            "group_norm + silu",
            _grouped(group_norm, activation="silu"),
            lambda *given: F.silu(_grouped(F.group_norm)(*given)),
            parameters,
        ),
        ("local_response_norm", lambda x: local_response_norm(x, 5), lambda x: F.local_response_norm(x, 5), []),
    ):
        if name == "local_response_norm" and setting.dtype is not torch.float32:
            continue  # PyTorch has none on CPUs
        for suffix, layout in LAYOUTS.items():
            theirs = {f"eager{s}": _step(eager, x, grad, order, own) for s, order in LAYOUTS.items()}
            yield Case(
                f"{name}{suffix}, forward + backward",
                "x".join(map(str, shape)),
                20 * x.numel(),
                5 * x.numel() * setting.dtype.itemsize,
                {OURS: _step(ours, x, grad, layout, own), **theirs},
                allowed_error(setting.dtype, x.numel() // shape[1]),
                shape[0],
            )


def _grouped(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return lambda x, *parameters: function(x, 32, *parameters, **options)


def _step(function: Any, x: Tensor, grad: Tensor, layout: Any, parameters: Any) -> Callable[[], Any]:
    x = x.to(memory_format=layout).requires_grad_()
    grad = grad.to(memory_format=layout)
    return lambda: torch.autograd.grad(function(x, *parameters), (x, *parameters), grad)

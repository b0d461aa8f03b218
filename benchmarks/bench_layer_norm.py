"""Layer and RMS normalization, forward + backward: alone, with an activation after it, with a residual before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.functional import layer_norm, rms_norm

from .case import OURS, Case, Setting, allowed_error

TITLE = "layer_norm"
SIZES = ((4096, 768), (512, 4096))


def cases(setting: Setting) -> Iterator[Case]:
    for rows, columns in SIZES:
        x, residual = (setting.random(rows, columns, grad=True) for _ in range(2))
        upstream = setting.random(rows, columns), setting.random(rows, columns)
        parameters = [setting.random(columns, grad=True) for _ in range(2)]
        for name, ours, eager, own in (
            ("layer_norm", layer_norm, F.layer_norm, parameters),
            ("rms_norm", rms_norm, F.rms_norm, parameters[:1]),
        ):
            for variant, fused, separate, inputs, tensors in (
                ("", {}, _plain(eager), (x, *own), 5),
                (" + gelu", {"activation": "gelu"}, _with_gelu(eager), (x, *own), 5),
                (" of a sum", {"residual": residual}, _with_sum(eager, residual), (x, residual, *own), 7),
            ):
                yield Case(
                    f"{name}{variant}, forward + backward",
                    f"{rows}x{columns}",
                    20 * x.numel(),
                    tensors * x.numel() * setting.dtype.itemsize,
                    {
                        OURS: _step(_plain(ours, **fused), x, own, inputs, upstream),
                        "eager": _step(separate, x, own, inputs, upstream),
                    },
                    4 * allowed_error(setting.dtype, rows),  # PyTorch sums gradients of 16-bit parameters in 16 bits
                    rows,
                )


def _plain(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda x, *parameters: function(x, x.shape[-1:], *parameters, eps=1e-5, **options)


def _with_gelu(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *parameters: F.gelu(_plain(function)(x, *parameters))


def _with_sum(function: Callable[..., Any], residual: Tensor) -> Callable[..., Any]:
    def run(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return _plain(function)(total, *parameters), total

    return run


def _step(function: Any, x: Tensor, parameters: Any, inputs: Any, upstream: Any) -> Callable[[], Any]:
    def run() -> Any:
        outputs = function(x, *parameters)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.autograd.grad(outputs, inputs, upstream[: len(outputs)])

    return run

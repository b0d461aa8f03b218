"""Convolutions of well-known networks, forward alone and with both gradients.

PyTorch in both layouts, and tinynet with images and weights in channels_last, which is what
`model.to(memory_format=torch.channels_last)` gives both. Of a first layer the images need no gradient.
`--batch 1,8,32` chooses the batch sizes, `--match depthwise` a kind, `--match ResNet` a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import OURS, Case, Setting, allowed_error
from benchmarks.convolution_layers import LAYERS, Layer
from tinynet import functional

TITLE = "conv"
_CHANNELS_LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}

Operands = tuple[Tensor, Tensor, Tensor]  # x, W and the upstream gradient


def cases(setting: Setting) -> Iterator[Case]:
    for layer in LAYERS:
        for N in setting.batches if layer.batch is None else (layer.batch,):
            yield _case(setting, layer, N, training=False)
            yield _case(setting, layer, N, training=True)


def _case(setting: Setting, layer: Layer, N: int, *, training: bool) -> Case:
    x_shape, y_shape = (N, layer.C, *layer.size), (N, layer.K, *layer.output_size)
    x, y, weight = map(math.prod, (x_shape, y_shape, layer.weight_shape))
    products = (x // layer.C if layer.transposed else y // layer.K) * weight
    gradients = 0 if not training else 1 if layer.kind == "stem" else 2

    @cache  # a case that isn't run allocates nothing
    def operands() -> Operands:
        values = setting.random(*x_shape), setting.random(*layer.weight_shape), setting.random(*y_shape)
        return values[0], values[1] * (weight / layer.K) ** -0.5, values[2]

    contiguous, last = torch.contiguous_format, _CHANNELS_LAST[len(layer.size)]
    ours, eager = getattr(functional, layer.function), getattr(F, layer.function)
    contenders = {
        OURS: _contender(ours, layer, operands, gradients, last, last),
        "eager": _contender(eager, layer, operands, gradients, contiguous, contiguous),
        "eager channels_last": _contender(eager, layer, operands, gradients, last, last),
    }
    if last is contiguous:
        del contenders["eager channels_last"]
    return Case(
        f"{layer.kind}, {'training' if training else 'forward'}",
        f"{'x'.join(map(str, x_shape))} -> {layer.K} ({layer.network})",
        2 * products * (1 + gradients),
        (x + y + weight) * (1 + gradients) * setting.dtype.itemsize,
        contenders,
        allowed_error(setting.dtype, y // layer.K if training else weight // layer.K),
        N,
    )


def _contender(
    function: Callable[..., Tensor],
    layer: Layer,
    operands: Callable[[], Operands],
    gradients: int,
    images: torch.memory_format,
    filters: torch.memory_format,
) -> Callable[[], Any]:
    """The layer's result or, of `gradients`, the first of those by W and x."""

    @cache
    def prepared() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        x, weight, upstream = operands()
        x = x.contiguous(memory_format=images).requires_grad_(gradients > 1)
        weight = weight.contiguous(memory_format=filters).requires_grad_(gradients > 0)
        return x, weight, upstream.contiguous(memory_format=images), [weight, x][:gradients]

    def run() -> Any:
        x, weight, upstream, leaves = prepared()
        y = function(x, weight, **layer.options)
        return torch.autograd.grad(y, leaves, upstream) if leaves else y

    return run

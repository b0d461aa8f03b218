"""Convolutions of well-known networks, forward alone and with both gradients.

PyTorch in both layouts, and tinynet with images and weights in channels_last, which is what
`model.to(memory_format=torch.channels_last)` gives both. Of a first layer the images need no gradient.
`--batch 1,8,32` chooses the batch sizes, `--match depthwise` a kind, `--match ResNet` a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet import functional

from .case import OURS, Case, Setting, allowed_error
from .convolution_layers import LAYERS, Layer

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
        OURS: _Contender(ours, layer, last, operands, gradients),
        "eager": _Contender(eager, layer, contiguous, operands, gradients),
        "eager channels_last": _Contender(eager, layer, last, operands, gradients),
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
        family=f"{layer.kind}, {layer.network} {x_shape[1:]} -> {layer.K}, {'training' if training else 'forward'}",
        least_flops=2 * products * (1 + gradients) // (4 if layer.suits_winograd else 1),
        prepare=lambda: [contender.prepare() for contender in contenders.values()],
    )


@dataclass
class _Contender:
    """Computes the layer's result or, of `gradients`, the first of those by W and x."""

    function: Callable[..., Tensor]
    layer: Layer
    layout: torch.memory_format
    operands: Callable[[], Operands]
    gradients: int

    def prepare(self) -> None:
        """Creates the operands."""
        x, weight, upstream = self.operands()
        self.x = x.contiguous(memory_format=self.layout).requires_grad_(self.gradients > 1)
        self.weight = weight.contiguous(memory_format=self.layout).requires_grad_(self.gradients > 0)
        self.upstream = upstream.contiguous(memory_format=self.layout)

    def __call__(self) -> Any:
        y = self.function(self.x, self.weight, **self.layer.options)
        leaves = [self.weight, self.x][: self.gradients]
        return torch.autograd.grad(y, leaves, self.upstream) if leaves else y

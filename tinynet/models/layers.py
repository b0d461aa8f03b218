"""What the convolutional models share."""

from __future__ import annotations

from typing import Any

import torch

from tinynet import nn


def conv_norm(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, activation: str | None = None
) -> nn.Sequential:
    """A convolution that keeps the size of the image (divided by `stride`), its normalization, and its activation."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, activation=activation))


@torch.no_grad()
def initialize(model: torch.nn.Module) -> None:
    """He et al.'s initialization of all filters, by the number of outputs, as torchvision's models have it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                module.bias.zero_()


def initialize_linear(*layers: Any) -> None:
    """Weights of standard deviation 0.01 and zeros for biases."""
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, 0.01)
        nn.init.zeros_(layer.bias)

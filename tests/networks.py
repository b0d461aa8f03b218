"""The models of `tinynet.models` and DenseNet, built from `tinynet.nn` or `torch.nn`.

Each has the structure of its paper and few channels, so that a test compares both builds, with one state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tinynet import models
from tinynet.models import airbench, convnext, mobilenet_v2, resnet, unet, vgg
from tinynet.models import layers as layers_of_models

Namespace = Any  # torch.nn or tinynet.nn


class _Norm(torch.nn.BatchNorm2d):
    """torch.nn's normalization with what tinynet's computes in the same kernel."""

    def __init__(self, *arguments: Any, activation: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.activation = ACTIVATIONS[activation]

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(input)
        return self.activation(y if residual is None else y + residual)


class _Convolution(torch.nn.Conv2d):
    def __init__(self, *arguments: Any, activation: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.activation = ACTIVATIONS[activation]

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(super().forward(input))


class _Linear(torch.nn.Linear):
    def __init__(self, *arguments: Any, activation: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.activation = ACTIVATIONS[activation]

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(super().forward(input))


class _ChannelNorm(torch.nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "gelu": torch.nn.functional.gelu,
}


@contextmanager
def torch_layers() -> Iterator[None]:
    """Within it, the models of `tinynet.models` are built from torch.nn's layers, under the same names."""
    layers = {name: value for name, value in vars(torch.nn).items() if not name.startswith("_")}
    own = {"BatchNorm2d": _Norm, "Conv2d": _Convolution, "Linear": _Linear}
    namespace = SimpleNamespace(**{**layers, **own})
    with ExitStack() as stack:
        for module in (airbench, convnext, layers_of_models, mobilenet_v2, resnet, unet, vgg):
            stack.enter_context(mock.patch.object(module, "nn", namespace))
        stack.enter_context(mock.patch.object(convnext, "ChannelNorm", _ChannelNorm))
        yield


class Concatenated(torch.nn.Module):
    """x beside body(x), as in DenseNet (Huang et al. 2017)."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


def conv_norm(nn: Namespace, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[Any]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def densenet121(nn: Namespace, growth: int = 4) -> torch.nn.Module:
    """DenseNet-121: each layer reads the outputs of all before it in its block."""
    channels = 2 * growth
    layers = [*conv_norm(nn, 3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
        for _ in range(count):
            body = [nn.BatchNorm2d(channels), nn.ReLU(), *conv_norm(nn, channels, 4 * growth, 1), nn.ReLU()]
            layers.append(Concatenated(nn.Sequential(*body, nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False))))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, 10))


def zoo(model: Callable[..., torch.nn.Module], *arguments: Any, **options: Any) -> Callable[[Namespace], Any]:
    """A model of `tinynet.models`; for the namespace torch.nn, built from its layers."""

    def build(nn: Namespace) -> torch.nn.Module:
        if nn is not torch.nn:
            return model(*arguments, **options)
        with torch_layers():
            return model(*arguments, **options)

    return build


SMALL, LARGE = (3, 32, 32), (3, 64, 64)

# By name: how to build it, and the side of its images.
NETWORKS: dict[str, tuple[Callable[[Namespace], torch.nn.Module], int]] = {
    "ResNet-18, CIFAR": (zoo(models.ResNet, SMALL, 10, depth=18, width=8), 16),
    "ResNet-18": (zoo(models.ResNet, LARGE, 10, depth=18, width=8), 64),
    "ResNet-50, CIFAR": (zoo(models.ResNet, SMALL, 10, depth=50, width=4), 16),
    "ResNet-50": (zoo(models.ResNet, LARGE, 10, depth=50, width=4), 64),
    "VGG-11": (zoo(models.VGG, SMALL, 10, width=8, hidden_size=32, grid=2, dropout=0.0), 32),
    "MobileNetV2": (zoo(models.MobileNetV2, LARGE, 10, width=0.25, dropout=0.0), 64),
    "DenseNet-121": (densenet121, 64),
    "U-Net": (zoo(models.UNet, 3, 10, width=8, depth=2), 16),
    "ConvNeXt-T": (zoo(models.ConvNeXt, LARGE, 10, channels=(8, 16, 32, 64)), 64),
    "Airbench": (zoo(models.Airbench, SMALL, 10, widths=(16, 24, 24)), 32),
}

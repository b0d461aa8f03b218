"""Networks that people use, built from any namespace of modules: `torch.nn` or `tinynet.nn`.

Each has the structure of its paper and few channels, so that a test compares both builds, with one state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Namespace = Any  # torch.nn or tinynet.nn


class Residual(torch.nn.Module):
    """relu(body(x) + shortcut(x)), as in ResNet (He et al. 2016)."""

    def __init__(self, nn: Namespace, body: torch.nn.Module, shortcut: torch.nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


class Concatenated(torch.nn.Module):
    """x beside body(x), as in DenseNet (Huang et al. 2017)."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


class Added(torch.nn.Module):
    """x + body(x), as in MobileNetV2 (Sandler et al. 2018)."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def conv_norm(nn: Namespace, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[Any]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def resnet(nn: Namespace, blocks: Sequence[int], *, bottleneck: bool, cifar: bool, width: int = 8) -> torch.nn.Module:
    """ResNet-18 has blocks (2, 2, 2, 2), ResNet-50 (3, 4, 6, 3) with bottlenecks."""
    if cifar:
        stem = [*conv_norm(nn, 3, width, 3), nn.ReLU()]
    else:
        stem = [*conv_norm(nn, 3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    layers, inputs = [], width
    for stage, count in enumerate(blocks):
        inner = width << stage
        outputs = 4 * inner if bottleneck else inner
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                body = [*conv_norm(nn, inputs, inner, 1), nn.ReLU(), *conv_norm(nn, inner, inner, 3, stride)]
                body += [nn.ReLU(), *conv_norm(nn, inner, outputs, 1)]
            else:
                body = [*conv_norm(nn, inputs, inner, 3, stride), nn.ReLU(), *conv_norm(nn, inner, inner, 3)]
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(nn, inputs, outputs, 1, stride))
            layers.append(Residual(nn, nn.Sequential(*body), shortcut))
            inputs = outputs
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def vgg(nn: Namespace, width: int = 8) -> torch.nn.Module:
    """VGG-11 with batch normalization (Simonyan & Zisserman 2015)."""
    layers, inputs = [], 3
    for outputs, pools in ((1, True), (2, True), (4, False), (4, True), (8, False), (8, True)):
        layers += [*conv_norm(nn, inputs, outputs * width, 3), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pools else []
        inputs = outputs * width
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inputs, 32), nn.ReLU(), nn.Linear(32, 10)]
    return nn.Sequential(*layers, *head)


def mobilenet_v2(nn: Namespace) -> torch.nn.Module:
    """MobileNetV2: inverted residuals with depthwise convolutions (expansion, outputs, repeats, stride)."""
    layers = [*conv_norm(nn, 3, 8, 3, 2), nn.ReLU6()]
    inputs = 8
    stages = ((1, 8, 1, 1), (6, 8, 2, 2), (6, 12, 3, 2), (6, 16, 4, 2), (6, 24, 3, 1), (6, 32, 3, 2), (6, 40, 1, 1))
    for expansion, outputs, repeats, stride in stages:
        for repeat in range(repeats):
            step, hidden = 1 if repeat else stride, inputs * expansion
            body = [*conv_norm(nn, inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
            body += [*conv_norm(nn, hidden, hidden, 3, step, groups=hidden), nn.ReLU6()]
            body = nn.Sequential(*body, *conv_norm(nn, hidden, outputs, 1))
            layers.append(Added(body) if step == 1 and inputs == outputs else body)
            inputs = outputs
    layers += [*conv_norm(nn, inputs, 64, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0)]
    return nn.Sequential(*layers, nn.Linear(64, 10))


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


class UNet(torch.nn.Module):
    """U-Net (Ronneberger et al. 2015) with bilinear upsampling: [N, 3, H, W] to 10 logits for each pixel."""

    def __init__(self, nn: Namespace, width: int = 8) -> None:
        super().__init__()

        def twice(inputs: int, outputs: int) -> torch.nn.Module:
            first, second = conv_norm(nn, inputs, outputs, 3), conv_norm(nn, outputs, outputs, 3)
            return nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU())

        self.down = nn.ModuleList([twice(3, width), twice(width, 2 * width)])
        self.bottom = twice(2 * width, 4 * width)
        self.up = nn.ModuleList([twice(6 * width, 2 * width), twice(3 * width, width)])
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, 10, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for block in self.up:
            x = block(torch.cat((skipped.pop(), self.upsample(x)), 1))
        return self.head(x)


class ChannelNorm(torch.nn.Module):
    """LayerNorm over the channels of images."""

    def __init__(self, nn: Namespace, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(torch.nn.Module):
    """x + gamma linear(gelu(linear(norm(depthwise(x))))) (Liu et al. 2022)."""

    def __init__(self, nn: Namespace, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.mlp(y)).permute(0, 3, 1, 2)


def convnext_tiny(nn: Namespace, width: int = 8) -> torch.nn.Module:
    """ConvNeXt-T: stages of 3, 3, 9 and 3 blocks."""
    layers: list[Any] = [nn.Conv2d(3, width, 4, 4), ChannelNorm(nn, width)]
    for stage, count in enumerate((3, 3, 9, 3)):
        channels = width << stage
        if stage:
            layers += [ChannelNorm(nn, channels // 2), nn.Conv2d(channels // 2, channels, 2, 2)]
        layers += [ConvNeXtBlock(nn, channels) for _ in range(count)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(channels), nn.Linear(channels, 10)
    )


# By name: how to build it, and the side of its images.
NETWORKS: dict[str, tuple[Callable[[Namespace], torch.nn.Module], int]] = {
    "ResNet-18, CIFAR": (lambda nn: resnet(nn, (2, 2, 2, 2), bottleneck=False, cifar=True), 16),
    "ResNet-18": (lambda nn: resnet(nn, (2, 2, 2, 2), bottleneck=False, cifar=False), 64),
    "ResNet-50, CIFAR": (lambda nn: resnet(nn, (3, 4, 6, 3), bottleneck=True, cifar=True, width=4), 16),
    "ResNet-50": (lambda nn: resnet(nn, (3, 4, 6, 3), bottleneck=True, cifar=False, width=4), 64),
    "VGG-11": (vgg, 32),
    "MobileNetV2": (mobilenet_v2, 64),
    "DenseNet-121": (densenet121, 64),
    "U-Net": (UNet, 16),
    "ConvNeXt-T": (convnext_tiny, 64),
}

"""The distinct convolutions of well-known networks, for images of 224 x 224 pixels unless a name says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Layer(NamedTuple):
    """A convolution.

    Attributes:
        kind: what a geometric mean is taken over.
        network: where it is from.
        C, K: channels in and out.
        size: of the input, one number for each spatial axis.
        kernel_size: the same for every axis, as are stride and padding.
        stride, padding, groups: as of torch.nn.functional.conv2d.
        transposed: whether it is a transposed convolution.
        batch: images, where the network or the task has a usual number.
    """

    kind: str
    network: str
    C: int
    size: tuple[int, ...]
    K: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False
    batch: int | None = None

    @property
    def function(self) -> str:
        """Its name in torch.nn.functional."""
        return f"conv_transpose{len(self.size)}d" if self.transposed else f"conv{len(self.size)}d"

    @property
    def options(self) -> dict[str, Any]:
        """Its arguments there."""
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}

    @property
    def suits_winograd(self) -> bool:
        """Whether Winograd's algorithm computes it with a quarter of the multiplications."""
        return (self.kernel_size, self.stride, self.groups, len(self.size)) == (3, 1, 1, 2) and not self.transposed

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weight."""
        channels = (self.C, self.K // self.groups) if self.transposed else (self.K, self.C // self.groups)
        return *channels, *[self.kernel_size] * len(self.size)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Of the result, one number for each spatial axis."""
        if self.transposed:
            return tuple((n - 1) * self.stride - 2 * self.padding + self.kernel_size for n in self.size)
        return tuple((n + 2 * self.padding - self.kernel_size) // self.stride + 1 for n in self.size)


def _square(kind: str, network: str, kernel_size: int, padding: int, *sizes: tuple[int, ...]) -> Iterator[Layer]:
    """Layers of (C, side of the image, K, stride, groups)."""
    for C, side, K, stride, groups in sizes:
        yield Layer(kind, network, C, (side, side), K, kernel_size, stride, padding, groups)


LAYERS = (
    *_square("stem", "ResNet-50", 7, 3, (3, 224, 64, 2, 1)),
    *_square("stem", "MobileNetV2", 3, 1, (3, 224, 32, 2, 1)),
    *_square("stem", "VGG-11", 3, 1, (3, 224, 64, 1, 1)),
    *_square("stem", "ConvNeXt-T", 4, 0, (3, 224, 96, 4, 1)),
    *_square("stem", "ResNet-18 on CIFAR", 3, 1, (3, 32, 64, 1, 1)),
    *_square("stem", "classifier of digits", 3, 1, (1, 28, 32, 1, 1)),
    *_square("3x3", "ResNet-50", 3, 1, *((C, side, C, 1, 1) for C, side in ((64, 56), (128, 28), (256, 14), (512, 7)))),
    *_square("3x3", "VGG-11", 3, 1, (64, 112, 128, 1, 1), (128, 56, 256, 1, 1), (256, 56, 256, 1, 1)),
    *_square("3x3", "VGG-11", 3, 1, (256, 28, 512, 1, 1), (512, 28, 512, 1, 1), (512, 14, 512, 1, 1)),
    *_square("3x3", "classifier of digits", 3, 1, (32, 28, 32, 1, 1), (32, 14, 64, 1, 1)),
    *_square("3x3 stride 2", "ResNet-50", 3, 1, (128, 56, 128, 2, 1), (256, 28, 256, 2, 1), (512, 14, 512, 2, 1)),
    *_square("1x1", "ResNet-50", 1, 0, (64, 56, 64, 1, 1), (64, 56, 256, 1, 1), (256, 56, 64, 1, 1)),
    *_square("1x1", "ResNet-50", 1, 0, (256, 56, 128, 1, 1), (128, 28, 512, 1, 1), (512, 28, 128, 1, 1)),
    *_square("1x1", "ResNet-50", 1, 0, (512, 28, 256, 1, 1), (256, 14, 1024, 1, 1), (1024, 14, 256, 1, 1)),
    *_square("1x1", "ResNet-50", 1, 0, (1024, 14, 512, 1, 1), (512, 7, 2048, 1, 1), (2048, 7, 512, 1, 1)),
    *_square("1x1", "MobileNetV2", 1, 0, (32, 112, 16, 1, 1), (16, 112, 96, 1, 1), (96, 56, 24, 1, 1)),
    *_square("1x1", "MobileNetV2", 1, 0, (24, 56, 144, 1, 1), (144, 56, 24, 1, 1), (144, 28, 32, 1, 1)),
    *_square("1x1", "MobileNetV2", 1, 0, (32, 28, 192, 1, 1), (192, 28, 32, 1, 1), (192, 14, 64, 1, 1)),
    *_square("1x1", "MobileNetV2", 1, 0, (64, 14, 384, 1, 1), (384, 14, 64, 1, 1), (384, 14, 96, 1, 1)),
    *_square("1x1", "MobileNetV2", 1, 0, (96, 14, 576, 1, 1), (576, 14, 96, 1, 1), (576, 7, 160, 1, 1)),
    *_square("1x1", "MobileNetV2", 1, 0, (160, 7, 960, 1, 1), (960, 7, 160, 1, 1), (960, 7, 320, 1, 1)),
    *_square("1x1", "MobileNetV2", 1, 0, (320, 7, 1280, 1, 1)),
    *_square("1x1 stride 2", "ResNet-50", 1, 0, (256, 56, 512, 2, 1), (512, 28, 1024, 2, 1), (1024, 14, 2048, 2, 1)),
    *_square("2x2 stride 2", "ConvNeXt-T", 2, 0, (96, 56, 192, 2, 1), (192, 28, 384, 2, 1), (384, 14, 768, 2, 1)),
    *_square("5x5", "AlexNet", 5, 2, (64, 27, 192, 1, 1)),
    *_square("5x5", "Inception", 5, 2, (48, 28, 64, 1, 1)),
    *_square("depthwise 3x3", "MobileNetV2", 3, 1, (32, 112, 32, 1, 32), (96, 112, 96, 2, 96), (144, 56, 144, 1, 144)),
    *_square("depthwise 3x3", "MobileNetV2", 3, 1, (144, 56, 144, 2, 144), (192, 28, 192, 1, 192)),
    *_square("depthwise 3x3", "MobileNetV2", 3, 1, (192, 28, 192, 2, 192), (384, 14, 384, 1, 384)),
    *_square("depthwise 3x3", "MobileNetV2", 3, 1, (576, 14, 576, 1, 576), (576, 14, 576, 2, 576)),
    *_square("depthwise 3x3", "MobileNetV2", 3, 1, (960, 7, 960, 1, 960)),
    *_square("depthwise 5x5", "EfficientNet", 5, 2, (240, 28, 240, 1, 240), (672, 14, 672, 2, 672)),
    *_square("depthwise 7x7", "ConvNeXt-T", 7, 3, (96, 56, 96, 1, 96), (192, 28, 192, 1, 192)),
    *_square("depthwise 7x7", "ConvNeXt-T", 7, 3, (384, 14, 384, 1, 384), (768, 7, 768, 1, 768)),
    *_square("grouped", "ResNeXt-50", 3, 1, (128, 56, 128, 1, 32), (256, 56, 256, 2, 32), (256, 28, 256, 1, 32)),
    *_square("grouped", "ResNeXt-50", 3, 1, (512, 28, 512, 2, 32), (512, 14, 512, 1, 32), (1024, 14, 1024, 2, 32)),
    *_square("grouped", "ResNeXt-50", 3, 1, (1024, 7, 1024, 1, 32)),
    *(Layer("conv1d", "audio", 128, (4000,), 128, taps, padding=taps // 2, batch=64) for taps in (3, 9, 41)),
    Layer("conv3d", "video", 32, (16, 56, 56), 32, 3, padding=1, batch=8),
    Layer("transposed", "DCGAN", 100, (1, 1), 512, 4, transposed=True, batch=64),
    *(
        Layer("transposed", "DCGAN", C, (side, side), K, 4, 2, 1, transposed=True, batch=64)
        for C, side, K in ((512, 4, 256), (256, 8, 128), (128, 16, 64), (64, 32, 3))
    ),
    *(
        Layer("transposed", "U-Net", C, (side, side), C // 2, 2, 2, transposed=True)
        for C, side in ((512, 28), (256, 56), (128, 112))
    ),
)

"""MobileNetV2."""

from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape
from tinynet.models.layers import conv_norm, initialize, initialize_linear
from tinynet.nn.sequential import in_turn

# Expansion, channels, blocks, and stride of the first block, of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class _InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise one, a 1x1 convolution back, and the input added if it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.is_residual = stride == 1 and inputs == outputs
        hidden = inputs * expansion
        layers: list[nn.Module] = [conv_norm(inputs, hidden, 1, activation="relu6")] if expansion > 1 else []
        layers.append(conv_norm(hidden, hidden, 3, stride, groups=hidden, activation="relu6"))
        self.conv = nn.Sequential(*layers, *conv_norm(hidden, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_residual:
            return self.conv(x)
        *layers, norm = self.conv
        return norm(in_turn(x, *layers), x)


class MobileNetV2(nn.Module):
    """A network of inverted residuals whose state_dict is that of torchvision's mobilenet_v2.

    Args:
        image_shape: (C, H, W) of an image.
        classes: number of logits per image.
        width: factor of the numbers of channels, which are rounded to multiples of 8.
        dropout: dropout probability before the last layer in training.

    Raises:
        ValueError: a size that is not positive.

    Source: Sandler et al. 2018, "MobileNetV2: Inverted residuals and linear bottlenecks"; torchvision.models.mobilenet.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 224, 224),
        classes: int = 1000,
        width: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=1)
        check_classes(classes)
        inputs, last = _scaled(32, width), _scaled(1280, max(1.0, width))
        layers: list[nn.Module] = [conv_norm(image_shape[0], inputs, 3, 2, activation="relu6")]
        for expansion, channels, count, stride in STAGES:
            outputs = _scaled(channels, width)
            for block in range(count):
                layers.append(_InvertedResidual(inputs, outputs, 1 if block else stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, conv_norm(inputs, last, 1, activation="relu6"))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        initialize(self)
        initialize_linear(self.classifier[1])

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


def _scaled(channels: int, width: float) -> int:
    """A multiple of 8 near channels width, at least 8 and not below nine tenths of it."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded

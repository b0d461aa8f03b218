"""A convolutional network of five layers for small images."""

from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape, check_sizes
from tinynet.models.layers import conv_norm


class ConvNet(nn.Module):
    """Five 3x3 convolutions, each with normalization and GELU, two 2x2 max-poolings, the maxima, and a linear layer.

    The convolutions have width, width, 2 width, 2 width and 4 width channels; a pooling follows each pair.

    Args:
        image_shape: (C, H, W) of an image; H and W must be at least 4.
        classes: number of logits per image.
        width: channels of the first convolution.

    Raises:
        ValueError: an image smaller than 4 x 4 pixels, or a size that is not positive.
    """

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, width: int = 32) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=4)
        check_classes(classes)
        check_sizes(width=width)
        self.layers = nn.Sequential(
            *conv_norm(image_shape[0], width, 3, activation="gelu"),
            *conv_norm(width, width, 3, activation="gelu"),
            nn.MaxPool2d(2),
            *conv_norm(width, 2 * width, 3, activation="gelu"),
            *conv_norm(2 * width, 2 * width, 3, activation="gelu"),
            nn.MaxPool2d(2),
            *conv_norm(2 * width, 4 * width, 3, activation="gelu"),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        return self.layers(images)

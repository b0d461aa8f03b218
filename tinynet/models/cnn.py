"""A small convolutional network for images."""

from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape


class CNN(nn.Module):
    """Two 3x3 convolutions with 32 and 64 channels, each followed by 2x2 max-pooling, then two linear layers.

    After LeCun et al., "Gradient-based learning applied to document recognition" (1998), with ReLU and
    max-pooling. An image of 28x28 pixels has 64 * 7 * 7 = 3,136 features before the linear layers.

    Args:
        image_shape: (C, H, W) of an image; H and W must be at least 4.
        classes: number of logits per image.
        activation: of the convolutions and the hidden linear layer.

    Raises:
        ValueError: an image smaller than 4 x 4 pixels, or a size that is not positive.
    """

    def __init__(
        self, image_shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, activation: str = "relu"
    ) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=4)
        check_classes(classes)
        channels, height, width = image_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1, activation=activation),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, activation=activation),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 128, activation=activation),
            nn.Linear(128, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        return self.classifier(self.features(images))

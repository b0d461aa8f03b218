"""VGG networks with batch normalization."""

from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape
from tinynet.models.layers import initialize, initialize_linear

# Convolutions in each stage, which a pooling ends.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """3x3 convolutions with normalization in five stages, and three linear layers.

    Its state_dict is that of torchvision's vgg11_bn, vgg13_bn, vgg16_bn or vgg19_bn.

    Args:
        image_shape: (C, H, W) of an image; H and W must be at least 32.
        classes: number of logits per image.
        depth: 11, 13, 16 or 19 layers.
        width: channels of the first stage.
        hidden_size: units of the hidden linear layers.
        grid: the last features are averaged to grid x grid pixels.
        dropout: dropout probability of the hidden linear layers in training.

    Raises:
        ValueError: an unknown depth, an image smaller than 32 x 32 pixels, or a size that is not positive.

    Source: Simonyan and Zisserman 2015, "Very deep convolutional networks"; torchvision.models.vgg.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 224, 224),
        classes: int = 1000,
        depth: int = 11,
        width: int = 64,
        hidden_size: int = 4096,
        grid: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=32)
        check_classes(classes)
        if depth not in STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, STAGES))}, got {depth}")
        layers: list[nn.Module] = []
        inputs = image_shape[0]
        for stage, count in enumerate(STAGES[depth]):
            outputs = width << min(stage, 3)
            for _ in range(count):
                layers += nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        hidden = nn.Linear(inputs * grid**2, hidden_size), nn.Linear(hidden_size, hidden_size)
        last = nn.Linear(hidden_size, classes)
        self.classifier = nn.Sequential(
            hidden[0], nn.ReLU(), nn.Dropout(dropout), hidden[1], nn.ReLU(), nn.Dropout(dropout), last
        )
        initialize(self)
        initialize_linear(*hidden, last)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))

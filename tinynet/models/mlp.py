"""A multilayer perceptron for images."""

import math
from itertools import pairwise

from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape


class MLP(nn.Module):
    """Linear layers with a fused activation, then one linear layer to the logits.

    Args:
        image_shape: (C, H, W) of an image.
        classes: number of logits per image.
        hidden_sizes: number of units of each hidden layer.
        activation: of the hidden layers.

    Raises:
        ValueError: a size that is not positive.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        hidden_sizes: tuple[int, ...] = (512, 256),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=1)
        check_classes(classes)
        sizes = (math.prod(image_shape), *hidden_sizes)
        hidden = [nn.Linear(size, next_size, activation=activation) for size, next_size in pairwise(sizes)]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        return self.layers(images)

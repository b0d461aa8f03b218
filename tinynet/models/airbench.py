"""A small network that learns CIFAR-10 quickly."""

import torch
from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape


class Airbench(nn.Module):
    """A frozen 2x2 convolution that whitens its patches, and three blocks of two 3x3 convolutions.

    A block is convolution, 2x2 max-pooling, normalization, GELU, convolution, normalization, GELU; its normalizations
    have no weights, its filters begin as the identity. A linear layer of the last features' maxima gives logits, which
    are scaled down. Call `whiten` with training images before the training.

    Args:
        image_shape: (C, H, W) of an image; H and W must be at least 9.
        classes: number of logits per image.
        widths: channels of each block.
        scale: of the logits.

    Raises:
        ValueError: an image smaller than 9 x 9 pixels, or a size that is not positive.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU".
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        widths: tuple[int, ...] = (64, 256, 256),
        scale: float = 1 / 9,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=1 + 2 ** len(widths))
        check_classes(classes)
        inputs = 8 * image_shape[0]  # 2 filters for each of the patch's components
        self.whitening = nn.Conv2d(image_shape[0], inputs, 2, activation="gelu")
        self.whitening.weight.requires_grad_(False)
        layers: list[nn.Module] = []
        for width in widths:
            layers += _convolution(inputs, width), nn.MaxPool2d(2), _norm(width)
            layers += _convolution(width, width), _norm(width)
            inputs = width
        self.blocks = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(inputs, classes, bias=False)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        return self.scale * self.head(self.blocks(self.whitening(images)))

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Sets the first filters to the principal components of the images' 2x2 patches, each of variance 1, and minus.

        The images [N, C, H, W] are as the model gets them; some 5,000 are enough. eps is added to the variances.
        """
        weight = self.whitening.weight
        windows = images.double().cpu().unfold(2, 2, 1).unfold(3, 2, 1)
        patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, weight[0].numel())
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = components.T.flip(0) / torch.sqrt(variances.flip(0)[:, None] + eps)
        weight.copy_(torch.cat((filters, -filters)).reshape(weight.shape))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4, activation="gelu")
    layer.weight.requires_grad_(False)
    return layer

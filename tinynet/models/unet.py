"""U-Net, for a class of each pixel."""

import torch
from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_sizes
from tinynet.models.layers import conv_norm


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers = [*conv_norm(inputs, outputs, 3, activation="relu"), *conv_norm(outputs, outputs, 3, activation="relu")]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Convolutions on ever smaller images, and back up with what was seen on the way down.

    As in the paper, but with normalizations, padding (the output has the images' size) and bilinear upsampling.

    Args:
        channels: of the images.
        classes: number of logits per pixel.
        width: channels of the first level; each one below has twice as many.
        depth: levels below the first; the sides of an image must be multiples of 2^depth.

    Raises:
        ValueError: a size that is not positive.

    Source: Ronneberger et al. 2015, "U-Net: Convolutional networks for biomedical image segmentation".

    Example:
        >>> UNet(channels=3, classes=10, width=8, depth=2)(torch.randn(1, 3, 16, 24)).shape
        torch.Size([1, 10, 16, 24])
    """

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes, width=width, depth=depth)
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList([_twice(*each) for each in zip([channels, *widths], widths, strict=False)])
        self.up = nn.ModuleList([_twice(3 * each, each) for each in reversed(widths[:-1])])
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes, H, W].

        Raises:
            ValueError: a side that is no multiple of 2^depth.
        """
        multiple = 1 << len(self.up)
        if any(side % multiple for side in images.shape[2:]):
            raise ValueError(f"the sides of images must be multiples of {multiple}, got {list(images.shape)}")
        x = self.down[0](images)
        above = []
        for block in list(self.down)[1:]:
            above.append(x)
            x = block(self.pool(x))
        for block in self.up:
            x = block(torch.cat((above.pop(), self.upsample(x)), 1))
        return self.head(x)

"""ConvNeXt."""

import torch
from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape
from tinynet.nn.sequential import in_turn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of images [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """x + scale linear(gelu(linear(norm(depthwise(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            nn.Identity(),  # torchvision permutes here, and has the activation in the next one's place
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels, activation="gelu"),
            nn.Identity(),
            nn.Linear(4 * channels, channels),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        depthwise, *layers = self.block
        y = in_turn(depthwise(x).permute(0, 2, 3, 1), *layers)
        return x + self.layer_scale * y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A network of depthwise 7x7 convolutions, without stochastic depth, with torchvision's state_dict.

    Args:
        image_shape: (C, H, W) of an image; H and W must be at least 32.
        classes: number of logits per image.
        blocks, channels: of each stage.

    Raises:
        ValueError: an image smaller than 32 x 32 pixels, or a size that is not positive.

    Source: Liu et al. 2022, "A ConvNet for the 2020s"; torchvision.models.convnext.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 224, 224),
        classes: int = 1000,
        blocks: tuple[int, ...] = (3, 3, 9, 3),
        channels: tuple[int, ...] = (96, 192, 384, 768),
    ) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=32)
        check_classes(classes)
        width = channels[0]
        layers = [nn.Sequential(nn.Conv2d(image_shape[0], width, 4, 4), ChannelNorm(width, eps=1e-6))]
        for count, outputs in zip(blocks, channels, strict=True):
            if len(layers) > 1:
                layers.append(nn.Sequential(ChannelNorm(width, eps=1e-6), nn.Conv2d(width, outputs, 2, 2)))
            layers.append(nn.Sequential(*(_Block(outputs) for _ in range(count))))
            width = outputs
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(ChannelNorm(width, eps=1e-6), nn.Flatten(), nn.Linear(width, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        return self.classifier(self.avgpool(self.features(images)))

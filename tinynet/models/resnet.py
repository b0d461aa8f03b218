"""Residual networks of 18, 34 and 50 layers."""

from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_classes, check_image_shape
from tinynet.models.layers import conv_norm, initialize
from tinynet.nn.sequential import in_turn

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # blocks


class _Block(nn.Module):
    """relu(convolutions(x) + shortcut(x)): two of 3x3 or, with a bottleneck, 1x1, 3x3 and 1x1 to 4 times the width."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        if not bottleneck:
            sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        for index, (ins, outs, size, step) in enumerate(sizes, start=1):
            self.add_module(f"conv{index}", nn.Conv2d(ins, outs, size, step, size // 2, bias=False))
            self.add_module(f"bn{index}", nn.BatchNorm2d(outs, activation="relu"))
        is_same = stride == 1 and inputs == outputs
        self.downsample = nn.Sequential() if is_same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        *layers, norm, shortcut = self.children()
        return norm(in_turn(x, *layers), shortcut(x))  # adds before it applies its activation


class ResNet(nn.Module):
    """A residual network whose state_dict is that of torchvision's resnet18, resnet34 or resnet50.

    Args:
        image_shape: (C, H, W) of an image.
        classes: number of logits per image.
        depth: 18, 34 or 50 layers; those of 50 have bottlenecks.
        stem: "imagenet", a 7x7 convolution of stride 2 and pooling, or "cifar", a 3x3 one; None: by the image's size.
        width: channels of the first stage.

    Raises:
        ValueError: an unknown depth or stem, or a size that is not positive.

    Source: He et al. 2016, "Deep residual learning for image recognition"; torchvision.models.resnet.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 224, 224),
        classes: int = 1000,
        depth: int = 18,
        stem: str | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        check_image_shape(image_shape, smallest_side=1)
        check_classes(classes)
        stem = stem or ("cifar" if min(image_shape[1:]) < 64 else "imagenet")
        if depth not in STAGES or stem not in ("cifar", "imagenet"):
            raise ValueError(f"depth must be 18, 34 or 50 and stem 'cifar' or 'imagenet', got {depth} and {stem!r}")
        size, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = nn.Conv2d(image_shape[0], width, size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width, activation="relu")
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(STAGES[depth]):
            outputs = (width << stage) * (4 if depth == 50 else 1)
            blocks = [_Block(inputs, width << stage, 2 if stage else 1, depth == 50)]
            blocks += [_Block(outputs, width << stage, 1, depth == 50) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, C, H, W] to logits [N, classes]."""
        *layers, fc = self.children()
        return fc(in_turn(images, *layers).flatten(1))

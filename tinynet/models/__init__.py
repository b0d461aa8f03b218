"""Models built from `tinynet.nn`. Image models can also be built by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tinynet import nn
from tinynet.models.airbench import Airbench
from tinynet.models.char_language_model import CharLanguageModel
from tinynet.models.cnn import CNN
from tinynet.models.convnet import ConvNet
from tinynet.models.convnext import ConvNeXt
from tinynet.models.forecaster import Forecaster
from tinynet.models.mlp import MLP
from tinynet.models.mobilenet_v2 import MobileNetV2
from tinynet.models.resnet import ResNet
from tinynet.models.sequence_classifier import SequenceClassifier
from tinynet.models.unet import UNet
from tinynet.models.vgg import VGG

MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    "cnn": CNN,
    "mlp": MLP,
    "airbench": Airbench,
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "resnet50": partial(ResNet, depth=50),
    "vgg11": partial(VGG, depth=11),
    "mobilenet-v2": MobileNetV2,
    "convnext-tiny": ConvNeXt,
}

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "VGG",
    "Airbench",
    "CharLanguageModel",
    "ConvNeXt",
    "ConvNet",
    "Forecaster",
    "MobileNetV2",
    "ResNet",
    "SequenceClassifier",
    "UNet",
    "build",
]


def build(name: str, **arguments: Any) -> nn.Module:
    """Builds an image model by name.

    Args:
        name: a key of `MODELS`.
        **arguments: of the model's class: `image_shape` (C, H, W), `classes`, and others.

    Raises:
        ValueError: an unknown model, or a size that the model does not support.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join(MODELS)}")
    return MODELS[name](**arguments)

"""The pictures that a run writes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tinynet import nn
from tinynet.data import ImageData, SunspotData
from tinynet.train.pictures import (
    can_draw,
    confusion_matrix,
    draw_confusion,
    draw_curve,
    draw_filters,
    draw_forecast,
    draw_samples,
)
from tinynet.train.trainer import Trainer

SAMPLES, MISTAKES = 12, 6
IMAGE_PICTURES = ("curve.png", "confusion.png", "filters.png", "samples.png")
CLASSIFIER_PICTURES = ("curve.png", "confusion.png")
CURVE_PICTURES = ("curve.png",)
FORECAST_PICTURES = ("curve.png", "forecast.png")


def write_image_report(folder: Path, trainer: Trainer, data: ImageData) -> list[str]:
    """Writes curve.png, confusion.png, filters.png and samples.png.

    Returns:
        The names of the files written; none if matplotlib is not installed, which is printed in one line.
    """
    if not _can_draw_or_warn():
        return []
    outputs, targets = zip(*trainer.predict(), strict=True)
    probabilities = torch.cat(outputs).float().softmax(dim=1).cpu()
    labels = torch.cat(targets).cpu()
    predictions = probabilities.argmax(dim=1)
    images = data.test_images.float()

    draw_curve(folder / "curve.png", trainer.progress.steps, trainer.rows)
    draw_confusion(folder / "confusion.png", confusion_matrix(labels, predictions, data.classes), data.class_names)
    normalized, _ = next(iter(trainer.batches.test()))
    weight, responses = first_layer(trainer.model, normalized[:1])
    draw_filters(folder / "filters.png", weight, images[0], responses)
    chosen = choose_samples(labels, predictions, probabilities)
    draw_samples(folder / "samples.png", images[chosen], labels[chosen], probabilities[chosen], data.class_names)
    return list(IMAGE_PICTURES)


def write_classifier_report(folder: Path, trainer: Trainer, class_names: Sequence[str]) -> list[str]:
    """Writes curve.png and confusion.png; the return value is as in `write_image_report`."""
    if not _can_draw_or_warn():
        return []
    outputs, targets = zip(*trainer.predict(), strict=True)
    matrix = confusion_matrix(torch.cat(targets).cpu(), torch.cat(outputs).argmax(dim=1).cpu(), len(class_names))
    draw_curve(folder / "curve.png", trainer.progress.steps, trainer.rows)
    draw_confusion(folder / "confusion.png", matrix, class_names, trainer.unit)
    return list(CLASSIFIER_PICTURES)


def write_curve_report(folder: Path, trainer: Trainer) -> list[str]:
    """Writes curve.png; the return value is as in `write_image_report`."""
    if not _can_draw_or_warn():
        return []
    draw_curve(folder / "curve.png", trainer.progress.steps, trainer.rows)
    return list(CURVE_PICTURES)


def write_forecast_report(folder: Path, trainer: Trainer, data: SunspotData, forecast: Tensor) -> list[str]:
    """Writes curve.png and forecast.png; `forecast` is that of the held-out years, [test_years].

    The return value is as in `write_image_report`.
    """
    if not write_curve_report(folder, trainer):
        return []
    draw_forecast(folder / "forecast.png", data.years, data.sunspots, forecast, data.persistence)
    return list(FORECAST_PICTURES)


def _can_draw_or_warn() -> bool:
    if not can_draw():
        print("no pictures: matplotlib is not installed (pip install 'tinynet-triton[viz]')")
    return can_draw()


def choose_samples(labels: Tensor, predictions: Tensor, probabilities: Tensor) -> Tensor:
    """Returns indices of up to 12 images: correct ones spread over the set, then up to 6 of the surest mistakes."""
    confidence = probabilities.max(dim=1).values
    wrong = torch.nonzero(predictions != labels).flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    correct = torch.nonzero(predictions == labels).flatten()
    wanted = min(SAMPLES - len(wrong), len(correct))
    spread = torch.linspace(0, max(0, len(correct) - 1), wanted, dtype=torch.float32, device="cpu").round().long()
    return torch.cat([correct[spread], wrong])


def first_layer(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns the first layer's weights as small images, and its output for an image.

    Args:
        model: its first layer with weights is a convolution or a linear layer.
        images: [1, C, H, W] on the model's device.

    Returns:
        On the CPU: weights [filters, C, h, w], and the layer's output [filters, H, W], or None for a linear layer.
    """
    layer = next(module for module in model.modules() if "weight" in dict(module.named_parameters(recurse=False)))
    weight = layer.get_parameter("weight").detach().float().cpu()
    if weight.ndim == 2:
        return weight.reshape(len(weight), *images.shape[1:]), None
    with torch.no_grad():
        return weight, layer(images)[0].float().cpu()

"""The pictures of a run, drawn with matplotlib, which is imported only by the functions that need it."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinynet.train.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOR, TEST_COLOR, WRONG_COLOR = "#4c78a8", "#f58518", "#d62728"
MOST_FILTERS = 64


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curve(path: Path, steps: Sequence[Sequence[float]], rows: Sequence[dict[str, float]]) -> None:
    """Plots the loss and each measure against the optimizer steps, in one panel each.

    Args:
        path: the PNG file to write.
        steps: for each step, the number of samples and the sum of the loss, as in `Progress.steps`.
        rows: the rows of metrics.csv, which name the measures.
    """
    measures = [name.removeprefix("train_") for name in rows[-1] if name.startswith("train_") and name != "train_loss"]
    figure = _figure(5.5 * (1 + len(measures)), 4.2)
    loss_axes, *measure_axes = figure.subplots(1, 1 + len(measures), squeeze=False)[0]
    each_step = range(1, len(steps) + 1)
    marks = [row["step"] for row in rows]

    losses = [total / count for count, total, *_ in steps]
    loss_axes.plot(each_step, losses, color=TRAIN_COLOR, alpha=0.3, linewidth=0.8, label="train, each step")
    loss_axes.plot(marks, [row["train_loss"] for row in rows], color=TRAIN_COLOR, marker=".", label="train, epoch")
    loss_axes.plot(marks, [row["test_loss"] for row in rows], color=TEST_COLOR, marker=".", label="test")
    loss_axes.set(title="loss", xlabel="optimizer step", yscale="log")

    for axes, measure in zip(measure_axes, measures, strict=True):
        scale, unit = (100, " %") if measure == "accuracy" else (1, "")
        for part, color in (("train", TRAIN_COLOR), ("test", TEST_COLOR)):
            values = [scale * row[f"{part}_{measure}"] for row in rows]
            axes.plot(marks, values, color=color, marker=".", label=f"{part}, {values[-1]:.1f}{unit} at the end")
        axes.set(title=measure.replace("_", " ") + (" (%)" if unit else ""), xlabel="optimizer step")

    for axes in (loss_axes, *measure_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    _save(figure, path)


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Returns the confusion matrix: labels [N], predictions [N] -> counts [true class, predicted class]."""
    return torch.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def draw_confusion(path: Path, matrix: Tensor, class_names: Sequence[str], unit: str = "images") -> None:
    """Draws a confusion matrix; only the mistakes are colored, so that they stand out.

    Args:
        path: the PNG file to write.
        matrix: the counts, as returned by `confusion_matrix`.
        class_names: one name per class.
        unit: name of the samples, for the title.
    """
    classes = len(class_names)
    figure = _figure(2.2 + 0.55 * classes, 1.8 + 0.5 * classes)
    axes = figure.subplots()
    mistakes = matrix.clone().fill_diagonal_(0)
    most = max(1, int(mistakes.max()))
    axes.imshow(mistakes.numpy(), cmap="Reds", vmin=0, vmax=1.5 * most)
    for true in range(classes):
        for predicted in range(classes):
            count = int(matrix[true, predicted])
            if count:
                is_correct = true == predicted
                color = "black" if is_correct else WRONG_COLOR if count < 0.8 * most else "white"
                weight = "bold" if is_correct else "normal"
                axes.text(predicted, true, str(count), ha="center", va="center", color=color, fontweight=weight)
    correct, total = int(matrix.trace()), int(matrix.sum())
    axes.set(title=f"{correct} of {total} test {unit} correct ({100 * correct / total:.2f} %)")
    axes.set(xlabel="prediction", ylabel="true class")
    rotation = 0 if max(map(len, class_names)) <= 2 else 45
    axes.set_xticks(range(classes), class_names, rotation=rotation, ha="center" if rotation == 0 else "right")
    axes.set_yticks(range(classes), class_names)
    _save(figure, path)


def draw_filters(path: Path, weight: Tensor, image: Tensor, responses: Tensor | None) -> None:
    """Draws the filters of the first layer, those with the largest norm first.

    Args:
        path: the PNG file to write.
        weight: [filters, C, H, W]; drawn as colors for C = 3, else in red (positive) and blue (negative).
        image: [C, height, width], an example.
        responses: [filters, h, w], each filter's output for the example; None for a linear layer.
    """
    order = weight.flatten(1).norm(dim=1).argsort(descending=True, stable=True)[:MOST_FILTERS]
    panels = 1 if responses is None else 2
    columns = min(8, len(order))
    rows = math.ceil(len(order) / columns)
    figure = _figure(6 * panels, 6 * rows / columns + 0.6)
    parts = figure.subfigures(1, panels, squeeze=False)[0]

    parts[0].suptitle(f"the first layer's filters, {weight.shape[2]}x{weight.shape[3]} pixels")
    limit = float(weight.abs().max()) or 1.0
    for axes, filter_ in _grid(parts[0], rows, columns, weight[order]):
        if filter_.shape[0] == 3:
            axes.imshow((0.5 + 0.5 * filter_ / limit).permute(1, 2, 0).numpy())
        else:
            axes.imshow(filter_.mean(dim=0).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)

    if responses is not None:
        parts[1].suptitle("their outputs for the test image in the corner")
        for axes, response in _grid(parts[1], rows, columns, responses[order]):
            axes.imshow(response.numpy(), cmap="magma")
        first = parts[1].axes[0]
        inset = first.inset_axes((0.0, 0.62, 0.38, 0.38))
        inset.axis("off")
        _show_image(inset, image)
    _save(figure, path)


def draw_samples(path: Path, images: Tensor, labels: Tensor, probabilities: Tensor, class_names: Sequence[str]) -> None:
    """Draws images with the predicted probability of each class.

    Args:
        path: the PNG file to write.
        images: [N, C, H, W].
        labels: [N].
        probabilities: [N, classes].
        class_names: one name per class.
    """
    columns = 4
    rows = math.ceil(len(images) / columns)
    figure = _figure(3.6 * columns, 1.9 * rows + 0.5)
    figure.suptitle(
        "test images and the predicted probability of each class (green: true class, red: wrong prediction)"
    )
    axes_grid = figure.subplots(
        rows, 2 * columns, squeeze=False, gridspec_kw={"width_ratios": [1, 1.25] * columns}
    ).reshape(-1, 2)
    for index, (image_axes, bar_axes) in enumerate(axes_grid):
        if index >= len(images):
            image_axes.axis("off")
            bar_axes.axis("off")
            continue
        label, class_probabilities = int(labels[index]), probabilities[index]
        prediction = int(class_probabilities.argmax())
        _show_image(image_axes, images[index])
        image_axes.axis("off")
        verdict = (
            class_names[prediction] if prediction == label else f"{class_names[prediction]}, not {class_names[label]}"
        )
        image_axes.set_title(verdict, fontsize=10, color="black" if prediction == label else WRONG_COLOR)
        colors = ["#bbbbbb"] * len(class_names)
        colors[prediction] = WRONG_COLOR
        colors[label] = "#2ca02c"
        bar_axes.barh(range(len(class_names)), class_probabilities.tolist(), color=colors)
        bar_axes.set_yticks(range(len(class_names)), class_names, fontsize=7)
        bar_axes.set(xlim=(0, 1), xticks=[0, 1])
        bar_axes.tick_params(length=0, labelsize=7)
        bar_axes.invert_yaxis()
        bar_axes.spines[["top", "right"]].set_visible(False)
        probability = float(class_probabilities[prediction])
        is_long = probability > 0.75
        bar_axes.text(
            probability - 0.02 if is_long else probability + 0.02,
            prediction,
            f"{100 * probability:.0f} %",
            fontsize=7,
            va="center_baseline",
            ha="right" if is_long else "left",
            color="white" if is_long else "black",
        )
    _save(figure, path)


def draw_forecast(path: Path, years: Tensor, truth: Tensor, forecast: Tensor, persistence: Tensor) -> None:
    """Plots a series, its forecast, and the baseline forecast that repeats the previous year's value.

    Args:
        path: the PNG file to write.
        years: [N], the years of the series.
        truth: [N], the series.
        forecast: [M], the forecasts of the last M years, each from the years before it.
        persistence: [M], the baseline: the previous year's value.
    """
    figure = _figure(11, 7)
    whole_axes, axes = figure.subplots(2, 1, height_ratios=[1, 2])
    held_out = years[-len(forecast) :]
    truth_color = "black"
    whole_axes.plot(years, truth, color=truth_color, linewidth=0.8)
    whole_axes.axvspan(float(held_out[0]), float(held_out[-1]), color=TEST_COLOR, alpha=0.2, label="held out")
    axes.plot(held_out, truth[-len(forecast) :], color=truth_color, label="truth")
    for values, color, style, name in (
        (forecast, TEST_COLOR, "-", "forecast from the years before"),
        (persistence, TRAIN_COLOR, ":", "previous year's value"),
    ):
        error = float((values - truth[-len(forecast) :]).square().mean().sqrt())
        axes.plot(held_out, values, style, color=color, marker=".", label=f"{name}, RMSE {error:.1f}")
    for each in (whole_axes, axes):
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False)
        each.set(ylabel="sunspots")
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    """Writes a figure to a PNG file atomically."""
    with replacing(path) as part:
        figure.savefig(part, format="png")


def _figure(width: float, height: float) -> "Figure":
    """Returns a figure of width x height inches that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _grid(part: Any, rows: int, columns: int, tiles: Tensor) -> "list[tuple[Axes, Tensor]]":
    """Returns axes without ticks for each tile."""
    axes = part.subplots(rows, columns, squeeze=False).flatten()
    for each in axes:
        each.axis("off")
    return list(zip(axes, tiles, strict=False))


def _show_image(axes: "Axes", image: Tensor) -> None:
    """Shows an image [C, H, W], scaled to the full range of values."""
    low, high = image.min(), image.max()
    stretched = (image - low) / (high - low).clamp_min(1e-12)
    if len(image) != 3:
        stretched = stretched.mean(dim=0, keepdim=True).expand(3, -1, -1)
    axes.imshow(stretched.permute(1, 2, 0).numpy())

"""Labeled images for classification: two data sets shipped with tinynet, three downloaded by torchvision."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tinynet.data.archive import DataError, read_archive

DIGIT_NAMES = tuple("0123456789")


@dataclass(frozen=True)
class ImageData:
    """Labeled images, split into a training and a test set.

    Attributes:
        name: the data set's name, as passed to `load_images`.
        train_images: [N, C, H, W] uint8.
        train_labels: [N] int64, each in 0 .. classes - 1.
        test_images: [M, C, H, W] uint8.
        test_labels: [M] int64.
        class_names: one name per class.
        shift: recommended maximum shift of training images, in pixels; 0 for images too small to shift.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    shift: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, H, W)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def baseline(self) -> float:
        """The part of the test images that have the class most frequent among the training images."""
        most_frequent = self.train_labels.bincount().argmax()
        return (self.test_labels == most_frequent).double().mean().item()

    @property
    def background(self) -> float:
        """The mean brightness of the training images' outermost pixels, from 0 to 255."""
        images = self.train_images.double()
        sides = images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]
        return torch.cat([side.flatten() for side in sides]).mean().item()

    def __str__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        counts = f"{len(self.train_labels):,} train and {len(self.test_labels):,} test images"
        return f"{self.name}, {counts} of {shape}, {self.classes} classes"

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of each channel of the training images, [1, C, 1, 1] float32."""
        images = self.train_images.double()
        mean = images.mean(dim=(0, 2, 3), keepdim=True)
        std = images.std(dim=(0, 2, 3), keepdim=True)
        return mean.float(), std.float()


def load_images(name: str, folder: str | Path | None = None) -> ImageData:
    """Loads a data set by name.

    Args:
        name: one of `IMAGE_DATA`: `mnist5k` and `digits` are shipped with tinynet; `mnist`,
            `fashion-mnist` and `cifar10` are downloaded once by torchvision.
        folder: folder for downloads; None for `download_folder()`.

    Raises:
        DataError: unknown data set, damaged file, torchvision not installed, or failed download.
    """
    if name not in IMAGE_DATA:
        raise DataError(f"unknown image data {name!r}, expected one of {', '.join(IMAGE_DATA)}")
    if name == "mnist5k":
        return _load_mnist5k()
    if name == "digits":
        return _load_digits()
    return _load_torchvision(name, Path(folder).expanduser() if folder else download_folder())


def download_folder() -> Path:
    """Returns the folder for downloads: the environment variable `TINYNET_DATA`, or else `~/.cache/tinynet`."""
    return Path(os.environ.get("TINYNET_DATA") or "~/.cache/tinynet").expanduser()


def _load_mnist5k() -> ImageData:
    """The first 500 images of each class of MNIST; the last 100 of each class are the test set."""
    arrays = read_archive("mnist5k")
    images, labels = _as_tensors(arrays["images"], arrays["labels"])
    is_test = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for label in range(len(DIGIT_NAMES)):
        is_test[torch.nonzero(labels == label).flatten()[-100:]] = True
    return ImageData(
        name="mnist5k",
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        class_names=DIGIT_NAMES,
        shift=2,
    )


def _load_digits() -> ImageData:
    """1,797 digits of 8x8 pixels; the last 297, by other writers, are the test set."""
    arrays = read_archive("digits")
    images, labels = _as_tensors(arrays["images"], arrays["labels"])
    return ImageData(
        name="digits",
        train_images=images[:1500],
        train_labels=labels[:1500],
        test_images=images[1500:],
        test_labels=labels[1500:],
        class_names=DIGIT_NAMES,
        shift=0,
    )


# name: (class in torchvision.datasets, shift in pixels)
_TORCHVISION_SETS = {
    "mnist": ("MNIST", 2),
    "fashion-mnist": ("FashionMNIST", 2),
    "cifar10": ("CIFAR10", 2),
}

IMAGE_DATA = ("mnist5k", "digits", *_TORCHVISION_SETS)


def _load_torchvision(name: str, folder: Path) -> ImageData:
    class_name, shift = _TORCHVISION_SETS[name]
    data_set = getattr(_import_torchvision_datasets(name), class_name)
    try:
        train = data_set(str(folder), train=True, download=True)
        test = data_set(str(folder), train=False, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} could not be downloaded to {folder}: {error}") from error
    train_images, train_labels = _as_tensors(np.asarray(train.data), np.asarray(train.targets))
    test_images, test_labels = _as_tensors(np.asarray(test.data), np.asarray(test.targets))
    return ImageData(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(str(each).split(" - ")[0] for each in train.classes),
        shift=shift,
    )


def _import_torchvision_datasets(name: str) -> ModuleType:
    try:
        from torchvision import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"{name} is downloaded by torchvision, which cannot be imported ({error}): "
            "pip install 'tinynet-triton[data]'"
        ) from error
    return datasets


def _as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Converts images [N, H, W] or [N, H, W, C] to [N, C, H, W] uint8, and labels [N] to int64."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.uint8))
    return pixels, torch.from_numpy(labels.astype(np.int64))

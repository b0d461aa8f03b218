"""Shuffled batches, and batches of images, which are changed and normalized with tensor operations on any device."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tinynet.data.augmentation import Augmentation, Shift
from tinynet.data.images import ImageData


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Returns a CPU generator, so that an epoch's random numbers are the same on every device."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


class ShuffledBatches(ABC):
    """The batches of a data set that is shuffled in every epoch.

    The order depends only on the seed and the epoch, so that a run resumed in the middle of an epoch gets the same
    batches as an uninterrupted one.

    Args:
        train_count: number of training samples per epoch, at least 1.
        batch_size: samples per batch, at least 1; the last batch of an epoch may be smaller.
        seed: determines the order.
    """

    def __init__(self, train_count: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.train_count = train_count
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """The number of training batches per epoch."""
        return -(-self.train_count // self.batch_size)

    def train(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Tensor]]:
        """Yields an epoch's training batches (inputs, targets), beginning with batch `start`."""
        order = torch.randperm(self.train_count, generator=epoch_generator(self.seed, epoch), device="cpu")
        for batch in range(start, len(self)):
            yield self._train_batch(order[batch * self.batch_size : (batch + 1) * self.batch_size], epoch)

    @abstractmethod
    def test(self) -> Iterator[tuple[Any, Tensor]]:
        """Yields the test set, not shuffled, in batches (inputs, targets)."""

    @abstractmethod
    def _train_batch(self, chosen: Tensor, epoch: int) -> tuple[Any, Tensor]:
        """Returns the batch of the training samples with the indices `chosen`, [B] on the CPU."""


class ImageBatches:
    """Batches of images on a device.

    The order and the changes depend only on the seed and the epoch, so that a run resumed in the middle of an epoch
    gets the same batches as an uninterrupted one.

    Args:
        data: the images, which are copied to the device once, as uint8.
        batch_size: images per batch, at least 1; the last batch of an epoch may be smaller.
        seed: determines the order and the changes.
        shift: maximum shift of a training image in each direction, in pixels.
        device: of the batches.
        augmentation: changes the training images, instead of `shift`.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        seed: int = 0,
        shift: int = 0,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if shift < 0:
            raise ValueError(f"shift must be at least 0, got {shift}")
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = Shift(shift) if shift and augmentation is None else augmentation
        self.train_images = data.train_images.to(device)
        self.train_labels = data.train_labels.to(device)
        self.test_images = data.test_images.to(device)
        self.test_labels = data.test_labels.to(device)
        self.mean, self.std = (each.to(device) for each in data.mean_and_std())

    def __len__(self) -> int:
        """The number of training batches per epoch."""
        return -(-len(self.train_labels) // self.batch_size)

    @property
    def train_count(self) -> int:
        """The number of training images per epoch."""
        return len(self.train_labels)

    def train(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields an epoch's training batches, beginning with batch `start`: images [B, C, H, W] float32, labels [B]."""
        generator = epoch_generator(self.seed, epoch)
        count, device = len(self.train_labels), self.train_labels.device
        order = torch.randperm(count, generator=generator, device="cpu").to(device)
        augment = self.augmentation
        drawn = None if augment is None else augment.draw(count, epoch, generator).to(device)
        for batch in range(start, len(self)):
            chosen = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            images = self.train_images[order[chosen]]
            if augment is not None and drawn is not None:
                images = augment(images, drawn[chosen])
            yield self.normalize(images), self.train_labels[order[chosen]]

    def test(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the test set, not shuffled: images [B, C, H, W] float32, labels [B]."""
        for start in range(0, len(self.test_labels), batch_size):
            chosen = slice(start, start + batch_size)
            yield self.normalize(self.test_images[chosen]), self.test_labels[chosen]

    def normalize(self, images: Tensor) -> Tensor:
        """Returns the images as float32, scaled so that the training set has mean 0 and standard deviation 1."""
        return (images.float() - self.mean) / self.std

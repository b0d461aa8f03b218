"""Shuffled batches, and batches of images, which are shifted and normalized with tensor operations on any device."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

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


def shift_images(images: Tensor, shifts: Tensor) -> Tensor:
    """Shifts each image by its own number of pixels, padding with 0.

    Args:
        images: [N, C, H, W].
        shifts: [N, 2] int64 on the same device: pixels down and right; negative for up and left.

    Returns:
        [N, C, H, W], contiguous, same dtype.
    """
    count, _, height, width = images.shape
    margin = int(shifts.abs().max()) if shifts.numel() else 0
    padded = pad(images, (margin, margin, margin, margin))
    rows = torch.arange(height, device=images.device) + margin - shifts[:, :1]
    columns = torch.arange(width, device=images.device) + margin - shifts[:, 1:]
    image = torch.arange(count, device=images.device)
    # Index tensors on both sides of the channel slice move the channels last: [N, H, W, C].
    moved = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


class ImageBatches:
    """Batches of images on a device.

    The order and the shifts depend only on the seed and the epoch, so that a run resumed in the middle of an epoch gets
    the same batches as an uninterrupted one.

    Args:
        data: the images, which are copied to the device once, as uint8.
        batch_size: images per batch, at least 1; the last batch of an epoch may be smaller.
        seed: determines the order and the shifts.
        shift: maximum shift of a training image in each direction, in pixels.
        device: of the batches.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        seed: int = 0,
        shift: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if shift < 0:
            raise ValueError(f"shift must be at least 0, got {shift}")
        self.batch_size = batch_size
        self.seed = seed
        self.shift = shift
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
        order, shifts = self._draw(epoch)
        for batch in range(start, len(self)):
            chosen = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            images = self.train_images[order[chosen]]
            if self.shift:
                images = shift_images(images, shifts[chosen])
            yield self.normalize(images), self.train_labels[order[chosen]]

    def test(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the test set, not shuffled: images [B, C, H, W] float32, labels [B]."""
        for start in range(0, len(self.test_labels), batch_size):
            chosen = slice(start, start + batch_size)
            yield self.normalize(self.test_images[chosen]), self.test_labels[chosen]

    def normalize(self, images: Tensor) -> Tensor:
        """Returns the images as float32, scaled so that the training set has mean 0 and standard deviation 1."""
        return (images.float() - self.mean) / self.std

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Returns an epoch's order [N] and shifts [N, 2], drawn on the CPU to be the same on every device."""
        generator = epoch_generator(self.seed, epoch)
        count = len(self.train_labels)
        order = torch.randperm(count, generator=generator, device="cpu")
        shifts = torch.randint(-self.shift, self.shift + 1, (count, 2), generator=generator, device="cpu")
        device = self.train_labels.device
        return order.to(device), shifts.to(device)

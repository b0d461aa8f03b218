"""Surnames in 13 languages, for classification: sequences of characters of different lengths."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from tinynet.data.archive import read_archive
from tinynet.data.batches import ShuffledBatches


@dataclass(frozen=True)
class NameData:
    """Names labeled with their language, split into a training and a test set.

    Attributes:
        train_names: N names.
        train_labels: [N] int64, each an index into `languages`.
        test_names: M names.
        test_labels: [M] int64.
        languages: one name per class.
        characters: all characters of the training names, sorted.
    """

    train_names: tuple[str, ...]
    train_labels: Tensor
    test_names: tuple[str, ...]
    test_labels: Tensor
    languages: tuple[str, ...]
    characters: tuple[str, ...]

    @property
    def vocabulary_size(self) -> int:
        """The number of different indices that `encode` returns: one per character, and 0 for unknown characters."""
        return len(self.characters) + 1

    @property
    def majority(self) -> float:
        """The test accuracy of always predicting the most frequent language of the training set."""
        return float((self.test_labels == self.train_labels.bincount().argmax()).double().mean())

    def __str__(self) -> str:
        counts = f"{len(self.train_labels):,} train and {len(self.test_labels):,} test names"
        return f"names, {counts} of {len(self.characters)} different characters, {len(self.languages)} languages"

    def encode(self, name: str) -> Tensor:
        """Maps a name to indices, [length] int64: 1 + the position in `characters`, or 0 if unknown."""
        numbers = {character: number for number, character in enumerate(self.characters, start=1)}
        return torch.tensor([numbers.get(character, 0) for character in name], dtype=torch.int64, device="cpu")


def load_names() -> NameData:
    """Loads the surnames shipped with tinynet; every fifth is in the test set.

    Raises:
        DataError: the file is missing or damaged.
    """
    arrays = read_archive("names")
    names = arrays["names"].tolist()
    labels = torch.from_numpy(arrays["labels"]).long()
    is_test = torch.arange(len(names), device="cpu") % 5 == 4
    train_names = tuple(name for name, test in zip(names, is_test.tolist(), strict=True) if not test)
    return NameData(
        train_names=train_names,
        train_labels=labels[~is_test],
        test_names=tuple(name for name, test in zip(names, is_test.tolist(), strict=True) if test),
        test_labels=labels[is_test],
        languages=tuple(arrays["languages"].tolist()),
        characters=tuple(sorted(set("".join(train_names)))),
    )


class NameBatches(ShuffledBatches):
    """Batches of names on a device: indices as a `PackedSequence` of int64, not sorted by length, and labels [B].

    Args:
        data: the names.
        batch_size: names per batch, at least 1; the last batch of an epoch may be smaller.
        seed: determines the order.
        device: of the batches.
    """

    def __init__(self, data: NameData, batch_size: int, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        super().__init__(len(data.train_names), batch_size, seed)
        self.device = device
        self.train_names = [data.encode(name) for name in data.train_names]
        self.train_labels = data.train_labels
        self.test_names = [data.encode(name) for name in data.test_names]
        self.test_labels = data.test_labels

    def test(self, batch_size: int = 1000) -> Iterator[tuple[PackedSequence, Tensor]]:
        """Yields the test set, not shuffled."""
        for start in range(0, len(self.test_names), batch_size):
            names = self.test_names[start : start + batch_size]
            yield self._pack(names), self.test_labels[start : start + batch_size].to(self.device)

    def _train_batch(self, chosen: Tensor, epoch: int) -> tuple[PackedSequence, Tensor]:
        names = [self.train_names[index] for index in chosen.tolist()]
        return self._pack(names), self.train_labels[chosen].to(self.device)

    def _pack(self, names: list[Tensor]) -> PackedSequence:
        with torch.device("cpu"):  # otherwise pack_sequence puts the lengths on PyTorch's default device
            packed = pack_sequence(names, enforce_sorted=False)
        return packed.to(self.device)  # pyright: ignore[reportArgumentType]

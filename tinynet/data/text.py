"""A text, character by character, cut into windows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tinynet.data.archive import read_archive
from tinynet.data.batches import ShuffledBatches, epoch_generator

TEST_CHARACTERS = 55_200  # leaves slightly more than 3,200 windows of 128 characters


@dataclass(frozen=True)
class TextData:
    """A text, split into a training part and the held-out part that follows it.

    Attributes:
        train: [N] int64, indices into `characters`.
        test: [M] int64.
        characters: all characters of the text, sorted.
    """

    train: Tensor
    test: Tensor
    characters: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{len(self.train):,} train and {len(self.test):,} held-out characters"
        return f"text, {counts}, {len(self.characters)} different ones"

    def encode(self, text: str) -> Tensor:
        """Maps a text to the indices of its characters, [length] int64.

        Raises:
            ValueError: a character that does not occur in the text.
        """
        unknown = sorted(set(text) - set(self.characters))
        if unknown:
            raise ValueError(f"the text has no character {unknown[0]!r}")
        return _indices(text, self.characters)

    def decode(self, indices: Tensor) -> str:
        """Maps indices [length] back to a text."""
        return "".join(self.characters[index] for index in indices.tolist())


def load_text() -> TextData:
    """Loads the text shipped with tinynet, Python's documentation by topic; its last part is held out.

    Raises:
        DataError: the file is missing or damaged.
    """
    text = read_archive("text")["text"].tobytes().decode()
    characters = tuple(sorted(set(text)))
    indices = _indices(text, characters)
    return TextData(indices[:-TEST_CHARACTERS], indices[-TEST_CHARACTERS:], characters)


def _indices(text: str, characters: tuple[str, ...]) -> Tensor:
    numbers = {character: number for number, character in enumerate(characters)}
    return torch.tensor([numbers[character] for character in text], dtype=torch.int64, device="cpu")


class TextBatches(ShuffledBatches):
    """Windows of a text on a device: inputs [B, length] of characters, targets [B, length] of the next characters.

    Each epoch cuts the training text into adjacent windows, starting at a random offset, and shuffles them. The windows
    of the test text start at its beginning and are not shuffled.

    Args:
        data: the text.
        batch_size: windows per batch, at least 1; the last batch of an epoch may be smaller.
        length: characters per window, at least 1 and at most half of the shorter part.
        seed: determines the offset and the order.
        device: of the batches.
    """

    def __init__(
        self,
        data: TextData,
        batch_size: int,
        *,
        length: int = 128,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        longest = min(len(data.train), len(data.test)) // 2
        if not 1 <= length <= longest:
            raise ValueError(f"length must be from 1 to {longest}, got {length}")
        super().__init__((len(data.train) - length) // length, batch_size, seed)
        self.length = length
        self.train_text = data.train.to(device)
        self.test_text = data.test.to(device)

    def test(self, batch_size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the test text's windows, four times as long as training windows if the text is long enough."""
        length = min(4 * self.length, len(self.test_text) - 1)
        starts = torch.arange(0, len(self.test_text) - length, length, device="cpu")
        for chosen in starts.split(batch_size):
            yield self._cut(self.test_text, chosen, length)

    def _train_batch(self, chosen: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        offset = int(torch.randint(self.length, (), generator=epoch_generator(self.seed, epoch), device="cpu"))
        return self._cut(self.train_text, chosen * self.length + offset, self.length)

    def _cut(self, text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        windows = text[starts[:, None].to(text.device) + torch.arange(length + 1, device=text.device)]
        return windows[:, :-1], windows[:, 1:]

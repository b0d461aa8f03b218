"""A recurrent language model of characters."""

import torch
from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_sizes

States = tuple[Tensor, Tensor]


class CharLanguageModel(nn.Module):
    """An embedding, an LSTM, dropout, and a linear layer to the logits of the next character.

    After Graves, "Generating sequences with recurrent neural networks" (2013), with one layer.

    Args:
        vocabulary_size: how many different characters there are.
        embedding_size: the width of a character's vector.
        hidden_size: the width of the LSTM's state.
        dropout: the probability of dropping an element of the LSTM's output in training.

    Raises:
        ValueError: a size that is not positive.
    """

    def __init__(
        self, vocabulary_size: int, embedding_size: int = 64, hidden_size: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_sizes(vocabulary_size=vocabulary_size, embedding_size=embedding_size, hidden_size=hidden_size)
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, vocabulary_size)

    def forward(self, characters: Tensor) -> Tensor:
        """Maps characters [B, T] int64 to the logits [B, T, vocabulary] of the one that follows each."""
        return self.advance(characters)[0]

    def advance(self, characters: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Reads on from the states (h, c), each [1, B, H], or from the beginning where None.

        Returns:
            The logits [B, T, vocabulary] and the states after the last character.
        """
        outputs, last_states = self.lstm(self.embedding(characters), states)
        return self.head(self.dropout(outputs)), last_states

    @torch.no_grad()
    def sample(
        self, prompt: Tensor, length: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Writes on where a prompt ends, drawing each character from the model's probabilities.

        Args:
            prompt: [B, T] int64 with at least one character each.
            length: how many characters are drawn.
            temperature: what the logits are divided by: below 1 the likely characters become likelier, above 1
                the unlikely ones; at 0 the likeliest is always taken.
            generator: of the random numbers, on the CPU; PyTorch's own where None.

        Returns:
            [B, length] int64 on the prompt's device.

        Raises:
            ValueError: an empty prompt, or a temperature below 0.
        """
        if prompt.dim() != 2 or prompt.shape[1] < 1:
            raise ValueError(f"prompt must be [B, T] with at least one character each, got {list(prompt.shape)}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        was_training = self.training
        self.eval()
        characters, states, drawn = prompt, None, []
        for _ in range(length):
            logits, states = self.advance(characters, states)
            last = logits[:, -1].float().cpu()
            if temperature == 0:
                characters = last.argmax(dim=1, keepdim=True)
            else:
                # The largest is 0, so that no temperature makes an infinity of it.
                chances = ((last - last.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
                characters = torch.multinomial(chances, 1, generator=generator)
            characters = characters.to(prompt.device)
            drawn.append(characters)
        self.train(was_training)
        return torch.cat(drawn, dim=1) if drawn else prompt[:, :0]

"""A recurrent character-level language model."""

import torch
from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_sizes

States = tuple[Tensor, Tensor]


class CharLanguageModel(nn.Module):
    """An embedding, an LSTM, dropout, and a linear layer to the logits of the next character.

    After Graves, "Generating sequences with recurrent neural networks" (2013), with one layer.

    Args:
        vocabulary_size: number of different characters.
        embedding_size: length of a character's vector.
        hidden_size: length of the LSTM's state.
        dropout: dropout probability of the LSTM's outputs in training.

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
        """Maps characters [B, T] int64 to the logits [B, T, vocabulary] of each character's successor."""
        return self.advance(characters)[0]

    def advance(self, characters: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Like `forward`, but starts from the states (h, c), each [1, B, H]; None for zeros.

        Returns:
            The logits [B, T, vocabulary] and the states after the last character.
        """
        outputs, last_states = self.lstm(self.embedding(characters), states)
        return self.head(self.dropout(outputs)), last_states

    @torch.no_grad()
    def sample(
        self, prompt: Tensor, length: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Continues a prompt, drawing each character from the model's probabilities.

        Args:
            prompt: [B, T] int64, T at least 1.
            length: number of characters to draw.
            temperature: divides the logits: values below 1 favor likely characters, values above 1 unlikely ones; 0
                always takes the most likely character.
            generator: random number generator on the CPU; None for PyTorch's default generator.

        Returns:
            [B, length] int64 on the prompt's device.

        Raises:
            ValueError: an empty prompt, or a negative temperature.
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
                # Subtracting the maximum first avoids overflow at low temperatures.
                probabilities = ((last - last.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
                characters = torch.multinomial(probabilities, 1, generator=generator)
            characters = characters.to(prompt.device)
            drawn.append(characters)
        self.train(was_training)
        return torch.cat(drawn, dim=1) if drawn else prompt[:, :0]

"""A recurrent network that classifies sequences of different lengths."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tinynet import nn
from tinynet.models.checks import check_classes, check_sizes

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class SequenceClassifier(nn.Module):
    """An embedding, a GRU or LSTM over the packed sequences, and a linear layer on its last states.

    Args:
        vocabulary_size: number of different indices.
        classes: number of logits per sequence.
        embedding_size: length of an index's vector.
        hidden_size: length of a state, in each direction.
        cell: "gru" or "lstm".
        bidirectional: whether to read the sequences backward too.
        dropout: dropout probability of the embeddings and the last states in training.

    Raises:
        ValueError: a size that is not positive, or an unknown cell.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        embedding_size: int = 32,
        hidden_size: int = 64,
        cell: str = "gru",
        bidirectional: bool = True,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_sizes(vocabulary_size=vocabulary_size, embedding_size=embedding_size, hidden_size=hidden_size)
        check_classes(classes)
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.recurrent = CELLS[cell](embedding_size, hidden_size, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size * (2 if bidirectional else 1), classes)

    def forward(self, sequences: PackedSequence) -> Tensor:
        """Maps B packed sequences of int64 indices to logits [B, classes], in the order before packing."""
        embedded = self.dropout(self.embedding(sequences.data))
        _, states = self.recurrent(sequences._replace(data=embedded))
        last = states[0] if isinstance(states, tuple) else states
        return self.classifier(self.dropout(torch.cat(last.unbind(0), dim=1)))

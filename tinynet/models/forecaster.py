"""A recurrent network that forecasts the next value of a series."""

from torch import Tensor

from tinynet import nn
from tinynet.models.checks import check_sizes


class Forecaster(nn.Module):
    """An LSTM over the past values, and a linear layer from its last output to the next value.

    Args:
        features: number of components of a value.
        hidden_size: length of the LSTM's state.

    Raises:
        ValueError: a size that is not positive.
    """

    def __init__(self, features: int = 1, hidden_size: int = 32) -> None:
        super().__init__()
        check_sizes(features=features, hidden_size=hidden_size)
        self.lstm = nn.LSTM(features, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, features)

    def forward(self, values: Tensor) -> Tensor:
        """Maps the past values [B, T, features] to the next value [B, features]."""
        outputs, _ = self.lstm(values)
        return self.head(outputs[:, -1])

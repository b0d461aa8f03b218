"""Dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops import dropout as ops


class Dropout(torch.nn.Dropout):
    """See `tinynet.functional.dropout`; active only in training mode."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.dropout(input, self.p, self.training)

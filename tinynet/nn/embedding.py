"""Embedding tables."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops import embedding as ops


class Embedding(torch.nn.Embedding):
    """A table [num_embeddings, embedding_dim] looked up by index; see `tinynet.functional.embedding`.

    Arguments, initialization and state_dict are the same as in torch.nn.Embedding; with `sparse=True` the first call
    raises an error.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )

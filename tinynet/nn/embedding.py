"""Embedding tables, looked up row by row or in bags."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops import embedding as ops
from tinynet.ops.embedding_bag import embedding_bag


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


class EmbeddingBag(torch.nn.EmbeddingBag):
    """Sums, means or maxima of rows of a table; see `tinynet.functional.embedding_bag`.

    Arguments, initialization and state_dict are the same as in torch.nn.EmbeddingBag; with `sparse=True` the first call
    raises an error.
    """

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        return embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )

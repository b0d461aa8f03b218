"""Similarities and distances of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops.distance import cosine_similarity, pairwise_distance


class CosineSimilarity(torch.nn.CosineSimilarity):
    """Cosine of the angle between vectors along `dim`; arguments are the same as in torch.nn.CosineSimilarity.

    Raises:
        ValueError, TypeError, IndexError: as `tinynet.functional.cosine_similarity`.
    """

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(torch.nn.PairwiseDistance):
    """p-norm of the difference of vectors [..., D]; arguments are the same as in torch.nn.PairwiseDistance.

    Raises:
        ValueError, TypeError: as `tinynet.functional.pairwise_distance`.
    """

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)

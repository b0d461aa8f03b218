"""Local response normalization."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops.local_response_norm import local_response_norm


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """Divides each value of x [N, C, *] by a power of its neighbors' mean square across channels.

    Arguments are the same as in torch.nn.LocalResponseNorm.

    Raises:
        ValueError, TypeError: as `tinynet.functional.local_response_norm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k)

"""Losses of rows of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops.cross_entropy import cross_entropy


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Cross-entropy between the softmax of logits [N, C, d1, ...] and labels or class probabilities, in one kernel.

    Arguments, the buffer `weight` and state_dict are the same as in torch.nn.CrossEntropyLoss.

    Raises:
        ValueError, TypeError, IndexError: as `tinynet.functional.cross_entropy`.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

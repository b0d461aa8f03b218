"""Cross-entropy of a linear layer; only imported where PyTorch has the class (2.13)."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops.linear_cross_entropy import linear_cross_entropy


class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):  # pyright: ignore[reportAttributeAccessIssue]
    """Cross-entropy of labels or class probabilities under a linear layer, without all its logits in memory at once.

    Arguments, parameters and state_dict are the same as in torch.nn.LinearCrossEntropyLoss.

    Raises:
        ValueError, TypeError, IndexError: as `tinynet.functional.linear_cross_entropy`.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        shape = self.num_classes, *self.out_features
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.view(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.view(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )

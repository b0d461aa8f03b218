"""Losses of rows of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import deprecated

from tinynet.nn.distance import PairwiseDistance
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.ctc_loss import Lengths, ctc_loss
from tinynet.ops.distance import (
    cosine_embedding_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
from tinynet.ops.margin_loss import multi_margin_loss, multilabel_margin_loss
from tinynet.ops.nll_loss import nll_loss


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


class MultiLabelMarginLoss(torch.nn.MultiLabelMarginLoss):
    """Margin loss of scores [N, C] with several labels per row; arguments as in torch.nn.MultiLabelMarginLoss.

    Raises:
        ValueError, TypeError, IndexError: as `tinynet.functional.multilabel_margin_loss`.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return multilabel_margin_loss(input, target, reduction=self.reduction)


class MultiMarginLoss(torch.nn.MultiMarginLoss):
    """Margin loss of scores [N, C] with one label per row.

    Arguments, the buffer `weight` and state_dict are the same as in torch.nn.MultiMarginLoss.

    Raises:
        ValueError, TypeError, IndexError: as `tinynet.functional.multi_margin_loss`.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return multi_margin_loss(input, target, self.p, self.margin, self.weight, reduction=self.reduction)


class NLLLoss(torch.nn.NLLLoss):
    """Negative log likelihood of labels under log-probabilities [N, C, d1, ...].

    Arguments, the buffer `weight` and state_dict are the same as in torch.nn.NLLLoss.

    Raises:
        ValueError, TypeError, IndexError: as `tinynet.functional.nll_loss`.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


@deprecated("`NLLLoss2d` has been deprecated; `NLLLoss` takes the same arguments.", category=FutureWarning)
class NLLLoss2d(NLLLoss):
    """`NLLLoss` under its older name; PyTorch deprecated it too."""


class CosineEmbeddingLoss(torch.nn.CosineEmbeddingLoss):
    """Pulls pairs of vectors [N, D] together (target 1) or apart (-1); arguments as in torch.nn.CosineEmbeddingLoss.

    Raises:
        ValueError, TypeError: as `tinynet.functional.cosine_embedding_loss`.
    """

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return cosine_embedding_loss(input1, input2, target, self.margin, reduction=self.reduction)


class TripletMarginLoss(torch.nn.TripletMarginLoss):
    """Margin between the distances of an anchor to a positive and a negative example; as torch.nn.TripletMarginLoss.

    Raises:
        ValueError, TypeError: as `tinynet.functional.triplet_margin_loss`.
    """

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        options = self.margin, self.p, self.eps, self.swap
        return triplet_margin_loss(anchor, positive, negative, *options, reduction=self.reduction)


class TripletMarginWithDistanceLoss(torch.nn.TripletMarginWithDistanceLoss):
    """`TripletMarginLoss` with any distance; arguments as in torch.nn.TripletMarginWithDistanceLoss.

    Without a distance function, `PairwiseDistance` is computed.

    Raises:
        ValueError: as `tinynet.functional.triplet_margin_with_distance_loss`.
    """

    def __init__(
        self,
        *,
        distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(distance_function=distance_function, margin=margin, swap=swap, reduction=reduction)
        if distance_function is None:
            self.distance_function = PairwiseDistance()

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=self.margin,
            swap=self.swap,
            reduction=self.reduction,
        )


class CTCLoss(torch.nn.CTCLoss):
    """Connectionist temporal classification of log-probabilities [T, N, C]; arguments as in torch.nn.CTCLoss.

    Raises:
        ValueError, TypeError, IndexError: as `tinynet.functional.ctc_loss`.
    """

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths) -> Tensor:
        options = self.blank, self.reduction, self.zero_infinity
        return ctc_loss(log_probs, targets, input_lengths, target_lengths, *options)

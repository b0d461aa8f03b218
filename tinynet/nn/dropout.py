"""Dropout layers: torch.nn's classes, computed by tinynet's kernels and active only in training mode.

`inplace=True` is accepted for compatibility and has no effect.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops import dropout as ops


class Dropout(torch.nn.Dropout):
    """See `tinynet.functional.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.dropout(input, self.p, self.training)


class Dropout1d(torch.nn.Dropout1d):
    """See `tinynet.functional.dropout1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.dropout1d(input, self.p, self.training)


class Dropout2d(torch.nn.Dropout2d):
    """See `tinynet.functional.dropout2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.dropout2d(input, self.p, self.training)


class Dropout3d(torch.nn.Dropout3d):
    """See `tinynet.functional.dropout3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.dropout3d(input, self.p, self.training)


class AlphaDropout(torch.nn.AlphaDropout):
    """See `tinynet.functional.alpha_dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.alpha_dropout(input, self.p, self.training)


class FeatureAlphaDropout(torch.nn.FeatureAlphaDropout):
    """See `tinynet.functional.feature_alpha_dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.feature_alpha_dropout(input, self.p, self.training)

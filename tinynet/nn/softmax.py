"""Softmax layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Proxy

from tinynet.nn.proxies import as_leaf
from tinynet.ops import softmax as ops


class Softmax(torch.nn.Softmax):
    """exp(x) divided by its sum along `dim`; arguments are the same as in torch.nn.Softmax.

    Raises:
        IndexError, TypeError: as `tinynet.functional.softmax`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """log(softmax(x)) along `dim`; arguments are the same as in torch.nn.LogSoftmax.

    Raises:
        IndexError, TypeError: as `tinynet.functional.log_softmax`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.log_softmax(input, self.dim, _stacklevel=5)


class Softmin(torch.nn.Softmin):
    """softmax(-x) along `dim`; arguments are the same as in torch.nn.Softmin.

    Raises:
        IndexError, TypeError: as `tinynet.functional.softmin`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.softmin(input, self.dim, _stacklevel=5)


class Softmax2d(torch.nn.Softmax2d):
    """Softmax over the channels of each pixel of [N, C, H, W] or [C, H, W].

    Raises:
        ValueError: another rank.
        TypeError: as `tinynet.functional.softmax`.
    """

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return as_leaf(self, input)
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: input must be [N, C, H, W] or [C, H, W], got shape {tuple(input.shape)}")
        return ops.softmax(input, -3)

"""Pooling layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinynet.ops import pool as ops


class MaxPool2d(torch.nn.MaxPool2d):
    """The maximum of each window of [N, C, H, W] or [C, H, W]; arguments are the same as in torch.nn.MaxPool2d.

    Raises:
        ValueError, TypeError: as `tinynet.functional.max_pool2d`.
    """

    def forward(self, input: Tensor) -> Any:
        return ops.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """The mean of each window of [N, C, H, W] or [C, H, W]; arguments are the same as in torch.nn.AvgPool2d.

    Raises:
        ValueError, TypeError: as `tinynet.functional.avg_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """Averages [N, C, H, W] or [C, H, W] to `output_size`; arguments are the same as in torch.nn.AdaptiveAvgPool2d.

    Raises:
        ValueError, TypeError: as `tinynet.functional.adaptive_avg_pool2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(input, self.output_size)

"""Pooling layers. Each one takes the same arguments as torch.nn's of its name.

Raises:
    ValueError, TypeError: as the function of each layer in `tinynet.functional`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinynet.ops import lp_pool, max_pool, max_unpool, pool


def _of_maximum(layer: Any) -> tuple[Any, ...]:
    """The arguments of `max_pool1d` and its like after the input."""
    window = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return *window, layer.ceil_mode, layer.return_indices


def _of_mean(layer: Any) -> tuple[Any, Any, Any, bool, bool]:
    """The arguments of `avg_pool1d` and its like after the input, up to the divisor."""
    return layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad


class MaxPool1d(torch.nn.MaxPool1d):
    """The maximum of each window of [N, C, L] or [C, L]."""

    def forward(self, input: Tensor) -> Any:
        return max_pool.max_pool1d(input, *_of_maximum(self))


class MaxPool2d(torch.nn.MaxPool2d):
    """The maximum of each window of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor) -> Any:
        return max_pool.max_pool2d(input, *_of_maximum(self))


class MaxPool3d(torch.nn.MaxPool3d):
    """The maximum of each window of [N, C, D, H, W] or [C, D, H, W]."""

    def forward(self, input: Tensor) -> Any:
        return max_pool.max_pool3d(input, *_of_maximum(self))


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """Maxima of as many windows as asked for of [N, C, L] or [C, L]."""

    def forward(self, input: Tensor) -> Any:
        return max_pool.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """Maxima of as many windows as asked for of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor) -> Any:
        return max_pool.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """Maxima of as many windows as asked for of [N, C, D, H, W] or [C, D, H, W]."""

    def forward(self, input: Tensor) -> Any:
        return max_pool.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class FractionalMaxPool2d(torch.nn.FractionalMaxPool2d):
    """Maxima of windows at random distances of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor) -> Any:
        samples: Any = self._random_samples
        return max_pool.fractional_max_pool2d(
            input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices, samples
        )


class FractionalMaxPool3d(torch.nn.FractionalMaxPool3d):
    """Maxima of windows at random distances of [N, C, D, H, W] or [C, D, H, W]."""

    def forward(self, input: Tensor) -> Any:
        samples: Any = self._random_samples
        return max_pool.fractional_max_pool3d(
            input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices, samples
        )


class MaxUnpool1d(torch.nn.MaxUnpool1d):
    """The maxima, put back into an image of [N, C, L] or [C, L]."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return max_unpool.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """The maxima, put back into an image of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return max_unpool.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(torch.nn.MaxUnpool3d):
    """The maxima, put back into an image of [N, C, D, H, W] or [C, D, H, W]."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return max_unpool.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AvgPool1d(torch.nn.AvgPool1d):
    """The mean of each window of [N, C, L] or [C, L]."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.avg_pool1d(input, *_of_mean(self))


class AvgPool2d(torch.nn.AvgPool2d):
    """The mean of each window of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.avg_pool2d(input, *_of_mean(self), self.divisor_override)


class AvgPool3d(torch.nn.AvgPool3d):
    """The mean of each window of [N, C, D, H, W] or [C, D, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.avg_pool3d(input, *_of_mean(self), self.divisor_override)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """Means of as many windows as asked for of [N, C, L] or [C, L]."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """Means of as many windows as asked for of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """Means of as many windows as asked for of [N, C, D, H, W] or [C, D, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return pool.adaptive_avg_pool3d(input, self.output_size)


class LPPool1d(torch.nn.LPPool1d):
    """The p-norm of each window of [N, C, L] or [C, L]."""

    def forward(self, input: Tensor) -> Tensor:
        return lp_pool.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(torch.nn.LPPool2d):
    """The p-norm of each window of [N, C, H, W] or [C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return lp_pool.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(torch.nn.LPPool3d):
    """The p-norm of each window of [N, C, D, H, W] or [C, D, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return lp_pool.lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)

"""Resampling of images: torch.nn's classes; "bilinear" is computed by tinynet's kernels, all other modes by PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from tinynet.ops.upsample import interpolate


class Upsample(torch.nn.Upsample):
    """See `tinynet.functional.interpolate`."""

    def forward(self, input: Tensor) -> Tensor:
        sizes = self.size, self.scale_factor
        return interpolate(input, *sizes, self.mode, self.align_corners, self.recompute_scale_factor)


class UpsamplingBilinear2d(torch.nn.UpsamplingBilinear2d, Upsample):
    """See `tinynet.functional.interpolate`, with mode "bilinear" and aligned corners."""

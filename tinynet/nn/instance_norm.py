"""Instance normalization layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from tinynet.nn.batch_norm import without_bias
from tinynet.nn.linear import with_activation
from tinynet.nn.proxies import as_leaf
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.instance_norm import instance_norm
from tinynet_kernels.activation_spec import Activation


class _InstanceNormForward(torch.nn.modules.instancenorm._InstanceNorm):
    """Instance normalization, and its activation, for torch.nn's forward, which checks the input."""

    activation: Activation

    def forward(self, input: Tensor) -> Tensor:
        return as_leaf(self, input) if isinstance(input, Proxy) else super().forward(input)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


class _InstanceNorm(_InstanceNormForward):
    """Instance normalization of a known number of channels."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        options = eps, momentum, affine, track_running_stats, device, dtype
        super().__init__(num_features, *options, **without_bias(bias))
        self.activation = as_activation(activation)


class _LazyInstanceNorm(_InstanceNormForward):
    """Instance normalization of as many channels as its first input has."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        options: Any = eps, momentum, affine, track_running_stats, device, dtype
        super().__init__(*options, **without_bias(bias))
        self.activation = as_activation(activation)


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """act((x - mean) / sqrt(variance + eps) weight + bias) for each channel of each sample, x [N, C, L] or [C, L].

    Arguments, parameters, buffers and state_dict are the same as in torch.nn.InstanceNorm1d. `activation` (a name, an
    `Activation` or None) is fused into the kernel.

    Raises:
        ValueError, TypeError: as `tinynet.functional.instance_norm`.
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """As `InstanceNorm1d`, for x [N, C, H, W] or [C, H, W], contiguous or channels_last."""


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """As `InstanceNorm1d`, for x [N, C, D, H, W] or [C, D, H, W], contiguous or channels_last_3d."""


class LazyInstanceNorm1d(_LazyInstanceNorm, torch.nn.LazyInstanceNorm1d):
    """An `InstanceNorm1d` whose number of channels is that of its first input."""

    cls_to_become = InstanceNorm1d  # pyright: ignore[reportAssignmentType]


class LazyInstanceNorm2d(_LazyInstanceNorm, torch.nn.LazyInstanceNorm2d):
    """An `InstanceNorm2d` whose number of channels is that of its first input."""

    cls_to_become = InstanceNorm2d  # pyright: ignore[reportAssignmentType]


class LazyInstanceNorm3d(_LazyInstanceNorm, torch.nn.LazyInstanceNorm3d):
    """An `InstanceNorm3d` whose number of channels is that of its first input."""

    cls_to_become = InstanceNorm3d  # pyright: ignore[reportAssignmentType]

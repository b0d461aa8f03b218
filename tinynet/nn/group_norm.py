"""Group normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinynet.nn.linear import with_activation
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.group_norm import group_norm
from tinynet_kernels.activation_spec import Activation


class GroupNorm(torch.nn.GroupNorm):
    """Normalizes each group of channels of each image of x [N, C, *] to mean 0 and variance 1.

    Arguments, parameters and state_dict are the same as in torch.nn.GroupNorm.

    Args:
        num_groups: a divisor of num_channels.
        num_channels: C.
        eps: added to the variance.
        affine: whether to multiply by a weight and add a bias for each channel afterwards.
        device: of the parameters.
        dtype: of the parameters.
        activation: applied last, in the same kernel: a name, `Activation`, module, function or None.
        bias: whether to have that bias.

    Raises:
        ValueError, TypeError: as `tinynet.functional.group_norm`.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: ActivationLike = None,
        bias: bool = True,
    ) -> None:
        only_weight = {} if bias else {"bias": False}  # older versions of PyTorch don't have it
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **only_weight)
        self.activation = as_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return self.normalize(input, self.activation)

    def normalize(self, input: Tensor, activation: Activation) -> Tensor:
        """Like `forward`, with the activation as an argument."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps, activation=activation)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)

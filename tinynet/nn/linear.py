"""Linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinynet.ops import linear as ops
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.bilinear import bilinear
from tinynet_kernels.activation_spec import Activation


class Linear(torch.nn.Linear):
    """y = act(x W^T + b), x [..., in_features], y [..., out_features], in one kernel.

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.Linear.

    Args:
        in_features: size of x's last dimension, K.
        out_features: size of y's last dimension, N.
        bias: whether to add a bias.
        device: of the parameters.
        dtype: of the parameters.
        activation: applied after the bias, in the same kernel: a name, `Activation`, module, function or None.

    Raises:
        ValueError, TypeError: as `tinynet.functional.linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = as_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


class LazyLinear(torch.nn.LazyLinear, Linear):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A `Linear` whose in_features is that of its first input, as torch.nn.LazyLinear; it becomes a `Linear` then."""

    cls_to_become = Linear  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(out_features, bias, device, dtype)
        self.activation = as_activation(activation)


class Bilinear(torch.nn.Bilinear):
    """y_k = act(x1^T A_k x2 + b_k), x1 [..., in1_features], x2 [..., in2_features], y [..., out_features].

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.Bilinear.

    Args:
        in1_features: size of x1's last dimension.
        in2_features: size of x2's last dimension.
        out_features: size of y's last dimension.
        bias: whether to add a bias.
        device: of the parameters.
        dtype: of the parameters.
        activation: applied after the bias, in the same kernel: a name, `Activation`, module, function or None.

    Raises:
        ValueError, TypeError: as `tinynet.functional.bilinear`.
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(in1_features, in2_features, out_features, bias, device, dtype)
        self.activation = as_activation(activation)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return bilinear(input1, input2, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


def with_activation(text: str, activation: Activation) -> str:
    """Appends a fused activation, if there is one, to a module's extra_repr."""
    return text if activation.name == "identity" else f"{text}, activation={activation}"

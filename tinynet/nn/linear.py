"""Linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinynet.ops import linear as ops
from tinynet.ops.activation import as_activation
from tinynet_kernels.activation_spec import Activation


class Linear(torch.nn.Linear):
    """y = act(x W^T + b), x [..., in_features], y [..., out_features], in one kernel.

    Arguments, parameters, initialization and state_dict are torch.nn.Linear's.

    Args:
        in_features: K.
        out_features: N.
        bias: whether to add a bias.
        device: where the parameters are made.
        dtype: theirs.
        activation: fused after the bias: a name, an `Activation`, or None.

    Raises:
        ValueError, TypeError: see `tinynet.functional.linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = as_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


def with_activation(text: str, activation: Activation) -> str:
    """A module's extra_repr with its fused activation, if it has one."""
    return text if activation.name == "identity" else f"{text}, activation={activation}"

"""Layer normalization and RMS normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinynet.nn.linear import with_activation
from tinynet.ops import layer_norm as ops
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet_kernels.activation_spec import Activation


class LayerNorm(torch.nn.LayerNorm):
    """Normalizes the last dimensions of x [..., *normalized_shape] to mean 0 and variance 1, in one kernel.

    Arguments, parameters and state_dict are the same as in torch.nn.LayerNorm.

    Args:
        normalized_shape: the last dimensions, one number or several.
        eps: added to the variance.
        elementwise_affine: whether to multiply by a weight and add a bias afterwards.
        bias: whether to have that bias.
        device: of the parameters.
        dtype: of the parameters.
        activation: applied last, in the same kernel: a name, `Activation`, module, function or None.

    Raises:
        ValueError, TypeError: as `tinynet.functional.layer_norm`.

    Example:
        >>> norm, x = LayerNorm(768), torch.randn(2, 768)
        >>> y, x = norm(torch.ones(2, 768), residual=x)  # norm(1 + x), and that sum
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)  # pyright: ignore
        self.activation = as_activation(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        return self.normalize(input, self.activation, residual)

    def normalize(self, input: Tensor, activation: Activation, residual: Tensor | None = None) -> Any:
        """Like `forward`, with the activation as an argument."""
        options = {"activation": activation, "residual": residual}
        return ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps, **options)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


class RMSNorm(torch.nn.RMSNorm):
    """Divides the last dimensions of x [..., *normalized_shape] by their root mean square, in one kernel.

    Arguments, parameters and state_dict are the same as in torch.nn.RMSNorm.

    Args:
        normalized_shape: the last dimensions, one number or several.
        eps: added to the mean square; None for the epsilon of float32 (float64 for float64 inputs).
        elementwise_affine: whether to multiply by a weight afterwards.
        device: of the weight.
        dtype: of the weight.
        activation: applied last, in the same kernel: a name, `Activation`, module, function or None.

    Raises:
        ValueError, TypeError: as `tinynet.functional.rms_norm`.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)  # pyright: ignore
        self.activation = as_activation(activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        return self.normalize(x, self.activation, residual)

    def normalize(self, x: Tensor, activation: Activation, residual: Tensor | None = None) -> Any:
        """Like `forward`, with the activation as an argument."""
        options = {"activation": activation, "residual": residual}
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps, **options)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)

"""Batch normalization layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from tinynet.nn.linear import with_activation
from tinynet.nn.proxies import as_leaf
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.batch_norm import normalize
from tinynet_kernels import replays
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.spec import Normalization


class _BatchNormForward(torch.nn.modules.batchnorm._BatchNorm):
    """The forward of batch normalization, and its activation."""

    activation: Activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual).

        Args:
            input: [N, C, ...].
            residual: input's shape and dtype, or None for zeros.
        """
        return self.normalize(input, self.activation, residual)

    def normalize(
        self, input: Tensor, activation: Activation, residual: Tensor | None = None, partial: Tensor | None = None
    ) -> Tensor:
        """Like `forward`, with the activation, and the statistics of parts of the input if known, as arguments."""
        if isinstance(input, Proxy):
            return as_leaf(self, input, *(() if residual is None else (residual,)))
        self._check_input_dim(input)
        running_mean, running_var, momentum, batches = self.updated()
        training = self.training or (running_mean is None and running_var is None)
        tensors = input, running_mean, running_var, self.weight, self.bias
        y = normalize(*tensors, training, momentum, self.eps, activation, residual, partial)
        count(batches)
        return y

    def updated(self) -> tuple[Tensor | None, Tensor | None, float, Tensor | None]:
        """The running statistics, the momentum of their update and the counter of batches, None where not counted.

        In evaluation the statistics are those that are applied, and nothing is updated.
        """
        running_mean, running_var, momentum = self.running_mean, self.running_var, self.momentum
        batches = None
        if self.training and not self.track_running_stats:
            running_mean = running_var = None
        elif self.training:
            batches = self.num_batches_tracked
            if batches is not None and momentum is None:
                momentum = 1.0 / (float(batches) + 1.0)  # the average over all batches so far
        return running_mean, running_var, 0.0 if momentum is None else momentum, batches

    def constants(self) -> Normalization | None:
        """What `forward` applies in evaluation, where its statistics are constants; None where they are the input's."""
        if self.training:
            return None
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None:
            return None
        return Normalization(mean, variance, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


def count(batches: Tensor | None) -> None:
    """Adds one to a counter of batches."""
    if batches is not None:
        replays.fill(batches, lambda count: count.add_(1))


class _BatchNorm(_BatchNormForward):
    """Batch normalization of a known number of channels."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: ActivationLike = None,
    ) -> None:
        options = eps, momentum, affine, track_running_stats, device, dtype
        super().__init__(num_features, *options, **without_bias(bias))
        self.activation = as_activation(activation)


class _LazyBatchNorm(_BatchNormForward):
    """Batch normalization of as many channels as its first input has."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
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


def without_bias(bias: bool) -> dict[str, Any]:
    """The argument of torch.nn's normalization layers that says so, which PyTorch below 2.13 does not have."""
    return {} if bias else {"bias": False}


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """act((x - mean) / sqrt(variance + eps) weight + bias + residual), x [N, C] or [N, C, L], for each channel.

    Arguments, parameters, buffers and state_dict are the same as in torch.nn.BatchNorm1d. `activation` (a name, an
    `Activation` or None) and the residual, an optional second argument of the call, are fused into the kernel.

    Raises:
        ValueError, TypeError: as `tinynet.functional.batch_norm`.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """act((x - mean) / sqrt(variance + eps) weight + bias + residual), x [N, C, H, W], for each channel.

    As `BatchNorm1d`. Contiguous and channels_last inputs are read without a copy.

    Example:
        >>> x, residual = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
        >>> y = BatchNorm2d(8, activation="relu")(x, residual)
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """act((x - mean) / sqrt(variance + eps) weight + bias + residual), x [N, C, D, H, W], for each channel.

    As `BatchNorm2d`.
    """


class LazyBatchNorm1d(_LazyBatchNorm, torch.nn.LazyBatchNorm1d):
    """A `BatchNorm1d` whose number of channels is that of its first input."""

    cls_to_become = BatchNorm1d  # pyright: ignore[reportAssignmentType]


class LazyBatchNorm2d(_LazyBatchNorm, torch.nn.LazyBatchNorm2d):
    """A `BatchNorm2d` whose number of channels is that of its first input."""

    cls_to_become = BatchNorm2d  # pyright: ignore[reportAssignmentType]


class LazyBatchNorm3d(_LazyBatchNorm, torch.nn.LazyBatchNorm3d):
    """A `BatchNorm3d` whose number of channels is that of its first input."""

    cls_to_become = BatchNorm3d  # pyright: ignore[reportAssignmentType]

"""tinynet's kernels as stateless layers, whose forward replaces that of torch.nn's layer of the same name.

`kernels.kernelize` binds these forwards to existing layers, so that `self` is the layer of torch.nn: its parameters,
buffers and options are all there is. Each class has only `forward` and what `kernels` asks for: whether there is a
backward, and whether `torch.compile` works.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tinynet import functional
from tinynet.ops.recurrent import recurrent

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv2d",
    "CrossEntropyLoss",
    "GroupNorm",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LayerNorm",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "NLLLoss",
    "RMSNorm",
    "SmoothL1Loss",
]


class Linear(nn.Module):
    """y = x W^T + b."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class Conv2d(nn.Module):
    """A convolution of [N, C, H, W] or [C, H, W]; channels_last is the fastest memory format."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class MaxPool2d(nn.Module):
    """The maximum of each window."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor) -> Any:
        window = self.kernel_size, self.stride, self.padding, self.dilation
        return functional.max_pool2d(input, *window, self.ceil_mode, self.return_indices)


class GELU(nn.Module):
    """x times the probability that a normally distributed number is below x."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor) -> Tensor:
        return functional.gelu(input, approximate=self.approximate)


# Normalizations


def _batch_norm(layer: Any, input: Tensor) -> Tensor:
    layer._check_input_dim(input)
    training = layer.training or (layer.running_mean is None and layer.running_var is None)
    tracked = layer.track_running_stats if layer.training else True
    momentum = layer.momentum if layer.momentum is not None else 0.0
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)  # the average over all batches so far
    statistics = (layer.running_mean, layer.running_var) if tracked else (None, None)
    return functional.batch_norm(input, *statistics, layer.weight, layer.bias, training, momentum, layer.eps)


class BatchNorm1d(nn.Module):
    """Batch normalization of [N, C] or [N, C, L]."""

    has_backward = True
    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class BatchNorm2d(nn.Module):
    """Batch normalization of [N, C, H, W]."""

    has_backward = True
    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class BatchNorm3d(nn.Module):
    """Batch normalization of [N, C, D, H, W]."""

    has_backward = True
    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class LayerNorm(nn.Module):
    """Normalization of the last dimensions to mean 0 and variance 1."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor) -> Tensor:
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Division of the last dimensions by their root mean square."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(nn.Module):
    """Normalization of groups of channels."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor) -> Tensor:
        return functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


# Losses


class CrossEntropyLoss(nn.Module):
    """Cross-entropy of logits and labels or probabilities."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(nn.Module):
    """Negative log-likelihood of log-probabilities."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        options = {"ignore_index": self.ignore_index, "reduction": self.reduction}
        return functional.nll_loss(input, target, self.weight, **options)


class MSELoss(nn.Module):
    """The squared error."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(input, target, reduction=self.reduction)


class L1Loss(nn.Module):
    """The absolute error."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        return functional.l1_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(nn.Module):
    """The absolute error with a parabola below beta."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        return functional.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(nn.Module):
    """The squared error that grows linearly beyond delta."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        return functional.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class BCELoss(nn.Module):
    """Binary cross-entropy of probabilities."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(nn.Module):
    """Binary cross-entropy of logits."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        options = {"reduction": self.reduction, "pos_weight": self.pos_weight}
        return functional.binary_cross_entropy_with_logits(input, target, self.weight, **options)


class KLDivLoss(nn.Module):
    """Kullback-Leibler divergence."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        return functional.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


# Recurrent layers


def _recurrent(layer: Any, input: Any, hx: Any) -> tuple[Any, Any]:
    """torch.nn's forward of an LSTM or GRU: batched, unbatched or packed input, with or without an initial state."""
    packed = isinstance(input, PackedSequence)
    x, batch_sizes, order, order_back = input if packed else (input, None, None, None)
    unbatched = not packed and x.dim() == 2
    first = layer.batch_first and not packed
    if unbatched:
        x = x.unsqueeze(0 if first else 1)
    is_lstm = layer.mode == "LSTM"
    states = () if hx is None else hx if is_lstm else (hx,)
    states = [state.unsqueeze(1) if unbatched else state for state in states]
    if order is not None:
        states = [state.index_select(1, order) for state in states]
    h0, c0 = [*states, None, None][:2]
    y, h, c = recurrent(
        layer.mode.lower(),
        x.transpose(0, 1) if first else x,
        h0,
        c0,
        [[getattr(layer, name) for name in names] for names in layer._all_weights],
        bias=layer.bias,
        bidirectional=layer.bidirectional,
        dropout=layer.dropout,
        training=layer.training,
        batch_sizes=batch_sizes,
    )
    last = [state if order_back is None else state.index_select(1, order_back) for state in (h, c) if state is not None]
    if first:
        y = y.transpose(0, 1)
    if unbatched:
        y, last = y.squeeze(0 if first else 1), [state.squeeze(1) for state in last]
    output = PackedSequence(y, batch_sizes, order, order_back) if packed else y
    return output, tuple(last) if is_lstm else last[0]


class LSTM(nn.Module):
    """Long short-term memory over sequences."""

    has_backward = True
    can_torch_compile = False  # torch.compile does not trace into torch.nn's recurrent layers

    def forward(self, input: Any, hx: Any = None) -> Any:
        return _recurrent(self, input, hx)


class GRU(nn.Module):
    """Gated recurrent units over sequences."""

    has_backward = True
    can_torch_compile = False  # as LSTM

    def forward(self, input: Any, hx: Any = None) -> Any:
        return _recurrent(self, input, hx)

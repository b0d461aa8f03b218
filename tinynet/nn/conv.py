"""Convolution layers of one, two and three spatial axes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_unary

from tinynet.nn.linear import with_activation
from tinynet.ops import conv as ops
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.spec import Normalization


def _padded(layer: Any, input: Tensor) -> tuple[Tensor, tuple[Any, Any, Any, Any]]:
    """The input, padded as the layer's padding mode says, and what is left for the convolution to do."""
    if layer.padding_mode == "zeros":
        return input, (layer.stride, layer.padding, layer.dilation, layer.groups)
    padded = F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    return padded, (layer.stride, 0, layer.dilation, layer.groups)


class Conv1d(torch.nn.Conv1d):
    """y = act(x * W + b), x [N, C, L] or [C, L], in one kernel.

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.Conv1d.

    Args:
        in_channels, out_channels, groups, bias, padding_mode, device, dtype, activation: as in `Conv2d`.
        kernel_size, stride, padding, dilation: as in `Conv2d`, one number or a tuple of one.

    Raises:
        ValueError, TypeError: as `tinynet.functional.conv1d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        mode: Any = padding_mode
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, mode, device, dtype
        )
        self.activation = as_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.activation)[0]

    def convolve(self, input: Tensor, activation: Activation) -> tuple[Tensor, None]:
        """Like `Conv2d.convolve`."""
        input, window = _padded(self, input)
        return ops.conv1d(input, self.weight, self.bias, *window, activation), None

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


class Conv2d(torch.nn.Conv2d):
    """y = act(x * W + b), x [N, C, H, W] or [C, H, W], optionally followed by 2 x 2 max-pooling, in one kernel.

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.Conv2d. The fastest memory format
    is channels_last, for the model (`model.to(memory_format=torch.channels_last)`) and the images; inputs in other
    formats are converted.

    Args:
        in_channels: number of input channels, C.
        out_channels: number of output channels, K.
        kernel_size: R and S, as one number or (height, width).
        stride: step between windows.
        padding: one number, (height, width), "valid" or "same".
        dilation: distance between filter taps, in pixels.
        groups: number of groups; must divide C and K.
        bias: whether to add a bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: of the parameters.
        dtype: of the parameters.
        activation: applied after the bias, in the same kernel: a name, `Activation`, module, function or None.
        pool: 2 for a MaxPool2d(2) after the activation, in the same kernel; 1 for no pooling.

    Raises:
        ValueError, TypeError: as `tinynet.functional.conv2d`; and ValueError for a `pool` other than 1 or 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
        pool: int = 1,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # pyright: ignore[reportArgumentType]
            device,
            dtype,
        )
        self.activation = as_activation(activation)
        self.pool = checked_pool(pool)

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.activation, self.pool)[0]

    def convolve(
        self,
        input: Tensor,
        activation: Activation,
        pool: int = 1,
        *,
        norm: Normalization | None = None,
        want_statistics: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Like `forward`, with what a following layer adds as arguments; see `tinynet.ops.conv.convolution`."""
        input, window = _padded(self, input)
        if has_torch_function_unary(input):
            return ops.conv2d(input, self.weight, self.bias, *window, activation, pool), None
        return ops.convolution(
            "conv2d",
            input,
            self.weight,
            self.bias,
            *window,
            activation,
            pool,
            norm=norm,
            want_statistics=want_statistics,
        )

    def extra_repr(self) -> str:
        text = with_activation(super().extra_repr(), self.activation)
        return text if self.pool == 1 else f"{text}, pool={self.pool}"


class Conv3d(torch.nn.Conv3d):
    """y = act(x * W + b), x [N, C, D, H, W] or [C, D, H, W], in one kernel.

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.Conv3d.

    Args:
        in_channels, out_channels, groups, bias, padding_mode, device, dtype, activation: as in `Conv2d`.
        kernel_size, stride, padding, dilation: as in `Conv2d`, one number or (depth, height, width).

    Raises:
        ValueError, TypeError: as `tinynet.functional.conv3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] | str = 0,
        dilation: int | tuple[int, int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        mode: Any = padding_mode
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, mode, device, dtype
        )
        self.activation = as_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.activation)[0]

    def convolve(self, input: Tensor, activation: Activation) -> tuple[Tensor, None]:
        """Like `Conv2d.convolve`."""
        input, window = _padded(self, input)
        return ops.conv3d(input, self.weight, self.bias, *window, activation), None

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


def checked_pool(pool: int) -> int:
    """The size of a fused max-pooling.

    Raises:
        ValueError: neither 1 nor 2.
    """
    if pool not in (1, 2):
        raise ValueError(f"Conv2d: pool must be 1 or 2, got {pool!r}")
    return int(pool)


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A `Conv1d` whose in_channels is that of its first input; see `LazyConv2d`."""

    cls_to_become = Conv1d  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, activation: ActivationLike = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = as_activation(activation)


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A `Conv2d` whose in_channels is that of its first input, as torch.nn.LazyConv2d; it becomes a `Conv2d` then.

    Args:
        args, kwargs: those of torch.nn.LazyConv2d: out_channels, kernel_size, stride=1, padding=0, dilation=1,
            groups=1, bias=True, padding_mode="zeros", device=None, dtype=None.
        activation, pool: as in `Conv2d`.
    """

    cls_to_become = Conv2d  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, activation: ActivationLike = None, pool: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation, self.pool = as_activation(activation), checked_pool(pool)


class LazyConv3d(torch.nn.LazyConv3d, Conv3d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A `Conv3d` whose in_channels is that of its first input; see `LazyConv2d`."""

    cls_to_become = Conv3d  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, activation: ActivationLike = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = as_activation(activation)

"""Transposed convolution layers of one, two and three spatial axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinynet.nn.linear import with_activation
from tinynet.ops import conv_transpose as transposed
from tinynet.ops.activation_like import ActivationLike, as_activation


def _transposed_window(layer: Any, input: Tensor, output_size: list[int] | None) -> tuple[Any, Any, Any, Any, Any]:
    """The arguments of `conv_transpose2d` and its like between bias and activation.

    Raises:
        ValueError: a padding mode other than "zeros", or a size that no output padding gives.
    """
    if layer.padding_mode != "zeros":
        raise ValueError(f"{type(layer).__name__}: padding_mode must be 'zeros', got {layer.padding_mode!r}")
    window = list(layer.stride), list(layer.padding), list(layer.kernel_size)
    axes = len(layer.kernel_size)
    extra = layer._output_padding(input, output_size, *window, axes, list(layer.dilation))
    return layer.stride, layer.padding, extra, layer.groups, layer.dilation


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """A transposed convolution and an activation of x [N, C, L] or [C, L], in one kernel.

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.ConvTranspose1d.

    Args:
        in_channels: number of input channels, C.
        out_channels: number of output channels, K.
        kernel_size, stride, dilation: as in `Conv1d`, one number or a tuple of one.
        padding: pixels that are left out on each side of the result.
        output_padding: pixels more at the end of the result.
        groups, bias, device, dtype, activation: as in `Conv2d`.
        padding_mode: "zeros".

    Raises:
        ValueError, TypeError: as `tinynet.functional.conv_transpose1d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] = 0,
        output_padding: int | tuple[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int] = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        mode: Any = padding_mode
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            mode,
            device,
            dtype,
        )
        self.activation = as_activation(activation)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        window = _transposed_window(self, input, output_size)
        return transposed.conv_transpose1d(input, self.weight, self.bias, *window, self.activation)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A `ConvTranspose1d` whose in_channels is that of its first input; see `LazyConv2d`."""

    cls_to_become = ConvTranspose1d  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, activation: ActivationLike = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = as_activation(activation)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """A transposed convolution and an activation of x [N, C, H, W] or [C, H, W], in one kernel.

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.ConvTranspose2d.

    Args:
        in_channels: number of input channels, C.
        out_channels: number of output channels, K.
        kernel_size, stride, dilation: as in `Conv2d`, one number or (height, width).
        padding: pixels that are left out on each side of the result.
        output_padding: pixels more at the end of the result.
        groups, bias, device, dtype, activation: as in `Conv2d`.
        padding_mode: "zeros".

    Raises:
        ValueError, TypeError: as `tinynet.functional.conv_transpose2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        mode: Any = padding_mode
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            mode,
            device,
            dtype,
        )
        self.activation = as_activation(activation)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        window = _transposed_window(self, input, output_size)
        return transposed.conv_transpose2d(input, self.weight, self.bias, *window, self.activation)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A `ConvTranspose2d` whose in_channels is that of its first input; see `LazyConv2d`."""

    cls_to_become = ConvTranspose2d  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, activation: ActivationLike = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = as_activation(activation)


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """A transposed convolution and an activation of x [N, C, D, H, W] or [C, D, H, W], in one kernel.

    Arguments, parameters, initialization and state_dict are the same as in torch.nn.ConvTranspose3d.

    Args:
        in_channels: number of input channels, C.
        out_channels: number of output channels, K.
        kernel_size, stride, dilation: as in `Conv3d`, one number or (depth, height, width).
        padding: pixels that are left out on each side of the result.
        output_padding: pixels more at the end of the result.
        groups, bias, device, dtype, activation: as in `Conv2d`.
        padding_mode: "zeros".

    Raises:
        ValueError, TypeError: as `tinynet.functional.conv_transpose3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        output_padding: int | tuple[int, int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int, int] = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
    ) -> None:
        mode: Any = padding_mode
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            mode,
            device,
            dtype,
        )
        self.activation = as_activation(activation)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        window = _transposed_window(self, input, output_size)
        return transposed.conv_transpose3d(input, self.weight, self.bias, *window, self.activation)

    def extra_repr(self) -> str:
        return with_activation(super().extra_repr(), self.activation)


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A `ConvTranspose3d` whose in_channels is that of its first input; see `LazyConv2d`."""

    cls_to_become = ConvTranspose3d  # pyright: ignore[reportAssignmentType]

    def __init__(self, *args: Any, activation: ActivationLike = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = as_activation(activation)

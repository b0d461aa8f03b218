"""What a two-dimensional convolution is: how its windows slide, its sizes, and what kernels are compiled for.

No Triton here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Pair = tuple[int, int]  # (height, width)
Shape = tuple[int, int, int, int]  # of images or a weight


class ConvolutionSpec(NamedTuple):
    """Stride, padding, dilation and groups; pairs are (height, width).

    Attributes:
        stride: pixels between neighboring windows.
        padding: zeros at the (top, left); where P and Q end says how many are at the bottom and right.
        padding_end: zeros at the (bottom, right). They differ from `padding` for "same" and an even kernel.
        dilation: pixels between neighboring taps of a window.
        groups: number of independent convolutions that the channels are divided among.
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    padding_end: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def values(self) -> list[int]:
        """All of it as one list: what a registered operator is given."""
        return [*self.stride, *self.padding, *self.padding_end, *self.dilation, self.groups]

    @staticmethod
    def from_values(values: list[int]) -> ConvolutionSpec:
        """The inverse of `values`."""
        a, b, c, d, e, f, g, h, groups = values
        return ConvolutionSpec((a, b), (c, d), (e, f), (g, h), groups)

    def window(self, kernel_size: Pair) -> Pair:
        """(height, width) of the image that one output pixel reads, for a kernel of (R, S) taps."""
        return self.dilation[0] * (kernel_size[0] - 1) + 1, self.dilation[1] * (kernel_size[1] - 1) + 1

    def padded_size(self, size: Pair) -> Pair:
        """(height, width) of an image with its padding."""
        return size[0] + self.padding[0] + self.padding_end[0], size[1] + self.padding[1] + self.padding_end[1]

    def output_size(self, size: Pair, kernel_size: Pair) -> Pair:
        """(P, Q) for an image of (H, W) and a kernel of (R, S)."""
        padded, window = self.padded_size(size), self.window(kernel_size)
        return (padded[0] - window[0]) // self.stride[0] + 1, (padded[1] - window[1]) // self.stride[1] + 1

    def is_pointwise(self, kernel_size: Pair) -> bool:
        """Whether each output pixel is a linear layer of one input pixel: a plain matrix product."""
        return kernel_size == (1, 1) and self == ConvolutionSpec(dilation=self.dilation)

    def compiled(self, kernel_size: Pair, **others: Any) -> ConvolutionWindow:
        """What kernels are compiled for, for a kernel of (R, S); `others` are further fields."""
        (stride_h, stride_w), (dilation_h, dilation_w) = self.stride, self.dilation
        steps = stride_h // math.gcd(stride_h, dilation_h), stride_w // math.gcd(stride_w, dilation_w)
        return ConvolutionWindow(*kernel_size, *self.stride, *self.padding, *self.dilation, *steps, **others)


class ConvolutionWindow(NamedTuple):
    """What a convolution's kernels are compiled for, beside activation and tile.

    Attributes:
        R, S: taps along the height and the width, as are all pairs that follow.
        stride_h, stride_w: pixels between neighboring windows.
        padding_h, padding_w: zeros at the top and at the left.
        dilation_h, dilation_w: pixels between neighboring taps.
        tap_step_h, tap_step_w: taps between those that reach one input pixel from neighboring windows.
        wide: whether sizes are taken as int64.
        pool: whether output pixels come in windows of 2 x 2, and the largest of each is the result.
        even: whether the tile's depth divides the reduction, which then needs no mask.
        precision: `input_precision` of `tl.dot`.
        group: row tiles that share a column tile in the second-level cache (`gemm.grouped_tile`).
        group_inputs: input channels of a group, for the kernel that is compiled for them.
        multiplier: output channels to each input channel, where groups hold one.
        one_channel: whether the image has one channel.
        epsilon: of the normalization in the epilogue, if there is one.
    """

    R: int
    S: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int
    tap_step_h: int
    tap_step_w: int
    wide: bool = False
    pool: bool = False
    even: bool = False
    precision: str = "ieee"
    group: int = 1
    group_inputs: int = 0
    multiplier: int = 0
    one_channel: bool = False
    epsilon: float = 0.0


class ConvolutionShape(NamedTuple):
    """The sizes of x [N, C, H, W], W [K, C / groups, R, S] and y [N, K, P, Q]."""

    N: int
    H: int
    W: int
    C: int
    P: int
    Q: int
    K: int
    R: int
    S: int
    groups: int

    @staticmethod
    def of(x: tuple[int, ...], K: int, kernel_size: Pair, spec: ConvolutionSpec) -> ConvolutionShape:
        """The sizes for images of shape `x`, K output channels and a kernel of (R, S)."""
        N, C, H, W = x
        return ConvolutionShape(N, H, W, C, *spec.output_size((H, W), kernel_size), K, *kernel_size, spec.groups)

    @property
    def sides(self) -> tuple[int, ...]:
        """H, W, C, P, Q and K, as kernels take them."""
        return self[1:7]

    @property
    def taps(self) -> int:
        """R S."""
        return self.R * self.S

    @property
    def group_inputs(self) -> int:
        """Input channels of a group."""
        return self.C // self.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of a group."""
        return self.K // self.groups

    def pixels(self, pool: bool) -> int:
        """How many output pixels are computed: all, or those that 2 x 2 windows hold."""
        return self.N * ((self.P // 2) * (self.Q // 2) * 4 if pool else self.P * self.Q)


class Normalization(NamedTuple):
    """What follows a convolution: (z - mean) / sqrt(variance + epsilon) scale + shift, with constants [K].

    `scale` and `shift` may be None. All are contiguous.
    """

    mean: Any
    variance: Any
    scale: Any
    shift: Any
    epsilon: float

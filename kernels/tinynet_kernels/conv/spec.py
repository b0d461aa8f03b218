"""What a convolution is: how its windows slide, its sizes, and what kernels are compiled for.

A convolution has one, two or three spatial axes: (width,), (height, width) or (depth, height, width). Kernels know two
kinds: *planes* [H, W], and *volumes* [D, H, W]. A signal is a plane of one row; a volume whose windows neither cover
nor skip planes is a batch of planes (`ConvolutionShape.of`).

No Triton here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

Pair = tuple[int, int]  # (height, width)
Sizes = tuple[int, ...]  # one number for each spatial axis
Shape = tuple[int, ...]  # of images or a weight


class ConvolutionSpec(NamedTuple):
    """Stride, padding, dilation and groups; one number for each spatial axis.

    Attributes:
        stride: pixels between neighboring windows.
        padding: zeros before the first pixel of each axis.
        padding_end: zeros after the last. They differ from `padding` for "same" and an even kernel; below zero, as many
            pixels are left out (a transposed convolution's output padding).
        dilation: pixels between neighboring taps of a window.
        groups: number of independent convolutions that the channels are divided among.
    """

    stride: Sizes = (1, 1)
    padding: Sizes = (0, 0)
    padding_end: Sizes = (0, 0)
    dilation: Sizes = (1, 1)
    groups: int = 1

    @property
    def values(self) -> list[int]:
        """All of it as one list: what a registered operator is given."""
        return [*self.stride, *self.padding, *self.padding_end, *self.dilation, self.groups]

    @staticmethod
    def from_values(values: list[int]) -> ConvolutionSpec:
        """The inverse of `values`."""
        axes = len(values) // 4
        return ConvolutionSpec(*(tuple(values[i * axes : (i + 1) * axes]) for i in range(4)), groups=values[-1])

    def window(self, kernel_size: Sizes) -> Sizes:
        """The size of the image that one output pixel reads, for a kernel of so many taps."""
        return tuple(step * (taps - 1) + 1 for step, taps in zip(self.dilation, kernel_size, strict=True))

    def padded_size(self, size: Sizes) -> Sizes:
        """The size of an image with its padding."""
        return tuple(map(sum, zip(size, self.padding, self.padding_end, strict=True)))

    def output_size(self, size: Sizes, kernel_size: Sizes) -> Sizes:
        """The size of the result for an image and a kernel of these sizes."""
        axes = zip(self.padded_size(size), self.window(kernel_size), self.stride, strict=True)
        return tuple((padded - window) // stride + 1 for padded, window, stride in axes)

    def is_pointwise(self, kernel_size: Sizes) -> bool:
        """Whether each output pixel is a linear layer of one input pixel: a plain matrix product."""
        return max(kernel_size) == 1 and max(self.stride) == 1 and not self.is_padded and self.groups == 1

    def covers_image(self, kernel_size: Sizes, size: Sizes) -> bool:
        """Whether the one window there is has every pixel of an image as a tap: a linear layer of whole images."""
        plain = max(self.dilation) == 1 and not self.is_padded and self.groups == 1
        return plain and tuple(size) == tuple(kernel_size)

    @property
    def is_padded(self) -> bool:
        """Whether the result depends on zeros around the image, or leaves pixels of it out."""
        return any(self.padding) or any(self.padding_end)

    def slides_over_planes(self, kernel_size: Sizes) -> bool:
        """Whether a window of three axes sees one plane, and there is one window to each."""
        depths = kernel_size[0], self.stride[0], self.padding[0], self.padding_end[0]
        return depths == (1, 1, 0, 0)

    def without_depth(self) -> ConvolutionSpec:
        """The spec of the last two axes."""
        stride, padding, end, dilation = (sizes[1:] for sizes in self[:4])
        return ConvolutionSpec(stride, padding, end, dilation, self.groups)

    def with_rows(self) -> ConvolutionSpec:
        """A signal's spec for the same signal as an image of one row."""
        (stride,), (padding,), (end,), (dilation,) = self[:4]
        return ConvolutionSpec((1, stride), (0, padding), (0, end), (1, dilation), self.groups)

    def compiled(self, kernel_size: Sizes, **others: Any) -> ConvolutionWindow:
        """What kernels for planes or volumes are compiled for; `others` are further fields."""
        volume = len(kernel_size) == 3
        T, R, S = kernel_size if volume else (1, *kernel_size)
        padding = self.padding if volume else (0, *self.padding)
        stride, dilation = ((s if volume else (1, *s)) for s in (self.stride, self.dilation))
        tap_step = (s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))
        numbers = T, R, S, *stride, *padding, *dilation, *tap_step
        return ConvolutionWindow(*numbers, walk=Walk(T, R, S, *dilation), volume=volume, **others)


class Walk(NamedTuple):
    """The walk of a window's taps over an image.

    Attributes:
        planes, rows, columns: the most taps along each axis.
        step_d, step_h, step_w: pixels of the image from a tap to that behind, below and beside it.
    """

    planes: int
    rows: int
    columns: int
    step_d: int
    step_h: int
    step_w: int


class ConvolutionWindow(NamedTuple):
    """What a convolution's kernels are compiled for, beside activation and tile.

    Attributes:
        T, R, S: taps along the depth, the height and the width, as are all triples that follow.
        stride_d, stride_h, stride_w: pixels between neighboring windows.
        padding_d, padding_h, padding_w: zeros before the first pixel.
        dilation_d, dilation_h, dilation_w: pixels between neighboring taps.
        tap_step_d, tap_step_h, tap_step_w: taps between those that reach one input pixel from neighboring windows.
        walk: of the taps over the image that is read.
        volume: whether images have a depth; planes have T = 1, and kernels don't look at their D and Z.
        wide: whether sizes are taken as int64.
        pool: whether output pixels come in windows of 2 x 2, and the largest of each is the result.
        even: whether the tile's depth divides the reduction, which then needs no mask.
        precision: `input_precision` of `tl.dot`.
        group: row tiles that share a column tile in the second-level cache (`gemm.grouped_tile`).
        grouped: whether there are several groups; to read their number takes registers of the main loop.
        group_inputs: input channels of a group, for the kernel that is compiled for them.
        multiplier: output channels to each input channel, where groups hold one.
        one_channel: whether the image has one channel.
        taps_last: whether the weights of groups of one channel lie as [K, T R S], not as [T R S, K].
        epsilon: of the normalization in the epilogue, if there is one.
        split: whether a program computes one of several parts of its sums, which a second launch adds.
        in_order: whether a data gradient's pixels, of stride 1, are stored by their numbers: a CPU stores rows that
            follow each other from registers, while on a GPU the numbers would take registers from the sum.
    """

    T: int
    R: int
    S: int
    stride_d: int
    stride_h: int
    stride_w: int
    padding_d: int
    padding_h: int
    padding_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    tap_step_d: int
    tap_step_h: int
    tap_step_w: int
    walk: Walk
    volume: bool
    wide: bool = False
    pool: bool = False
    even: bool = False
    precision: str = "ieee"
    group: int = 1
    grouped: bool = False
    group_inputs: int = 0
    multiplier: int = 0
    one_channel: bool = False
    taps_last: bool = False
    epsilon: float = 0.0
    split: bool = False
    in_order: bool = False

    @property
    def phases_with_taps(self) -> int:
        """How many phases of a data gradient there are that a tap reaches; see `input_gradient.py`."""
        axes = zip(self[:3], self[3:6], self[6:9], self[9:12], strict=True)
        return math.prod(
            len({(tap * dilation - padding) % stride for tap in range(taps)})
            for taps, stride, padding, dilation in axes
        )

    def of_gradient(self) -> ConvolutionWindow:
        """The same with the walk of the taps that reach one input pixel: forward over them, backward over dZ."""
        taps, strides, dilations, tap_steps = self[:3], self[3:6], self[9:12], self[12:15]
        counts = (-(-count // step) for count, step in zip(taps, tap_steps, strict=True))
        steps = (-(t * d // s) for t, d, s in zip(tap_steps, dilations, strides, strict=True))
        return self._replace(walk=Walk(*counts, *steps))


class ConvolutionShape(NamedTuple):
    """The sizes of x [N, C, D, H, W], W [K, C / groups, T, R, S] and y [N, K, Z, P, Q]; of planes D = T = Z = 1."""

    N: int
    D: int
    H: int
    W: int
    C: int
    Z: int
    P: int
    Q: int
    K: int
    T: int
    R: int
    S: int
    groups: int

    @property
    def sides(self) -> tuple[int, ...]:
        """D, H, W, C, Z, P, Q and K, as kernels take them."""
        return self[1:9]

    @property
    def taps(self) -> int:
        """T R S."""
        return self.T * self.R * self.S

    @property
    def image_elements(self) -> int:
        """Values of the larger of an image and its result."""
        return max(self.C * self.D * self.H * self.W, self.K * self.Z * self.P * self.Q)

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
        return self.N * ((self.P // 2) * (self.Q // 2) * 4 if pool else self.Z * self.P * self.Q)

    @staticmethod
    def of(
        x: Shape, y: Shape, kernel_size: Sizes, spec: ConvolutionSpec
    ) -> tuple[ConvolutionShape, ConvolutionSpec, Sizes]:
        """The sizes for images and results of these shapes, with spec and kernel size, as planes where that is one.

        Args:
            x: [N, C, *sizes].
            y: [N, K, *sizes].
            kernel_size: of as many spatial axes.
            spec: of as many spatial axes.
        """
        (N, C, *before), (_, K, *after) = x, y
        if len(before) == 1:
            before, after, kernel_size, spec = [1, *before], [1, *after], (1, *kernel_size), spec.with_rows()
        if len(before) == 3 and spec.slides_over_planes(kernel_size):
            N, before, after = N * before[0], before[1:], after[1:]
            kernel_size, spec = kernel_size[1:], spec.without_depth()
        D, H, W, Z, P, Q, T, R, S = (
            size for sizes in (before, after, kernel_size) for size in ([1, *sizes] if len(sizes) == 2 else sizes)
        )
        return ConvolutionShape(N, D, H, W, C, Z, P, Q, K, T, R, S, spec.groups), spec, kernel_size


class Normalization(NamedTuple):
    """What follows a convolution: (z - mean) / sqrt(variance + epsilon) scale + shift, with constants [K].

    `scale` and `shift` may be None. All are contiguous.
    """

    mean: Any
    variance: Any
    scale: Any
    shift: Any
    epsilon: float


def weights_in(dw: torch.Tensor) -> int:
    """How many weights there are, of what a weight gradient stores: dW itself, or [splits, weights]."""
    return dw.shape[1] if dw.dim() == 2 else dw.numel()

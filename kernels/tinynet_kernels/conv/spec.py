"""How a two-dimensional convolution slides: stride, padding, dilation and groups. No Triton here."""

from __future__ import annotations

from typing import NamedTuple


class ConvolutionSpec(NamedTuple):
    """Stride, padding, dilation and groups; pairs are (height, width).

    Attributes:
        stride: pixels between neighboring windows.
        padding: zeros at the (top, left); where P and Q end says how many are at the bottom and right.
        padding_end: zeros at the (bottom, right). They differ from `padding` for "same" and an even kernel.
        dilation: pixels between neighboring taps of a window.
        groups: how many independent convolutions the channels are dealt to.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padding_end: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
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

    def window(self, kernel_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the image that one output pixel reads, for a kernel of (R, S) taps."""
        return self.dilation[0] * (kernel_size[0] - 1) + 1, self.dilation[1] * (kernel_size[1] - 1) + 1

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image with its padding."""
        return size[0] + self.padding[0] + self.padding_end[0], size[1] + self.padding[1] + self.padding_end[1]

    def output_size(self, size: tuple[int, int], kernel_size: tuple[int, int]) -> tuple[int, int]:
        """(P, Q) for an image of (H, W) and a kernel of (R, S)."""
        padded, window = self.padded_size(size), self.window(kernel_size)
        return (padded[0] - window[0]) // self.stride[0] + 1, (padded[1] - window[1]) // self.stride[1] + 1

    def is_pointwise(self, kernel_size: tuple[int, int]) -> bool:
        """Whether each output pixel is a linear layer of one input pixel: a plain matrix product."""
        return kernel_size == (1, 1) and self == ConvolutionSpec(dilation=self.dilation)

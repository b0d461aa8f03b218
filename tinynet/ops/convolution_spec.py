"""The numbers of a convolution or transposed convolution, checked: strides, paddings, dilations, groups, sizes.

To check them takes longer than a small convolution, so eager calls look for the result of an earlier call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from tinynet.ops.arguments import as_integer, as_sizes
from tinynet_kernels.conv.spec import ConvolutionSpec, Shape, Sizes
from tinynet_kernels.operand_layout import channels_last_strides

IntOrSizes = int | Sequence[int]  # one number, or one for each spatial axis
_LETTERS = {1: "L", 2: "H, W", 3: "D, H, W"}


def convolution_spec(
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrSizes,
    padding: IntOrSizes | str,
    dilation: IntOrSizes,
    groups: int,
) -> ConvolutionSpec:
    """The checked spec of a convolution; arguments as in `conv2d`.

    Args:
        name: of the public function: conv1d, conv2d or conv3d.

    Raises:
        ValueError, TypeError: as `conv2d`.
    """
    bias_shape = None if bias is None else bias.shape
    return _spec_of_shapes(name, x.shape, weight.shape, bias_shape, stride, padding, dilation, groups)


class EagerConvolution(NamedTuple):
    """What is known of an eager call before its tensors are read.

    Attributes:
        spec: of the convolution.
        pool: whether its result is pooled.
        readable: whether kernels can read x and the weight as they are in memory.
        channels_last: whether x and the weight came in channels_last, as then do the result and their gradients.
        shape: of the result, [N, K, *sizes], before it is pooled.
    """

    spec: ConvolutionSpec
    pool: bool
    readable: tuple[bool, bool]
    channels_last: tuple[bool, bool]
    shape: Shape


def eager_convolution(
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrSizes,
    padding: IntOrSizes | str,
    dilation: IntOrSizes,
    groups: int,
    pool: int,
) -> EagerConvolution:
    """The checked arguments of an eager convolution; as in `conv2d`.

    Args:
        name: of the public function: conv1d, conv2d or conv3d.

    Raises:
        ValueError, TypeError: as `conv2d`.
    """
    numbers = stride, padding, dilation, groups, pool
    check = _remembered_convolution if _are_plain(numbers) else _eager_convolution
    shapes = x.shape, weight.shape, None if bias is None else bias.shape
    return check(name, *shapes, x.stride(), weight.stride(), *numbers)


def _eager_convolution(
    name: str,
    x_shape: Shape,
    weight_shape: Shape,
    bias_shape: Shape | None,
    x_stride: Shape,
    weight_stride: Shape,
    stride: IntOrSizes,
    padding: IntOrSizes | str,
    dilation: IntOrSizes,
    groups: int,
    pool: int,
) -> EagerConvolution:
    spec = _spec_of_shapes(name, x_shape, weight_shape, bias_shape, stride, padding, dilation, groups)
    size = spec.output_size(x_shape[2 - len(weight_shape) :], weight_shape[2:])
    pooled = pool != 1 and check_pool(pool, size)
    if len(x_shape) < len(weight_shape):
        x_shape, x_stride = (1, *x_shape), (0, *x_stride)  # no stride of one image is asked for
    orders = _memory_order(x_shape, x_stride), _memory_order(weight_shape, weight_stride)
    readable, channels_last = zip(*orders, strict=True)
    return EagerConvolution(spec, pooled, readable, channels_last, (x_shape[0], weight_shape[0], *size))


_remembered_convolution = lru_cache(maxsize=4096)(_eager_convolution)


def _memory_order(shape: Shape, stride: Shape) -> tuple[bool, bool]:
    """Whether the memory of [N, C, *sizes] is [N, *sizes, C], and whether PyTorch calls that channels_last."""
    expected = channels_last_strides(shape)
    channels_inner = all(size == 1 or s == e for size, s, e in zip(shape, stride, expected, strict=True))
    return channels_inner, channels_inner and len(shape) > 3 and stride[1] == 1 and stride[-1] == shape[1]


def check_pool(pool: int, size: Sizes) -> bool:
    """Whether `pool` asks for windows of 2 x 2 on an output of `size`.

    Raises:
        ValueError: `pool` is neither 1 nor 2, or `size` holds no window.
    """
    if pool not in (1, 2):
        raise ValueError(f"conv2d: pool must be 1 or 2, got {pool!r}")
    if pool == 2 and min(size) < 2:
        raise ValueError(f"conv2d: pool=2 needs an output of at least 2 x 2 pixels, got {size}")
    return bool(pool == 2)


def _spec_of_shapes(
    name: str,
    x_shape: Shape,
    weight_shape: Shape,
    bias_shape: Shape | None,
    stride: IntOrSizes,
    padding: IntOrSizes | str,
    dilation: IntOrSizes,
    groups: int,
) -> ConvolutionSpec:
    axes = _check_dimensions(name, x_shape, weight_shape, "[K, C / groups, kernel size]")
    groups = _checked_groups(name, groups)
    K, group_inputs, *taps = weight_shape
    C, *size = x_shape[-axes - 1 :]
    if groups < 1 or K % groups != 0:
        raise ValueError(f"{name}: groups must be positive and divide the {K} output channels of weight, got {groups}")
    if group_inputs * groups != C:
        raise ValueError(
            f"{name}: input {tuple(x_shape)} has {C} channels, but weight {tuple(weight_shape)} with groups={groups} "
            f"takes {group_inputs * groups}"
        )
    _check_bias(name, bias_shape, K)
    strides = as_sizes(name, "stride", stride, 1, axes)
    dilations = as_sizes(name, "dilation", dilation, 1, axes)
    begin, end = _padding(name, padding, strides, dilations, taps)
    spec = ConvolutionSpec(strides, begin, end, dilations, groups)
    padded, window = spec.padded_size(tuple(size)), spec.window(tuple(taps))
    if min(taps) == 0 or any(needed > given for needed, given in zip(window, padded, strict=True)):
        raise ValueError(
            f"{name}: weight {tuple(weight_shape)} with dilation {dilations} needs {window} pixels, but input "
            f"{tuple(x_shape)} has {padded} with its padding"
        )
    return spec


def transposed_spec(
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrSizes,
    padding: IntOrSizes,
    output_padding: IntOrSizes,
    groups: int,
    dilation: IntOrSizes,
    *,
    remember: bool = False,
) -> tuple[ConvolutionSpec, Sizes]:
    """The checked spec of the convolution that maps a transposed convolution's result to its input; the result's size.

    Args:
        name: of the public function: conv_transpose1d, conv_transpose2d or conv_transpose3d.
        remember: whether to look for the result of an earlier call; not where a compiler follows the call.

    Raises:
        ValueError, TypeError: as `conv_transpose2d`.
    """
    numbers = stride, padding, output_padding, groups, dilation
    arguments = name, x.shape, weight.shape, None if bias is None else bias.shape, *numbers
    check = _remembered_transposed_spec if remember and _are_plain(numbers) else _transposed_spec_of_shapes
    return check(*arguments)


def _transposed_spec_of_shapes(
    name: str,
    x_shape: Shape,
    weight_shape: Shape,
    bias_shape: Shape | None,
    stride: IntOrSizes,
    padding: IntOrSizes,
    output_padding: IntOrSizes,
    groups: int,
    dilation: IntOrSizes,
) -> tuple[ConvolutionSpec, Sizes]:
    axes = _check_dimensions(name, x_shape, weight_shape, "[C, K / groups, kernel size]")
    groups = _checked_groups(name, groups)
    C, *size = x_shape[-axes - 1 :]
    taps = weight_shape[2:]
    if groups < 1 or C % groups != 0:
        raise ValueError(f"{name}: groups must be positive and divide the {C} channels of input, got {groups}")
    if weight_shape[0] != C:
        raise ValueError(
            f"{name}: input {tuple(x_shape)} has {C} channels, but weight {tuple(weight_shape)} takes {weight_shape[0]}"
        )
    _check_bias(name, bias_shape, weight_shape[1] * groups)
    strides = as_sizes(name, "stride", stride, 1, axes)
    dilations = as_sizes(name, "dilation", dilation, 1, axes)
    paddings = as_sizes(name, "padding", padding, 0, axes)
    extra = as_sizes(name, "output_padding", output_padding, 0, axes)
    if any(more >= max(step, dilated) for more, step, dilated in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"{name}: output_padding must be smaller than stride or dilation, got {extra} for stride {strides} and "
            f"dilation {dilations}"
        )
    end = tuple(before - more for before, more in zip(paddings, extra, strict=True))
    spec = ConvolutionSpec(strides, paddings, end, dilations, groups)
    before = zip(size, strides, spec.window(tuple(taps)), paddings, end, strict=True)
    result = tuple((pixels - 1) * step + window - first - last for pixels, step, window, first, last in before)
    if min(taps) == 0 or min(result) < 1:
        raise ValueError(
            f"{name}: weight {tuple(weight_shape)} with padding {paddings} gives an output of {result} pixels for "
            f"input {tuple(x_shape)}"
        )
    return spec, result


_remembered_transposed_spec = lru_cache(maxsize=4096)(_transposed_spec_of_shapes)


def _are_plain(numbers: Sequence[Any]) -> bool:
    """Whether they can be looked up: integers, tuples of these, and strings; 1.0 and True would be taken for 1."""
    for number in numbers:
        for each in number if type(number) is tuple else (number,):
            if type(each) is not int and type(each) is not str:
                return False
    return True


def _check_dimensions(name: str, x_shape: Shape, weight_shape: Shape, form: str) -> int:
    """How many spatial axes the function of this name has."""
    axes = int(name[-2])
    sizes = _LETTERS[axes]
    if len(weight_shape) != axes + 2:
        raise ValueError(f"{name}: weight must be {form} with {axes + 2} dimensions, got shape {tuple(weight_shape)}")
    if len(x_shape) not in (axes + 1, axes + 2):
        raise ValueError(f"{name}: input must be [N, C, {sizes}] or [C, {sizes}], got shape {tuple(x_shape)}")
    return axes


def _checked_groups(name: str, groups: Any) -> int:
    number = as_integer(groups)
    if number is None:
        raise TypeError(f"{name}: groups must be an integer, got {type(groups).__name__}")
    return number


def _check_bias(name: str, bias_shape: Shape | None, channels: int) -> None:
    if bias_shape is not None and bias_shape != (channels,):
        raise ValueError(f"{name}: bias must be [{channels}] for this weight, got {tuple(bias_shape)}")


def _padding(name: str, padding: Any, stride: Sizes, dilation: Sizes, taps: Sequence[int]) -> tuple[Sizes, Sizes]:
    """Zeros before the first pixel of each axis, and after the last."""
    if not isinstance(padding, str):
        sizes = as_sizes(name, "padding", padding, 0, len(taps))
        return sizes, sizes
    if padding == "valid":
        zeros = (0,) * len(taps)
        return zeros, zeros
    if padding != "same":
        raise ValueError(f"{name}: padding must be numbers, 'valid' or 'same', got {padding!r}")
    if max(stride) != 1:
        raise ValueError(f"{name}: padding 'same' needs stride 1, got stride {stride}")
    totals = [step * (count - 1) for step, count in zip(dilation, taps, strict=True)]
    return tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)

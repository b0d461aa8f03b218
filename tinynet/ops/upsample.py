"""Resampling of images: bilinear through kernels, all other modes by PyTorch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.ops import kernels
from tinynet.ops.arguments import Pair, as_pair, route_floating
from tinynet.ops.operator import Operator


def upsample_bilinear2d_reference(x: Tensor, out_size: Pair, align_corners: bool, factors: tuple[float, ...]) -> Tensor:
    """Bilinear resampling in plain PyTorch; see `tinynet_kernels.upsample`."""
    return torch.ops.aten.upsample_bilinear2d(x, out_size, align_corners, *(factors or (None, None)))


def _in_layout(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


upsample_bilinear2d_operator = Operator(
    "upsample_bilinear2d(Tensor x, SymInt[] size, SymInt[] out_size, bool align_corners, float[] factors, "
    "bool channels_last) -> Tensor",
    forward=lambda x, size, out_size, align_corners, factors, channels_last, save: [
        kernels.upsample.upsample_forward(
            x, out_size, factors, align_corners=align_corners, channels_last=channels_last
        )
    ],
    fake=lambda x, size, out_size, align_corners, factors, channels_last, save: [_empty(x, out_size, channels_last)],
    saves=lambda given, results: [],
    backward=lambda grads, saved, size, out_size, align_corners, factors, channels_last, wanted: [
        kernels.upsample.upsample_backward(
            _in_layout(grads[0], channels_last), size, factors, align_corners=align_corners, channels_last=channels_last
        )
    ],
    fake_backward=lambda grads, saved, size, out_size, align_corners, factors, channels_last, wanted: [
        _empty(grads[0], size, channels_last)
    ],
    reference=lambda x, size, out_size, align_corners, factors, channels_last: upsample_bilinear2d_reference(
        x, out_size, align_corners, factors
    ),
)


def _empty(like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*like.shape[:2], *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resamples an image; with mode "bilinear" and without `antialias` through kernels, otherwise by PyTorch.

    Args:
        input: [N, C, H, W] for "bilinear", float32, bfloat16, float16 (kernels) or float64 (reference).
        size: OH and OW, one number or two; or
        scale_factor: OH / H and OW / W, one number or two.
        mode: "bilinear", or one of PyTorch's other modes.
        align_corners: whether the corner pixels of input and output are at the same place; None for False.
        recompute_scale_factor: whether distances follow from the rounded sizes instead of `scale_factor`.
        antialias: whether to average over more pixels where the image shrinks.

    Returns:
        [N, C, OH, OW], input's dtype, channels_last where input is.

    Raises:
        ValueError: both or none of `size` and `scale_factor`, sizes below 1, an input without channels or pixels.
        TypeError: sizes that are no integers, an input that is neither floating point nor uint8 (which PyTorch takes).

    Source: torch.nn.functional.interpolate.
    """
    arguments = size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
    if has_torch_function_unary(input):
        return handle_torch_function(interpolate, (input,), input, *arguments)
    if mode != "bilinear" or antialias or input.dim() != 4 or input.dtype is torch.uint8:
        return F.interpolate(input, *arguments)  # pyright: ignore[reportArgumentType]
    route = route_floating("interpolate", None, ("input",), input)
    out_size, factors = _output_size(input, size, scale_factor, bool(recompute_scale_factor))
    if 0 in input.shape[1:]:
        raise ValueError(f"interpolate: only the batch of input may be empty, got shape {tuple(input.shape)}")
    channels_last = input.shape[1] > 1 and input.stride(1) == 1 and not input.is_contiguous()
    x = _in_layout(input, channels_last)
    return upsample_bilinear2d_operator(route, x, x.shape[2:], out_size, bool(align_corners), factors, channels_last)


def upsample(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """An older name of `interpolate`. Source: torch.nn.functional.upsample."""
    warnings.warn("functional.upsample is deprecated; use functional.interpolate", stacklevel=2)
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_bilinear(
    input: Tensor, size: int | Sequence[int] | None = None, scale_factor: float | Sequence[float] | None = None
) -> Tensor:
    """Bilinear `interpolate` with aligned corners. Source: torch.nn.functional.upsample_bilinear."""
    warnings.warn("functional.upsample_bilinear is deprecated; use functional.interpolate", stacklevel=2)
    return interpolate(input, size, scale_factor, "bilinear", align_corners=True)


def _output_size(input: Tensor, size: Any, scale_factor: Any, recompute: bool) -> tuple[Pair, tuple[float, ...]]:
    """(OH, OW), and the factors where distances follow from them and not from the sizes."""
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: expected either size or scale_factor")
    if size is not None:
        if recompute:
            raise ValueError("interpolate: recompute_scale_factor has no meaning with size")
        return as_pair("interpolate", "size", size, least=1), ()
    factors = tuple(scale_factor) if isinstance(scale_factor, Sequence) else (scale_factor, scale_factor)
    if len(factors) != 2:
        raise ValueError(f"interpolate: scale_factor must be one number or two, got {scale_factor!r}")
    height, width = map(float, factors)
    if not all(math.isfinite(factor) and factor > 0 for factor in (height, width)):
        raise ValueError(f"interpolate: scale_factor must be positive and finite, got {scale_factor!r}")
    out_size = [torch.sym_int(length * factor) for length, factor in zip(input.shape[2:], (height, width), strict=True)]
    return as_pair("interpolate", "output size", out_size, least=1), () if recompute else (height, width)

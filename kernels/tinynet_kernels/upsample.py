"""Bilinear resampling of images: y[oh, ow] from the four pixels of x around its source (h, w).

    h = (oh + 1/2) scale - 1/2, at least 0, or with aligned corners oh scale; w alike
    y = (1 - b) ((1 - a) x[h0, w0] + a x[h0, w1]) + b ((1 - a) x[h1, w0] + a x[h1, w1])

with h0 = floor(h), h1 = h0 + 1 within the image, b = h - h0; w0, w1 and a alike.

Tiling: one [block_rows, block_columns] tile of the dense result per program. In NCHW a row is a row of one plane and a
column is a pixel of it; in channels_last a row is a pixel of any image and a column is a channel.

Backward: without atomics. An element of dx gathers from the outputs whose source lies less than one pixel away: they
are neighbors, `loop_rows` by `loop_columns` at most.

Source: torch.nn.functional.interpolate.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.tiles import Target, ceil_div, current_target, rows_and_columns

Pair = tuple[int, int]


class Resampling(NamedTuple):
    """Whether the corner pixels of x and y are at the same place, the layout, and whether offsets are int64."""

    align_corners: bool
    channels_last: bool
    wide: bool


class UpsampleTile(NamedTuple):
    """The tile of one program, and the outputs that one element of dx gathers from; 0 in the forward."""

    block_rows: int
    block_columns: int
    loop_rows: int = 0
    loop_columns: int = 0


class Pixels(NamedTuple):
    """A program's tile of dense images, within a kernel.

    `first_image` is that of the first row (int64), `image` counts from there; `h` and `w` are the pixel's place, each
    [block_rows, 1] or [1, block_columns], and `channel` is what is added to an offset.
    """

    first_image: Any
    image: Any
    h: Any
    w: Any
    channel: Any
    offset: Any
    mask: Any


class Source(NamedTuple):
    """The two pixels along one axis that an output is computed from, and the share of the second."""

    low: Any
    high: Any
    share: Any


@triton.jit
def pixels_of_program(H, W, rows, columns, SPEC: constexpr, TILE: constexpr):
    """`Pixels` in images of [H, W]; in NCHW each plane is an image."""
    column_tiles = tl.cdiv(columns, TILE.block_columns)
    first_row = (tl.program_id(0) // column_tiles).to(tl.int64) * TILE.block_rows
    first_column = tl.program_id(0) % column_tiles * TILE.block_columns
    row = tl.arange(0, TILE.block_rows)
    column = tl.arange(0, TILE.block_columns)
    mask = (row < rows - first_row)[:, None] & (column < columns - first_column)[None, :]
    column += first_column
    lines = widened(H, SPEC.wide) * W if SPEC.channels_last else H  # rows of one image
    first_image = first_row // lines
    place = (first_row - first_image * lines).to(tl.int64 if SPEC.wide else tl.int32) + row
    image = (place // lines)[:, None]
    place = (place % lines)[:, None]
    offset = first_row * columns + (row[:, None] * widened(columns, SPEC.wide) + column[None, :])
    if SPEC.channels_last:
        return Pixels(first_image, image, place // W, place % W, column[None, :], offset, mask)
    else:
        return Pixels(first_image, image, place, column[None, :], 0, offset, mask)


@triton.jit
def source_of(o, scale, size, SPEC: constexpr):
    """The `Source` of output o along an axis of x that has `size` pixels."""
    HALF: constexpr = 0.0 if SPEC.align_corners else 0.5
    place = tl.maximum((o.to(tl.float32) + HALF) * scale - HALF, 0.0)
    low = tl.minimum(place.to(tl.int32), size - 1)
    share = tl.minimum(tl.maximum(place - low.to(tl.float32), 0.0), 1.0)
    return Source(low, tl.minimum(low + 1, size - 1), share)


@triton.jit
def first_output(i, inverse, SPEC: constexpr):
    """The first output whose source lies less than one pixel from pixel i; `inverse` is 1 / scale."""
    HALF: constexpr = 0.0 if SPEC.align_corners else 0.5
    place = (i.to(tl.float32) - (1.0 - HALF)) * inverse - HALF
    return tl.maximum(tl.ceil(place), 0.0).to(tl.int32)


@triton.jit
def share_of(i, source):
    """The share of pixel i in an output of this source."""
    return tl.where(source.low == i, 1.0 - source.share, 0.0) + tl.where(source.high == i, source.share, 0.0)


@triton.jit
def load_pixels(ptr, at, h, w, H, W, columns, mask, SPEC: constexpr):
    """The elements at (h, w) of the tile's images of [H, W], in fp32."""
    step = columns if SPEC.channels_last else 1
    area = widened(H, SPEC.wide) * W * step
    offset = at.image * area + (h * widened(W, SPEC.wide) + w) * step + at.channel
    return tl.load(ptr + at.first_image * area + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def upsample_forward_kernel(
    x_ptr, y_ptr, H, W, OH, OW, rows, columns, scale_h, scale_w, SPEC: constexpr, TILE: constexpr
):
    """y [rows, columns] of the images x."""
    at = pixels_of_program(OH, OW, rows, columns, SPEC, TILE)
    h = source_of(at.h, scale_h, H, SPEC)
    w = source_of(at.w, scale_w, W, SPEC)
    top = (1.0 - w.share) * load_pixels(x_ptr, at, h.low, w.low, H, W, columns, at.mask, SPEC)
    top += w.share * load_pixels(x_ptr, at, h.low, w.high, H, W, columns, at.mask, SPEC)
    bottom = (1.0 - w.share) * load_pixels(x_ptr, at, h.high, w.low, H, W, columns, at.mask, SPEC)
    bottom += w.share * load_pixels(x_ptr, at, h.high, w.high, H, W, columns, at.mask, SPEC)
    y = (1.0 - h.share) * top + h.share * bottom
    tl.store(y_ptr + at.offset, y.to(y_ptr.dtype.element_ty), mask=at.mask)


@triton.jit
def upsample_backward_kernel(
    grad_ptr,
    dx_ptr,
    H,
    W,
    OH,
    OW,
    rows,
    columns,
    out_columns,
    scale_h,
    scale_w,
    inverse_h,
    inverse_w,
    SPEC: constexpr,
    TILE: constexpr,
):
    """dx [rows, columns] of the images dY, which have `out_columns`."""
    at = pixels_of_program(H, W, rows, columns, SPEC, TILE)
    first_h = first_output(at.h, inverse_h, SPEC)
    first_w = first_output(at.w, inverse_w, SPEC)
    dx = tl.full((TILE.block_rows, TILE.block_columns), 0.0, tl.float32)
    for i in range(TILE.loop_rows):
        oh = first_h + i
        share_h = tl.where(oh < OH, share_of(at.h, source_of(oh, scale_h, H, SPEC)), 0.0)
        oh = tl.minimum(oh, OH - 1)
        for j in range(TILE.loop_columns):
            ow = first_w + j
            share_w = tl.where(ow < OW, share_of(at.w, source_of(ow, scale_w, W, SPEC)), 0.0)
            grad = load_pixels(grad_ptr, at, oh, tl.minimum(ow, OW - 1), OH, OW, out_columns, at.mask, SPEC)
            dx += tl.where(share_h * share_w == 0.0, 0.0, share_h * share_w * grad)
    tl.store(dx_ptr + at.offset, dx.to(dx_ptr.dtype.element_ty), mask=at.mask)


@costs(upsample_forward_kernel)
def upsample_forward_cost(y_ptr: torch.Tensor, **others: Any) -> Cost:
    """Six operations per output; x is read and y written once."""
    return Cost(6 * y_ptr.numel(), size_in_bytes(y_ptr, *others.values()))


@costs(upsample_backward_kernel)
def upsample_backward_cost(grad_ptr: torch.Tensor, dx_ptr: torch.Tensor, TILE: UpsampleTile, **_: Any) -> Cost:
    """A product and a sum per output that an element of dx gathers from; dY is read and dx written once."""
    return Cost(2 * dx_ptr.numel() * TILE.loop_rows * TILE.loop_columns, size_in_bytes(grad_ptr, dx_ptr))


def upsample_forward(
    x: torch.Tensor, out_size: Pair, factors: tuple[float, ...], *, align_corners: bool, channels_last: bool
) -> torch.Tensor:
    """y [N, C, OH, OW] in x's layout.

    Args:
        x: [N, C, H, W], dense, channels_last where that says so, else contiguous; not empty.
        out_size: (OH, OW).
        factors: of the two axes, the inverses of the scales; () for the quotients of the sizes.
        align_corners: whether the corner pixels of x and y are at the same place.
        channels_last: the layout.
    """
    y = empty_image(x, out_size, channels_last)
    N, C, H, W = x.shape
    problem = _problem(False, N, C, (H, W), out_size, factors, align_corners, channels_last, current_target())
    problem.launch(x, y)
    return y


def upsample_backward(
    grad: torch.Tensor, size: Pair, factors: tuple[float, ...], *, align_corners: bool, channels_last: bool
) -> torch.Tensor:
    """dx [N, C, H, W] of dY [N, C, OH, OW]; the arguments are those of the forward, and size is (H, W)."""
    dx = empty_image(grad, size, channels_last)
    N, C, *out = grad.shape
    problem = _problem(True, N, C, size, (out[0], out[1]), factors, align_corners, channels_last, current_target())
    problem.launch(grad, dx)
    return dx


def empty_image(like: torch.Tensor, size: Pair, channels_last: bool) -> torch.Tensor:
    """[N, C, *size] in this layout, without values."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*like.shape[:2], *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


@lru_cache(maxsize=4096)
def _problem(
    backward: bool,
    N: int,
    C: int,
    size: Pair,
    out_size: Pair,
    factors: tuple[float, ...],
    align_corners: bool,
    channels_last: bool,
    target: Target,
) -> Problem:
    axes = list(zip(size, out_size, factors or (None, None), strict=True))
    if align_corners:
        scales = [(length - 1) / (out - 1) if out > 1 else 0.0 for length, out, _ in axes]
    else:
        scales = [length / out if factor is None else 1 / factor for length, out, factor in axes]
    height, width = size if backward else out_size
    rows, columns = (N * height * width, C) if channels_last else (N * C * height, width)
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target)
    tile = UpsampleTile(block_rows, block_columns)
    lines = height * width if channels_last else height  # rows of one image
    images = block_rows // lines + 2  # that a tile reaches into, at most
    area = max(length[0] * length[1] for length in (size, out_size)) * (C if channels_last else 1)
    result = (block_rows, columns), (columns + block_columns, 1)
    wide = exceed_int32(((images + 1, area),), result, ((lines + block_rows, 1),))
    spec = Resampling(align_corners, channels_last, wide)
    grid = (ceil_div(rows, block_rows) * ceil_div(columns, block_columns),)
    options = {"SPEC": spec, "num_warps": num_warps}
    if not backward:
        return Problem(upsample_forward_kernel, grid, *size, *out_size, rows, columns, *scales, TILE=tile, **options)
    inverses = [1 / scale if scale else 0.0 for scale in scales]
    loops = [min(out, math.ceil(2 * inverse) or out) for inverse, (_, out, _) in zip(inverses, axes, strict=True)]
    tile = tile._replace(loop_rows=loops[0], loop_columns=loops[1])
    numbers = (*size, *out_size, rows, columns, C if channels_last else out_size[1], *scales, *inverses)
    return Problem(upsample_backward_kernel, grid, *numbers, TILE=tile, **options)

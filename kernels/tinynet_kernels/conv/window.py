"""What convolution kernels share: positions of output pixels, which taps meet the image, boxes, and the epilogue.

Z, P and Q are the output's planes, rows and columns. Images of planes have no depth: D and Z are not read, and what
depends on them is not compiled, unless WINDOW.volume. A box is a tile of output pixels with a size along each of N (of
volumes N Z), P and Q.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.activation import activate, activation_derivative
from tinynet_kernels.constants import constexpr
from tinynet_kernels.offsets import exceed_int32

OUTSIDE = tl.constexpr(-(1 << 30))  # a row from which no tap leads into the image: windows have fewer rows


class Windows(NamedTuple):
    """The pixels of one program's tile within a kernel, and what each reads of an image: one element per tap.

    Attributes:
        in_tile: which pixels there are.
        d, h, w: plane, row and column of each window's first tap; outside of the image in its padding.
        base: pointer to the image of the first window.
        offset: of each window's first tap from there.
        D, H, W, C: planes, rows, columns and channels of an image.
    """

    in_tile: Any
    d: Any
    h: Any
    w: Any
    base: Any
    offset: Any
    D: Any
    H: Any
    W: Any
    C: Any


class Taps(NamedTuple):
    """How many planes, rows and columns of taps a program walks over, within a kernel; see `spec.Walk`."""

    planes: Any
    rows: Any
    columns: Any


class Filters(NamedTuple):
    """The weights that a program multiplies windows with, within a kernel.

    Attributes:
        base: pointer to the first tap of the first channel.
        offset: of [channels, columns] from there.
        next_tap, next_row, next_plane, next_channels: from a tap to the next, from the last of a row to the first of
            the next, from the last of a plane to the first of the next, and from the last to the next channels' first.
    """

    base: Any
    offset: Any
    next_tap: Any
    next_row: Any
    next_plane: Any
    next_channels: Any


class Part(NamedTuple):
    """Which part of a sum over taps and channels a program computes, of how many, within a kernel."""

    index: Any
    count: Any


@triton.jit
def all_channels(channels, WINDOW: constexpr):
    """The channels of all groups, of which each has so many; the groups are the second axis of the grid."""
    return channels * tl.num_programs(1) if WINDOW.grouped else channels


@triton.jit
def pixel_position(pixel, P, Q):
    """(image, row, column) of flat indices into [N, P, Q]."""
    row = pixel // Q
    return row // P, row % P, pixel % Q


@triton.jit
def output_position(pixel, Z, P, Q, WINDOW: constexpr):
    """(image, plane, row, column) of output pixels in memory order or, to pool, the four of each 2 x 2 window in turn.

    Of planes the second is 0.
    """
    if WINDOW.pool:
        tap = pixel % 4
        image, p, q = pixel_position(pixel // 4, P // 2, Q // 2)
        return image, tl.zeros_like(p), 2 * p + tap // 2, 2 * q + tap % 2
    else:
        image, p, q = pixel_position(pixel, P, Q)
        if WINDOW.volume:
            return image // Z, image % Z, p, q
        else:
            return image, tl.zeros_like(p), p, q


@triton.jit
def pixels_of_image(Z, P, Q, WINDOW: constexpr):
    """How many output pixels an image has: those that 2 x 2 windows hold, to pool."""
    if WINDOW.pool:
        return 4 * (P // 2) * (Q // 2)
    elif WINDOW.volume:
        return Z * P * Q
    else:
        return P * Q


@triton.jit
def offset_in(image, d, h, w, D, H, W, WINDOW: constexpr):
    """How many pixels lie before (image, plane, row, column)."""
    if WINDOW.volume:
        return ((image * D + d) * H + h) * W + w
    else:
        return (image * H + h) * W + w


@triton.jit
def elements_before(image, D, H, W, C, WINDOW: constexpr):
    """How many elements lie before an image, int64."""
    if WINDOW.volume:
        return image.to(tl.int64) * D * H * W * C
    else:
        return image.to(tl.int64) * H * W * C


@triton.jit
def windows_of(x_ptr, channel, pixel_start, pixels, D, H, W, C, Z, P, Q, WINDOW: constexpr, BLOCK_PIXELS: constexpr):
    """The `Windows` of BLOCK_PIXELS output pixels from `pixel_start` on, in the order of `output_position`.

    They read the channels from `channel` on. Offsets are relative to the first window's image: int32, or int64 where
    sizes are (huge images).
    """
    pixel = pixel_start + tl.arange(0, BLOCK_PIXELS)
    image, o, p, q = output_position(pixel, Z, P, Q, WINDOW)
    first_image = pixel_start // pixels_of_image(Z, P, Q, WINDOW)
    d = o * WINDOW.stride_d - WINDOW.padding_d
    h = p * WINDOW.stride_h - WINDOW.padding_h
    w = q * WINDOW.stride_w - WINDOW.padding_w
    base = x_ptr + elements_before(first_image, D, H, W, C, WINDOW) + channel
    offset = offset_in(image - first_image, d, h, w, D, H, W, WINDOW) * C
    return Windows(pixel < pixels, d, h, w, base, offset, D, H, W, C)


@triton.jit
def largest_of_window(y):
    """The largest of y [ROWS, TAPS, COLUMNS] along the taps, and which it was: NaN before numbers, of NaN the last.

    Of equal numbers the first; all as in torch.nn.functional.max_pool2d.
    """
    tap = tl.broadcast_to(tl.arange(0, y.shape[1])[None, :, None], y.shape)
    largest = tl.max(y, axis=1)
    claim = tl.where(y == tl.expand_dims(largest, 1), tap, y.shape[1])  # pyright: ignore
    argmax = tl.min(tl.where(y != y, -1 - tap, claim), axis=1)  # the last NaN is the lowest
    is_nan = argmax < 0  # pyright: ignore
    return tl.where(is_nan, float("nan"), largest), tl.where(is_nan, -1 - argmax, argmax)  # pyright: ignore


@triton.jit
def inside(position, size):
    """Whether positions lie in [0, size)."""
    return (position >= 0) & (position < size)


@triton.jit
def tap_is_inside(windows, h, t, r, s, WINDOW: constexpr):
    """Whether tap (t, r, s) of each window, whose first row is `h`, lies in the image; see `sum_over_taps`."""
    WALK: constexpr = WINDOW.walk
    valid = inside(h + r * WALK.step_h, windows.H) & inside(windows.w + s * WALK.step_w, windows.W)
    if WINDOW.volume:
        valid = valid & inside(windows.d + t * WALK.step_d, windows.D)
    return valid


@triton.jit
def tap_bits(windows, h, taps, WINDOW: constexpr):
    """A bit for each tap of a lane's window, in the order of the walk: whether it lies in the image."""
    WALK: constexpr = WINDOW.walk
    PLANES: constexpr = WALK.planes
    ROWS: constexpr = WALK.rows
    COLUMNS: constexpr = WALK.columns
    bits = tl.zeros(h.shape, tl.int32)
    for t in tl.static_range(PLANES):  # pyright: ignore
        for r in tl.static_range(ROWS):  # pyright: ignore
            for s in tl.static_range(COLUMNS):  # pyright: ignore
                valid = tap_is_inside(windows, h, t, r, s, WINDOW) & (r < taps.rows) & (s < taps.columns)
                tap = r * taps.columns + s
                if WINDOW.volume:
                    valid = valid & (t < taps.planes)
                    tap += t * taps.rows * taps.columns
                bits |= valid.to(tl.int32) << tl.minimum(tap, 31)
    return bits


@triton.jit
def ends_within(steps, taps):
    """How many rows of taps, planes of taps, and walks over all of them end within so many steps."""
    rows = steps // max(taps.columns, 1)  # phases of a data gradient may have no taps, and then no steps
    planes = rows // max(taps.rows, 1)
    return rows, planes, planes // max(taps.planes, 1)


@triton.jit
def distance(steps, ends, next_tap, next_row, next_plane, next_channels):
    """How far so many steps lead, of which some end rows, planes or walks."""
    rows, planes, walks = ends
    within_planes = tl.cast(steps - rows, tl.int64) * next_tap + tl.cast(rows - planes, tl.int64) * next_row
    return within_planes + tl.cast(planes - walks, tl.int64) * next_plane + tl.cast(walks, tl.int64) * next_channels


@triton.jit
def sum_over_taps(windows, filters, taps, channels, part, WINDOW: constexpr, TILE: constexpr):
    """sum over taps and channels of windows [PIXELS, taps, channels] and filters [taps, channels, COLUMNS], in fp32.

    One step is one tap of block_k channels. Taps are the inner loop, so neighboring steps read the same lines. Which
    taps of a pixel lie inside the image is a bitmask, shifted once per step. WINDOW.walk says how far it is in the
    image from tap to tap. For WINDOW.split the sum is over the steps of one part.

    Args:
        windows: the `Windows` of block_m pixels.
        filters: the `Filters` of block_n columns; columns past the end are copies of others.
        taps: the `Taps`, at most those of WINDOW.walk.
        channels: of one group. WINDOW.even says that block_k divides them.
        part: the `Part`.
    """
    BLOCK_M: constexpr = TILE.block_m
    BLOCK_N: constexpr = TILE.block_n
    BLOCK_K: constexpr = TILE.block_k
    WALK: constexpr = WINDOW.walk
    BITMASK: constexpr = WALK.planes * WALK.rows * WALK.columns <= 32
    next_tap = WALK.step_w * windows.C
    row = WALK.step_h * windows.W * windows.C
    next_row = row - (taps.columns - 1) * next_tap
    next_plane = next_row
    next_channels = BLOCK_K - (taps.rows - 1) * row - (taps.columns - 1) * next_tap
    count = taps.rows * taps.columns
    if WINDOW.volume:
        plane = WALK.step_d * windows.H * windows.W * windows.C
        next_plane = plane - (taps.rows - 1) * row - (taps.columns - 1) * next_tap
        next_channels -= (taps.planes - 1) * plane
        plane_taps = count
        count *= taps.planes
        line = 0
    channel = tl.arange(0, BLOCK_K)
    a_base = windows.base
    b_base = filters.base
    a_offset = windows.offset[:, None] + channel[None, :]
    h = tl.where(windows.in_tile, windows.h, OUTSIDE)
    if BITMASK:
        all_bits = tap_bits(windows, h, taps, WINDOW)
        bits = all_bits
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    tap = 0
    column = 0
    channels_left = channels
    steps = count * tl.cdiv(channels, BLOCK_K)
    if WINDOW.split:
        steps_of_part = tl.cdiv(steps, part.count)
        first = part.index * steps_of_part
        steps = min(steps_of_part, steps - first)
        ends = ends_within(first, taps)
        a_base += distance(first, ends, next_tap, next_row, next_plane, next_channels)
        b_base += distance(first, ends, filters.next_tap, filters.next_row, filters.next_plane, filters.next_channels)
        column = first - ends[0] * taps.columns
        tap = first - ends[2] * count
        channels_left -= ends[2] * BLOCK_K
        if WINDOW.volume:
            line = ends[0] - ends[1] * taps.rows
        if BITMASK:
            bits = all_bits >> tap
    for _ in range(steps):
        if BITMASK:
            valid = tl.cast(bits & 1, tl.int1)
        elif WINDOW.volume:
            in_plane = tap % plane_taps
            valid = tap_is_inside(windows, h, tap // plane_taps, in_plane // taps.columns, column, WINDOW)
        else:
            valid = tap_is_inside(windows, h, 0, tap // taps.columns, column, WINDOW)
        if WINDOW.even:
            a = tl.load(a_base + a_offset, mask=valid[:, None], other=0.0)
            b = tl.load(
                b_base + filters.offset
            )  # in bounds: columns past the end are copies, block_k divides the channels
        else:
            a = tl.load(a_base + a_offset, mask=valid[:, None] & (channel < channels_left)[None, :], other=0.0)
            b = tl.load(b_base + filters.offset, mask=(channel < channels_left)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=WINDOW.precision)
        tap += 1
        column += 1
        row_ends = column == taps.columns
        taps_end = tap == count
        next_image = tl.where(row_ends, next_row, next_tap)
        if WINDOW.volume:
            line += tl.where(row_ends, 1, 0)
            plane_ends = line == taps.rows
            next_image = tl.where(plane_ends, next_plane, next_image)
            line = tl.where(plane_ends, 0, line)
        a_base += tl.where(taps_end, next_channels, next_image)
        next_filters = tl.where(row_ends, filters.next_row, filters.next_tap)
        if WINDOW.volume:
            next_filters = tl.where(plane_ends, filters.next_plane, next_filters)
        b_base += tl.where(taps_end, filters.next_channels, next_filters)
        if BITMASK:
            bits = tl.where(taps_end, all_bits, bits >> 1)
        if not WINDOW.even:
            channels_left -= tl.where(taps_end, BLOCK_K, 0)
        column = tl.where(row_ends, 0, column)
        tap = tl.where(taps_end, 0, tap)
    return acc


@triton.jit
def line_bits(position, size, TAPS: constexpr, DILATION: constexpr):
    """Bit t of a lane: whether tap t along one dimension, for a window that begins at `position`, is in the image."""
    bits = tl.zeros(position.shape, tl.int32)
    for t in tl.static_range(TAPS):  # pyright: ignore
        bits |= inside(position + t * DILATION, size).to(tl.int32) << t
    return bits


@triton.jit
def box_position(box, P, Q, TILE: constexpr):
    """The first (image, row, column) of a box."""
    n, p, q = pixel_position(box, tl.cdiv(P, TILE.box_p), tl.cdiv(Q, TILE.box_q))
    return n * TILE.box_n, p * TILE.box_p, q * TILE.box_q


@triton.jit
def next_box(n, p, q, P, Q, TILE: constexpr):
    """The first (image, row, column) of the box after the one that begins at (n, p, q)."""
    q += TILE.box_q
    row_ends = q >= Q
    q = tl.where(row_ends, 0, q)
    p = tl.where(row_ends, p + TILE.box_p, p)
    image_ends = p >= P
    return tl.where(image_ends, n + TILE.box_n, n), tl.where(image_ends, 0, p), q


@triton.jit
def of_channels(ptr, channel, mask):
    """Values [1, COLUMNS] of the output channels from `channel` on, in fp32."""
    return tl.load(ptr + channel + tl.arange(0, mask.shape[0]), mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def with_bias(z, bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr, channel, columns_left, WINDOW: constexpr):
    """z [PIXELS, COLUMNS] + b; with a mean (z + b - mean) / sqrt(variance + epsilon) scale + shift.

    All are of the output channels from `channel` on; absent ones are None.
    """
    mask = tl.arange(0, z.shape[1]) < columns_left
    if bias_ptr is not None:
        z += of_channels(bias_ptr, channel, mask)
    if mean_ptr is not None:
        variance = of_channels(variance_ptr, channel, mask)
        z = (z - of_channels(mean_ptr, channel, mask)) * tl.rsqrt(variance + WINDOW.epsilon)
        if scale_ptr is not None:
            z *= of_channels(scale_ptr, channel, mask)
        if shift_ptr is not None:
            z += of_channels(shift_ptr, channel, mask)
    return z


@triton.jit
def store_part(z, parts_ptr, part, pixel_start, pixels, channel, columns_left, K):
    """A part of z [PIXELS, COLUMNS], of the output channels from `channel` of K on, into parts [parts, pixels, K]."""
    row = tl.arange(0, z.shape[0])
    column = tl.arange(0, z.shape[1])
    mask = (row < pixels - pixel_start)[:, None] & (column < columns_left)[None, :]
    base = (part.index.to(tl.int64) * pixels + pixel_start) * K + channel
    tl.store(parts_ptr + base + row[:, None] * K + column[None, :], z, mask=mask)


@triton.jit
def store_activated(
    z,
    y_ptr,
    z_ptr,
    argmax_ptr,
    partial_ptr,
    pixel_start,
    pixels,
    channel,
    columns_left,
    K,
    ACTIVATION: constexpr,
    WINDOW: constexpr,
):
    """The end of the epilogue of z [PIXELS, COLUMNS]: y = act(z), and z itself unless z_ptr is None.

    Columns are output channels from `channel` of K on, `columns_left` up to the group's last. To pool, four rows
    make one window: stored are the largest y, z there, and which tap it was, 2 row + column, where argmax_ptr is given.
    Where there is `partial` [tiles, 3, K], the tile's statistics of y go there; see `store_statistics`.
    """
    column = tl.arange(0, z.shape[1])
    column_mask = column < columns_left
    y = activate(z, ACTIVATION)
    POOL: constexpr = WINDOW.pool
    TAPS: constexpr = 4 if POOL else 1
    ROWS: constexpr = z.shape[0] // TAPS
    COLUMNS: constexpr = z.shape[1]
    if POOL:
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)  # rounded first, as where pooling is a layer of its own
        shape: constexpr = (ROWS, TAPS, COLUMNS)
        y, argmax = largest_of_window(tl.reshape(y, shape))
        if z_ptr is not None:
            is_largest = tl.arange(0, TAPS)[None, :, None] == argmax[:, None, :]
            z = tl.sum(tl.where(is_largest, tl.reshape(z, shape), 0.0), axis=1)
    row = tl.arange(0, ROWS)
    row_start = pixel_start // TAPS
    mask = (row < pixels // TAPS - row_start)[:, None] & column_mask[None, :]
    base = row_start.to(tl.int64) * K + channel
    offset = row[:, None] * K + column[None, :]
    if z_ptr is not None:
        tl.store(z_ptr + base + offset, z.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + base + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
    if argmax_ptr is not None:  # only to pool
        tl.store(argmax_ptr + base + offset, argmax.to(tl.int8), mask=mask)
    if partial_ptr is not None:
        part = pixel_start // z.shape[0]
        y = y.to(y_ptr.dtype.element_ty).to(tl.float32)  # rounded first, as the layer that follows reads it
        store_statistics(y, partial_ptr + part.to(tl.int64) * 3 * K + channel, row_start, pixels, column_mask, K)


@triton.jit
def store_statistics(y, partial_ptr, row_start, rows, column_mask, K):
    """Count, mean and sum of squared deviations of the columns of y [ROWS, COLUMNS], each K elements apart."""
    valid = (tl.arange(0, y.shape[0]) < rows - row_start)[:, None]
    count = tl.sum(valid.to(tl.float32), axis=0)
    mean = tl.sum(tl.where(valid, y, 0.0), axis=0) / count  # pyright: ignore[reportOperatorIssue]
    deviation = tl.where(valid, y - mean[None, :], 0.0)
    column = tl.arange(0, y.shape[1])
    tl.store(partial_ptr + column, tl.zeros_like(mean) + count, mask=column_mask)
    tl.store(partial_ptr + K + column, mean, mask=column_mask)
    tl.store(partial_ptr + 2 * K + column, tl.sum(deviation * deviation, axis=0), mask=column_mask)


@triton.jit
def pixel_gradients(dy_ptr, saved_ptr, argmax_ptr, base, offset, mask, tap, ACTIVATION: constexpr):
    """dZ = dY act'(saved) of [PIXELS, CHANNELS], fp32; with argmax of 2 x 2 windows 0 where another tap is largest."""
    dz = tl.load(dy_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION.name != "identity":
        saved = tl.load(saved_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        dz *= activation_derivative(saved, ACTIVATION)
    if argmax_ptr is not None:
        argmax = tl.load(argmax_ptr + base + offset, mask=mask, other=-1).to(tl.int32)
        dz = tl.where(argmax == tap[:, None], dz, 0.0)
    return dz


def is_wide_convolution(
    pixels: int, image_pixels: int, block_pixels: int, image_elements: int, *offsets: tuple[tuple[int, int], ...]
) -> bool:
    """Whether a tile of output pixels reaches further over its input than int32 offsets do, or they count its pixels.

    Args:
        pixels: of all images.
        image_pixels: of one image.
        block_pixels: of one program.
        image_elements: values of one image of the tensor that is read.
        offsets: others in the tile; see `exceed_int32`.
    """
    images = (block_pixels - 1) // image_pixels + 2
    return exceed_int32(((pixels + block_pixels, 1),), ((images + 1, image_elements),), *offsets)

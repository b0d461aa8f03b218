"""The phases of a data gradient within a kernel: which input pixels a program computes, and the taps that reach them.

With a stride, each tap reaches only the input pixels of one phase (d mod stride, h mod stride, w mod stride); see
`input_gradient.py`. From a tap to the next that reaches a pixel, the tap grows by tap_step and the output pixel shrinks
by tap_step dilation / stride.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv.window import Taps, Windows, elements_before, offset_in, pixel_position


class Phase(NamedTuple):
    """A phase of an image: its first pixel, and its planes, rows and columns."""

    d: Any
    h: Any
    w: Any
    planes: Any
    rows: Any
    columns: Any


class PhasePixels(NamedTuple):
    """Pixels of a phase.

    Attributes:
        first_image: of the first pixel.
        image: of each pixel, counted from there.
        plane, row, along: its place among the phase's pixels.
        windows: the `Windows` of dZ that they are computed from.
        taps: the `Taps`.
        tap: the first, counted in memory.
    """

    first_image: Any
    image: Any
    plane: Any
    row: Any
    along: Any
    windows: Any
    taps: Any
    tap: Any


class TapSteps(NamedTuple):
    """Elements of W from a tap of a phase to the next, and from the last of a row, a plane, and all to the next one's
    first; `last` leads back to the first tap."""

    next_tap: Any
    next_row: Any
    next_plane: Any
    last: Any


@triton.jit
def first_tap(phase, TAPS: constexpr, STEP: constexpr, STRIDE: constexpr, PADDING: constexpr, DILATION: constexpr):
    """The first tap along one dimension that reaches the input pixels of a phase, or TAPS where none does."""
    tap = tl.cast(TAPS, tl.int32)
    for candidate in tl.static_range(STEP):  # pyright: ignore
        reaches = (phase + PADDING - candidate * DILATION) % STRIDE == 0
        tap = tl.where(reaches, tl.minimum(candidate, TAPS), tap)
    return tap


@triton.jit
def phase_of(program, D, H, W, WINDOW: constexpr):
    """The `Phase` with this number."""
    d = program // (WINDOW.stride_h * WINDOW.stride_w)
    h = program // WINDOW.stride_w % WINDOW.stride_h
    w = program % WINDOW.stride_w
    rows = (H - h + WINDOW.stride_h - 1) // WINDOW.stride_h
    columns = (W - w + WINDOW.stride_w - 1) // WINDOW.stride_w
    planes = (D - d + WINDOW.stride_d - 1) // WINDOW.stride_d if WINDOW.volume else 1
    return Phase(d, h, w, planes, rows, columns)


@triton.jit
def pixels_of_phase(phase, WINDOW: constexpr):
    """How many pixels of one image are in a phase."""
    pixels = phase.rows * phase.columns
    if WINDOW.volume:
        pixels *= phase.planes
    return pixels


@triton.jit
def phase_pixels(dz_ptr, channel, phase, pixel, pixel_start, pixels, Z, P, Q, K, WINDOW: constexpr):
    """The `PhasePixels` of `pixel`, from `pixel_start` on; dZ's channels from `channel` on are read.

    Offsets are relative to the first pixel's image: int32, or int64 where sizes are (huge images).
    """
    T: constexpr = WINDOW.T
    R: constexpr = WINDOW.R
    S: constexpr = WINDOW.S
    r = first_tap(phase.h, R, WINDOW.tap_step_h, WINDOW.stride_h, WINDOW.padding_h, WINDOW.dilation_h)
    s = first_tap(phase.w, S, WINDOW.tap_step_w, WINDOW.stride_w, WINDOW.padding_w, WINDOW.dilation_w)
    tap_rows = (R - r + WINDOW.tap_step_h - 1) // WINDOW.tap_step_h
    tap_columns = (S - s + WINDOW.tap_step_w - 1) // WINDOW.tap_step_w
    tap_planes = 1
    first_image = pixel_start // pixels_of_phase(phase, WINDOW)
    image, row, along = pixel_position(pixel, phase.rows, phase.columns)
    plane = tl.zeros_like(image)
    o = plane
    tap = r * S + s
    if WINDOW.volume:
        plane = image % phase.planes
        image = image // phase.planes
        t = first_tap(phase.d, T, WINDOW.tap_step_d, WINDOW.stride_d, WINDOW.padding_d, WINDOW.dilation_d)
        tap_planes = (T - t + WINDOW.tap_step_d - 1) // WINDOW.tap_step_d
        o = plane + (phase.d + WINDOW.padding_d - t * WINDOW.dilation_d) // WINDOW.stride_d  # exact
        tap += t * R * S
    image -= first_image
    p = row + (phase.h + WINDOW.padding_h - r * WINDOW.dilation_h) // WINDOW.stride_h  # exact
    q = along + (phase.w + WINDOW.padding_w - s * WINDOW.dilation_w) // WINDOW.stride_w
    base = dz_ptr + elements_before(first_image, Z, P, Q, K, WINDOW) + channel
    windows = Windows(pixel < pixels, o, p, q, base, offset_in(image, o, p, q, Z, P, Q, WINDOW) * K, Z, P, Q, K)
    taps = Taps(tap_planes, tap_rows, tap_columns)
    return PhasePixels(first_image, image, plane, row, along, windows, taps, tap)


@triton.jit
def offset_of_pixels(pixels, pixel, phase, D, H, W, WINDOW: constexpr):
    """Pixels of dX before each `pixel` of the `PhasePixels`, from the start of their first image on.

    Not one of their attributes: computed before the taps are walked over, it would take registers from that loop.
    """
    if WINDOW.in_order:
        offset = pixel - pixels.first_image * pixels_of_phase(phase, WINDOW)
    else:
        d = pixels.plane * WINDOW.stride_d + phase.d
        h = pixels.row * WINDOW.stride_h + phase.h
        w = pixels.along * WINDOW.stride_w + phase.w
        offset = offset_in(pixels.image, d, h, w, D, H, W, WINDOW)
    return offset


@triton.jit
def tap_steps(taps, channels, WINDOW: constexpr):
    """The `TapSteps` of W [..., T, R, S, channels]."""
    next_tap = WINDOW.tap_step_w * channels
    row = WINDOW.tap_step_h * WINDOW.S * channels
    row_of_taps = (taps.columns - 1) * next_tap
    plane = WINDOW.tap_step_d * WINDOW.R * WINDOW.S * channels
    plane_of_taps = (taps.rows - 1) * row + row_of_taps
    return TapSteps(next_tap, row - row_of_taps, plane - plane_of_taps, (taps.planes - 1) * plane + plane_of_taps)

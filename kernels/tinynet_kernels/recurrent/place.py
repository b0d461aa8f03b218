"""Where a recurrent program works: its sequences, the rows of a step, and how both are loaded and stored.

Rows are packed: step t of sequence b is row offset[t] + b, and exists where t < length[b]. Sequences are sorted by
falling length, so the first of a block is its longest. A dense batch has offset[t] = t B and needs no tables (None).

With R rows, D directions and B sequences, tensors of rows are [R, D, width] and tensors of states [D, B, width], all
contiguous. Blocks are [batch, unit].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr


class Block(NamedTuple):
    """A program's sequences, all of one direction; within a kernel.

    Attributes:
        direction: 0 forward, 1 reverse.
        directions: D.
        first: the first sequence.
        index: 0, 1, ... of each sequence in the block.
        distance: of each sequence from the first.
        exists: which sequences are in the batch.
        length: steps of each sequence, 0 past the batch.
        steps: of the longest sequence.
        state: row of the first sequence in [D, B], int64.
    """

    direction: Any
    directions: Any
    first: Any
    index: Any
    distance: Any
    exists: Any
    length: Any
    steps: Any
    state: Any


class Step(NamedTuple):
    """One step of a block; within a kernel.

    Attributes:
        base: row of the first sequence in [R, D], int64.
        active: which sequences have the step.
        keeps: which of these keep the state before it: those without a reset.
    """

    base: Any
    active: Any
    keeps: Any


@triton.jit
def block_of(lengths_ptr, T, B, BLOCK_BATCH: constexpr, INTERLEAVED: constexpr):
    """The block of this program; the grid has blocks of sequences along its first axis, directions along the second.

    Its sequences are neighbors, or INTERLEAVED every n-th of n programs'.
    """
    direction = tl.program_id(1)
    index = tl.arange(0, BLOCK_BATCH)
    if INTERLEAVED:
        first = tl.program_id(0)
        distance = index.to(tl.int64) * tl.num_programs(0)
    else:
        first = tl.program_id(0) * BLOCK_BATCH
        distance = index
    exists = first + distance < B
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + first + distance, mask=exists, other=0)
        steps = tl.load(lengths_ptr + first)  # in bounds: first < B
    else:
        length = tl.where(exists, T, 0)
        steps = T
    state = direction.to(tl.int64) * B + first
    return Block(direction, tl.num_programs(1), first, index, distance, exists, length, steps, state)


@triton.jit
def step_of(reset_ptr, offsets_ptr, block, t, steps, B, INTERLEAVED: constexpr):
    """Step t of the forward direction, step steps - 1 - t of the reverse one; 0 <= t < steps <= T."""
    t += block.direction * (steps - 1 - 2 * t)
    row = tl.cast(t, tl.int64) * B
    if offsets_ptr is not None:
        row = tl.load(offsets_ptr + t)  # in bounds: 0 <= t < T
    active = t < block.length
    if INTERLEAVED:  # the first ones: a bound of the index, past which the CPU engine computes nothing
        active = block.index < tl.sum(active.to(tl.int32), axis=0)
    keeps = active
    if reset_ptr is not None:  # sequences that are not active keep theirs
        keeps = tl.load(reset_ptr + row + block.first + block.distance, mask=active, other=0) == 0
    return Step((row + block.first) * block.directions + block.direction, active, keeps)


@triton.jit
def unless_reset(values, step, reset_ptr):
    """The values [batch, unit], 0 in sequences that a reset zeroes before the step."""
    if reset_ptr is not None:
        values = tl.where(step.keeps[:, None], values, 0.0)
    return values


@triton.jit
def rows_at(ptr, block, step, unit, WIDTH: constexpr):
    """Pointers [batch, unit] into a tensor of rows [R, D, WIDTH]."""
    return ptr + step.base * WIDTH + (block.distance[:, None] * (block.directions * WIDTH) + unit[None, :])


@triton.jit
def states_at(ptr, block, unit, WIDTH: constexpr):
    """Pointers [batch, unit] into a tensor of states [D, B, WIDTH]."""
    return ptr + block.state * WIDTH + (block.distance[:, None] * WIDTH + unit[None, :])


@triton.jit
def load(pointers, mask):
    """fp32 values, 0 where masked."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_four(pointers, H: constexpr, mask):
    """fp32 values of four gates, H units apart."""
    return load(pointers, mask), load(pointers + H, mask), load(pointers + 2 * H, mask), load(pointers + 3 * H, mask)


@triton.jit
def store(pointers, values, mask):
    """The values in the memory's dtype."""
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def store_three(pointers, first, second, third, H: constexpr, mask):
    """Three gates' values, H units apart."""
    store(pointers, first, mask)
    store(pointers + H, second, mask)
    store(pointers + 2 * H, third, mask)


@triton.jit
def store_four(pointers, first, second, third, fourth, H: constexpr, mask):
    """Four gates' values, H units apart."""
    store_three(pointers, first, second, third, H, mask)
    store(pointers + 3 * H, fourth, mask)

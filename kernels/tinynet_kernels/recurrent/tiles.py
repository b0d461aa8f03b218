"""The tile rules of recurrent layers; as all rules (`tinynet_kernels.tiles`) they never time anything."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from tinynet_kernels.tiles import (
    GPU_TILES_16_BIT,
    GPU_TILES_32_BIT,
    GemmTile,
    Target,
    ceil_div,
    fit_stages,
    gemm_tile,
    power_of_2_at_least,
)


class RecurrentTile(NamedTuple):
    """The tile of a persistent recurrent kernel: sequences per program, and the units it holds, all of them.

    `interleaved`: sorted sequences go to the programs in turn, so that each has long and short ones; else neighbors.
    """

    block_batch: int
    block_hidden: int
    block_output: int
    num_warps: int
    interleaved: bool = False


# Beyond the weights a persistent kernel holds the operand of its product and what layout changes need.
_RECURRENT_MARGIN = 24 << 10


@lru_cache(maxsize=4096)
def recurrent_tile(
    batch: int, packed: bool, gates: int, hidden: int, output: int, dtype: torch.dtype, precision: str, target: Target
) -> RecurrentTile | None:
    """The tile of a persistent kernel, or None where the recurrent weight does not fit the chip.

    Args:
        batch: sequences.
        packed: whether their lengths differ.
        gates: 1, 3 or 4 blocks of the recurrent weight.
        hidden: units.
        output: units after the projection; `hidden` without one.
        dtype: of the weights.
        precision: of the product (`matmul_precision`); three tf32 products hold the weight twice.
        target: where it runs.
    """
    block_hidden = max(16, power_of_2_at_least(hidden))
    block_output = max(16, power_of_2_at_least(output))
    blocks = gates + (output != hidden)
    held = blocks * block_hidden * block_output * dtype.itemsize * (2 if precision == "tf32x3" else 1)
    if target.kind == "interpreter":
        return RecurrentTile(min(64, max(16, power_of_2_at_least(batch))), block_hidden, block_output, 4)
    if target.kind == "cpu":
        share = ceil_div(batch, target.processors)
        block_batch = min(32, max(8, power_of_2_at_least(share)))
        # A program there computes only what is left at a step: interleaved, all have about the same work.
        return RecurrentTile(block_batch, block_hidden, block_output, 4, packed) if block_hidden <= 512 else None
    # CDNA holds the weight in registers, which spill past this, however much shared memory there is.
    room = min(target.shared_memory, 64 << 10) if target.kind == "hip" else target.shared_memory
    if held + _RECURRENT_MARGIN > room:
        return None
    # Four warps spill where a unit row of the block passes 128 bytes.
    return RecurrentTile(16, block_hidden, block_output, 4 if block_hidden * dtype.itemsize <= 128 else 8)


@lru_cache(maxsize=4096)
def recurrent_step_tile(batch: int, units: int, reduction: int, dtype: torch.dtype, target: Target) -> GemmTile:
    """The tile of one step's product [batch, reduction] x [reduction, units].

    Args:
        batch: sequences.
        units: of the result.
        reduction: its length.
        dtype: of the weights.
        target: where it runs.
    """
    if target.kind in ("cpu", "interpreter"):
        return gemm_tile(batch, units, reduction, dtype, target)
    block_units = 64 if units >= 64 * target.processors else 32
    block_reduction = min(32 if dtype is torch.float32 else 64, max(16, power_of_2_at_least(reduction)))
    return GemmTile(16, block_units, block_reduction, 4, 3)


@lru_cache(maxsize=4096)
def recurrent_gates_tile(
    rows: int, units: int, reduction: int, dtype: torch.dtype, aligned: bool, target: Target
) -> GemmTile:
    """The tile of two products [rows, reduction] x [reduction, units] that are added.

    The first waits in registers while the second is computed, as an activation's input would.

    Args:
        rows: of all steps.
        units: of one gate.
        reduction: the longer of the two.
        dtype: of the operands.
        aligned: whether operands are loaded 16 bytes at a time; single elements fill registers.
        target: where it runs.
    """
    tile = gemm_tile(rows, units, reduction, dtype, target)
    if target.kind not in ("cuda", "hip"):
        return tile
    if not aligned:
        return GemmTile(64, 64, 16 if dtype is torch.float32 else 32, 8, 2)
    largest = GPU_TILES_32_BIT[-1] if dtype is torch.float32 else GPU_TILES_16_BIT[1]
    return min(tile, fit_stages(largest, dtype, target), key=lambda each: each.block_m * each.block_n)

"""LAMB: Adam's step, scaled for each tensor by the ratio of its norm to its step's; tables as in `optimizer.py`.

With g = (-) gradient and t the number of the step:

    m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
    u = m correction1 / (sqrt(v) correction2 + eps) + weight_decay p
    p <- p - lr |p| / |u| u         |p| / |u| counts as 1 where either is 0

with correction1 = 1 / (1 - beta1^t), correction2 = 1 / sqrt(1 - beta2^t).

Tiling: three launches for all tensors. The first walks blocks, stores m and v, and a block's sums of p^2 and u^2 in an
fp32 workspace [2, blocks]; the second has one program for each tensor, which adds the sums of its blocks in their
order; the third computes u again from what was stored, which costs less than to store and load it.

Source: You et al. 2020, "Large batch optimization for deep learning: training BERT in 76 minutes", algorithm 2, with
the identity for phi.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, Reached, costs, size_in_bytes
from tinynet_kernels.optimizer import (
    TRITON_DTYPES,
    PointerTable,
    TableTile,
    load_block,
    store_block,
    table_block,
    table_cost,
    tensor_pointer,
)

BLOCK_SUMS = 1024  # of a tensor's blocks, that a program adds at once


class Lamb(NamedTuple):
    """What the kernels are compiled for, beside their tile."""

    has_weight_decay: bool
    maximize: bool


@triton.jit
def lamb_update(parameter, m, v, scalars, SPEC: constexpr):
    """u."""
    correction1, correction2, eps, weight_decay = scalars
    update = m * correction1 / (tl.sqrt(v) * correction2 + eps)
    return update + weight_decay * parameter if SPEC.has_weight_decay else update


@triton.jit
def moments_block(row_ptr, start, left, sums_ptr, moments, scalars, SPEC: constexpr, DTYPE: constexpr, TILE: constexpr):
    """m, v and sums of the first `left` elements of one block; of all where `left` is None."""
    beta1, one_minus_beta1, beta2, one_minus_beta2 = moments
    m_ptr = tensor_pointer(row_ptr + 3, start, DTYPE, TILE)
    v_ptr = tensor_pointer(row_ptr + 4, start, DTYPE, TILE)
    parameter = load_block(tensor_pointer(row_ptr + 1, start, DTYPE, TILE), left, TILE)
    gradient = load_block(tensor_pointer(row_ptr + 2, start, DTYPE, TILE), left, TILE)
    m, v = load_block(m_ptr, left, TILE), load_block(v_ptr, left, TILE)
    if SPEC.maximize:
        gradient = -gradient
    m = (beta1 * m + one_minus_beta1 * gradient).to(DTYPE)
    v = (beta2 * v + one_minus_beta2 * gradient * gradient).to(DTYPE)
    update = lamb_update(parameter, m.to(tl.float32), v.to(tl.float32), scalars, SPEC)
    if left is not None:
        update = tl.where(tl.arange(0, TILE.block) < left, update, 0.0)  # 0 / 0 past the end, where eps is 0
    tl.debug_barrier()  # in a small block several warps hold the same element: all load before any stores
    store_block(m_ptr, m, left, TILE)
    store_block(v_ptr, v, left, TILE)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(parameter * parameter, axis=0))
    tl.store(sums_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(update * update, axis=0))


@triton.jit
def lamb_moments_kernel(
    table_ptr,
    block_ptr,
    sums_ptr,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    correction1,
    correction2,
    eps,
    weight_decay,
    SPEC: constexpr,
    DTYPE: constexpr,
    TILE: constexpr,
):
    """m and v in place, and the block's sums of p^2 and u^2; columns: elements, parameter, gradient, m, v."""
    row_ptr, start, left = table_block(table_ptr, block_ptr, tl.program_id(0), TILE)
    moments = (beta1, one_minus_beta1, beta2, one_minus_beta2)
    scalars = (correction1, correction2, eps, weight_decay)
    if TILE.aligned and left == TILE.block:
        moments_block(row_ptr, start, None, sums_ptr, moments, scalars, SPEC, DTYPE, TILE)
    else:
        moments_block(row_ptr, start, left, sums_ptr, moments, scalars, SPEC, DTYPE, TILE)


@triton.jit
def lamb_ratio_kernel(table_ptr, first_ptr, sums_ptr, ratio_ptr, blocks, BLOCK: constexpr, TILE: constexpr):
    """ratio[row] = |p| / |u|, from the sums of the row's blocks, which begin with block first[row]."""
    row = tl.program_id(0)
    elements = tl.load(table_ptr + row.to(tl.int64) * TILE.columns)  # in bounds: one program per row
    first = tl.load(first_ptr + row)  # in bounds: as above
    count = tl.cdiv(elements, TILE.block).to(tl.int32)
    offset = tl.arange(0, BLOCK)
    of_parameter = tl.zeros((BLOCK,), tl.float32)
    of_update = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        mask = offset < count - start
        of_parameter += tl.load(sums_ptr + first + start + offset, mask=mask, other=0.0)
        of_update += tl.load(sums_ptr + blocks + first + start + offset, mask=mask, other=0.0)
    parameter_norm = tl.sqrt(tl.sum(of_parameter, axis=0))
    update_norm = tl.sqrt(tl.sum(of_update, axis=0))
    is_zero = (parameter_norm == 0.0) | (update_norm == 0.0)
    tl.store(ratio_ptr + row, tl.where(is_zero, 1.0, parameter_norm / tl.where(is_zero, 1.0, update_norm)))


@triton.jit
def step_block(row_ptr, start, left, length, scalars, SPEC: constexpr, DTYPE: constexpr, TILE: constexpr):
    """p <- p - length u of the first `left` elements of one block; of all where `left` is None."""
    parameter_ptr = tensor_pointer(row_ptr + 1, start, DTYPE, TILE)
    parameter = load_block(parameter_ptr, left, TILE)
    m = load_block(tensor_pointer(row_ptr + 3, start, DTYPE, TILE), left, TILE)
    v = load_block(tensor_pointer(row_ptr + 4, start, DTYPE, TILE), left, TILE)
    updated = parameter - length * lamb_update(parameter, m, v, scalars, SPEC)
    tl.debug_barrier()  # as above
    store_block(parameter_ptr, updated, left, TILE)


@triton.jit
def lamb_step_kernel(
    table_ptr,
    block_ptr,
    ratio_ptr,
    lr,
    correction1,
    correction2,
    eps,
    weight_decay,
    SPEC: constexpr,
    DTYPE: constexpr,
    TILE: constexpr,
):
    """p <- p - lr ratio u; columns as in `lamb_moments_kernel`."""
    row_ptr, start, left = table_block(table_ptr, block_ptr, tl.program_id(0), TILE)
    row = tl.load(block_ptr + 2 * tl.program_id(0).to(tl.int64))  # in bounds: one pair per program
    length = lr * tl.load(ratio_ptr + row)  # in bounds: one per row
    scalars = (correction1, correction2, eps, weight_decay)
    if TILE.aligned and left == TILE.block:
        step_block(row_ptr, start, None, length, scalars, SPEC, DTYPE, TILE)
    else:
        step_block(row_ptr, start, left, length, scalars, SPEC, DTYPE, TILE)


@costs(lamb_moments_kernel)
def lamb_moments_cost(SPEC: Lamb, **launched: Any) -> Cost:
    """Parameter and gradient are read, states read and written; some fifteen operations."""
    return table_cost(15 + 2 * SPEC.has_weight_decay, 6, **launched)


@costs(lamb_step_kernel)
def lamb_step_cost(SPEC: Lamb, **launched: Any) -> Cost:
    """Parameter and states are read, the parameter written."""
    return table_cost(8 + 2 * SPEC.has_weight_decay, 4, **launched)


@costs(lamb_ratio_kernel)
def lamb_ratio_cost(sums_ptr: torch.Tensor, ratio_ptr: torch.Tensor, **_: Any) -> Cost:
    """The sums of all blocks are read and added."""
    return Cost(sums_ptr.numel(), size_in_bytes(sums_ptr, ratio_ptr))


def lamb_step(
    table: PointerTable,
    *,
    reached: Reached = (),
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """One LAMB step of the table's parameters and states, in place.

    Args:
        table: of parameters that don't overlap, their gradients, exp_avgs and exp_avg_sqs.
        reached: the table's tensors, for whoever observes launches.
        step: number of this step, counted from 1.
        lr, beta1, beta2, eps, weight_decay, maximize: as in `tinynet.optim.LAMB`.
    """
    blocks, rows = len(table.blocks), len(table.addresses) // table.tile.columns
    if blocks == 0:  # nothing but empty tensors
        return
    spec = Lamb(weight_decay != 0, bool(maximize))
    device = table.blocks.device
    sums = torch.empty((2, blocks), dtype=torch.float32, device=device)
    ratio = torch.empty(rows, dtype=torch.float32, device=device)
    moments, ratios, last = _problems(spec, blocks, rows, table.dtype, table.tile, table.num_warps)
    shared = 1.0 / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step), float(eps), float(weight_decay)
    betas = float(beta1), 1.0 - beta1, float(beta2), 1.0 - beta2
    moments.launch(table.addresses, table.blocks, sums, *betas, *shared, reached=reached)
    ratios.launch(table.addresses, table.first_blocks, sums, ratio)
    last.launch(table.addresses, table.blocks, ratio, float(lr), *shared, reached=reached)


@lru_cache(maxsize=4096)
def _problems(
    spec: Lamb, blocks: int, rows: int, dtype: torch.dtype, tile: TableTile, num_warps: int
) -> tuple[Problem, Problem, Problem]:
    constants = {"SPEC": spec, "DTYPE": TRITON_DTYPES[dtype], "TILE": tile, "num_warps": num_warps}
    ratio_tile = tile._replace(aligned=False)
    return (
        Problem(lamb_moments_kernel, (blocks,), **constants),
        Problem(lamb_ratio_kernel, (rows,), blocks, BLOCK=BLOCK_SUMS, TILE=ratio_tile, num_warps=4),
        Problem(lamb_step_kernel, (blocks,), **constants),
    )

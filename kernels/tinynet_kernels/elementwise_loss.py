"""Losses of each element alone, summed or not, from a function of `loss_functions`.

    L = sum of w f(x, t, other) / divisor        or one for each element, or for each row
    dx = dL w (df/dx) / divisor, likewise dt and dother;        dw = dL f / divisor

The operands come with one shape, and are read without a copy as a matrix [rows, columns] where `operand_layout` finds
one; where all are dense it has one row.

Tiling: one [block_rows, block_columns] tile per program. A sum takes two stages (`reduction.py`), or one where there is
one program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.elementwise import RowsTile, load_rows, store_rows
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.loss_functions import FUNCTIONS
from tinynet_kernels.loss_spec import Loss
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.operand_layout import contiguous_strides, is_dense, layouts_of
from tinynet_kernels.reduction import reduce_losses, sum_partials
from tinynet_kernels.tiles import Target, ceil_div, current_target, flat_block, rows_and_columns

# (input, target, other, weight): tensors of one shape, the last two may be absent.
Operands = Sequence[torch.Tensor | None]


class LossSpec(NamedTuple):
    """How an elementwise loss is reduced, and how its operands lie in memory.

    Attributes:
        reduction: "all", "rows" or "none".
        input, target, other, weight: "dense", "rows", "columns" or "scalar".
        grad: the same of the upstream gradient; unused in the forward.
        wide: whether offsets are int64.
    """

    reduction: str
    input: str
    target: str
    other: str
    weight: str
    grad: str
    wide: bool


class Tile(NamedTuple):
    """A program's tile within a kernel: its first row, its rows from there, its columns, and which of them exist."""

    first_row: Any
    row: Any
    column: Any
    in_rows: Any
    in_columns: Any
    mask: Any


@triton.jit
def tile_of_program(rows, columns, TILE: constexpr):
    """This program's `Tile` of [rows, columns]."""
    column_tiles = tl.cdiv(columns, TILE.block_columns)
    first_row = tl.program_id(0) // column_tiles * TILE.block_rows
    first_column = tl.program_id(0) % column_tiles * TILE.block_columns
    row = tl.arange(0, TILE.block_rows)
    column = tl.arange(0, TILE.block_columns)
    in_rows = row < rows - first_row
    in_columns = column < columns - first_column
    return Tile(first_row, row, first_column + column, in_rows, in_columns, in_rows[:, None] & in_columns[None, :])


@triton.jit
def load_operand(ptr, columns, at, LAYOUT: constexpr, WIDE: constexpr):
    """The tile of an operand in fp32, in a shape that broadcasts to [block_rows, block_columns]."""
    if LAYOUT == "dense":
        return load_rows(ptr, columns, at.first_row, at.row, at.column, at.mask, WIDE)
    elif LAYOUT == "rows":
        return tl.load(ptr + at.first_row + at.row, mask=at.in_rows, other=0.0).to(tl.float32)[:, None]
    elif LAYOUT == "columns":
        return tl.load(ptr + at.column, mask=at.in_columns, other=0.0).to(tl.float32)[None, :]
    else:
        return tl.load(ptr).to(tl.float32)  # in bounds: one element


@triton.jit
def evaluate(input_ptr, target_ptr, other_ptr, columns, at, LOSS: constexpr, FUNCTION: constexpr, SPEC: constexpr):
    """The loss of each element and its derivatives."""
    INPUT: constexpr = SPEC.input
    TARGET: constexpr = SPEC.target
    OTHER: constexpr = SPEC.other
    x = load_operand(input_ptr, columns, at, INPUT, SPEC.wide)
    target = load_operand(target_ptr, columns, at, TARGET, SPEC.wide)
    other = None if other_ptr is None else load_operand(other_ptr, columns, at, OTHER, SPEC.wide)
    return FUNCTION(x, target, other, LOSS)


@triton.jit(do_not_specialize=["rows", "divisor"])
def elementwise_loss_forward_kernel(
    input_ptr,
    target_ptr,
    other_ptr,
    weight_ptr,
    loss_ptr,
    partial_ptr,
    rows,
    columns,
    divisor,
    LOSS: constexpr,
    FUNCTION: constexpr,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The loss of each element, or the partial sums of them: [1, programs], or [column tiles, rows] of rows.

    Without `partial` the only program stores the sum of all itself.
    """
    WEIGHT: constexpr = SPEC.weight
    rows = widened(rows, SPEC.wide)
    columns = widened(columns, SPEC.wide)
    at = tile_of_program(rows, columns, TILE)
    loss = evaluate(input_ptr, target_ptr, other_ptr, columns, at, LOSS, FUNCTION, SPEC)[0]
    if weight_ptr is not None:
        loss *= load_operand(weight_ptr, columns, at, WEIGHT, SPEC.wide)
    if SPEC.reduction == "none":
        store_rows(loss_ptr, columns, loss, at.first_row, at.row, at.column, at.mask, SPEC.wide)
    else:
        totals = tl.sum(tl.where(at.mask, loss, 0.0), axis=1)
        if SPEC.reduction == "rows":
            column_tile = tl.program_id(0) % tl.cdiv(columns, TILE.block_columns)
            partial = partial_ptr + column_tile.to(tl.int64) * rows + at.first_row
            tl.store(partial + at.row, totals / divisor, mask=at.in_rows)
        else:
            total = tl.sum(totals, axis=0) / divisor
            if partial_ptr is None:
                tl.store(loss_ptr, total.to(loss_ptr.dtype.element_ty))
            else:
                tl.store(partial_ptr + tl.program_id(0), total)


@triton.jit(do_not_specialize=["rows", "divisor"])
def elementwise_loss_backward_kernel(
    grad_ptr,
    input_ptr,
    target_ptr,
    other_ptr,
    weight_ptr,
    dinput_ptr,
    dtarget_ptr,
    dother_ptr,
    dweight_ptr,
    rows,
    columns,
    divisor,
    LOSS: constexpr,
    FUNCTION: constexpr,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The gradients of the operands, all dense [rows, columns]; None is not stored."""
    GRAD: constexpr = SPEC.grad
    WEIGHT: constexpr = SPEC.weight
    rows = widened(rows, SPEC.wide)
    columns = widened(columns, SPEC.wide)
    at = tile_of_program(rows, columns, TILE)
    upstream = load_operand(grad_ptr, columns, at, GRAD, SPEC.wide) / divisor
    results = evaluate(input_ptr, target_ptr, other_ptr, columns, at, LOSS, FUNCTION, SPEC)
    if dweight_ptr is not None:
        dweight = results[0] * upstream
        store_rows(dweight_ptr, columns, dweight, at.first_row, at.row, at.column, at.mask, SPEC.wide)
    if weight_ptr is not None:
        upstream *= load_operand(weight_ptr, columns, at, WEIGHT, SPEC.wide)
    if dinput_ptr is not None:
        dinput = results[1] * upstream
        store_rows(dinput_ptr, columns, dinput, at.first_row, at.row, at.column, at.mask, SPEC.wide)
    if dtarget_ptr is not None:
        dtarget = results[2] * upstream
        store_rows(dtarget_ptr, columns, dtarget, at.first_row, at.row, at.column, at.mask, SPEC.wide)
    if dother_ptr is not None:
        dother = results[3] * upstream
        store_rows(dother_ptr, columns, dother, at.first_row, at.row, at.column, at.mask, SPEC.wide)


@costs(elementwise_loss_forward_kernel)
@costs(elementwise_loss_backward_kernel)
def elementwise_loss_cost(input_ptr: torch.Tensor, **others: Any) -> Cost:
    """Each tensor is moved once; a loss or a derivative counts as three operations."""
    return Cost(3 * input_ptr.numel(), size_in_bytes(input_ptr, *others.values()))


class Plan(NamedTuple):
    """A launch, the strides of its results, and the operands that are copied to those strides."""

    problem: Problem
    strides: tuple[int, ...]
    copied: tuple[int, ...]


def elementwise_loss_forward(operands: Operands, loss: Loss, reduction: str, divisor: int) -> torch.Tensor:
    """The loss: [] for the reduction "all", [rows] for "rows", the operands' shape for "none".

    Args:
        operands: of one shape, any strides; [rows, columns] for the reduction "rows".
        loss: which, with its parameters.
        reduction: "all", "rows" or "none".
        divisor: of the sums; 1 without.
    """
    x: Any = operands[0]
    plan = _plan(False, loss, reduction, divisor, x.shape, _strides(operands), current_target())
    operands = _arranged(operands, plan, x.shape)
    programs, tile = plan.problem.grid[0], plan.problem.constants["TILE"]
    if reduction == "none":
        loss_of_each = x.new_empty_strided(x.shape, plan.strides)
        plan.problem.launch(*operands, loss_of_each, None)
        return loss_of_each
    if reduction == "rows":
        partial = x.new_empty((ceil_div(x.shape[1], tile.block_columns), x.shape[0]), dtype=torch.float32)
        plan.problem.launch(*operands, None, partial)
        return sum_partials(partial, x.dtype)
    total = x.new_empty(())
    partial = x.new_empty((1, programs), dtype=torch.float32) if programs > 1 else None
    plan.problem.launch(*operands, total, partial)
    if partial is not None:
        reduce_losses(partial, total, None)
    return total


def elementwise_loss_backward(
    grad: torch.Tensor, operands: Operands, loss: Loss, reduction: str, divisor: int, wanted: Sequence[bool]
) -> list[torch.Tensor | None]:
    """The gradients of the operands, dense in their shape; None where not wanted.

    Args:
        grad: the upstream gradient, in the loss's shape, any strides; contiguous [rows] for the reduction "rows".
        operands, loss, reduction, divisor: as in the forward.
        wanted: which gradients to compute.
    """
    x: Any = operands[0]
    given = (*operands, grad)
    plan = _plan(True, loss, reduction, divisor, x.shape, _strides(given), current_target())
    *arranged, upstream = _arranged(given, plan, x.shape)
    gradients = [x.new_empty_strided(x.shape, plan.strides) if want else None for want in wanted]
    plan.problem.launch(upstream, *arranged, *gradients)
    return gradients


def _strides(tensors: Operands) -> tuple[tuple[int, ...] | None, ...]:
    return tuple([None if tensor is None else tensor.stride() for tensor in tensors])


def _arranged(tensors: Operands, plan: Plan, shape: tuple[int, ...]) -> Operands:
    """The tensors as the plan's kernel reads them."""
    if not plan.copied:
        return tensors
    arranged = list(tensors)
    for position in plan.copied:
        tensor: Any = arranged[position]
        arranged[position] = tensor.new_empty_strided(shape, plan.strides).copy_(tensor)
    return arranged


@lru_cache(maxsize=4096)
def loss_tile(rows: int, columns: int, target: Target) -> tuple[int, int, int]:
    """(BLOCK_ROWS, BLOCK_COLUMNS, num_warps): on a GPU 8 elements per thread, whose operands fit its registers."""
    if rows == 1:
        block_columns, num_warps = flat_block(columns, target)
        return 1, block_columns, num_warps
    block_rows, block_columns, num_warps = rows_and_columns(rows, columns, target)
    if target.kind in ("cuda", "hip"):
        block_rows = min(block_rows, 1024 // block_columns)
    return block_rows, block_columns, num_warps


@lru_cache(maxsize=4096)
def _plan(
    backward: bool,
    loss: Loss,
    reduction: str,
    divisor: int,
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...] | None, ...],
    target: Target,
) -> Plan:
    of_shape = strides if reduction == "none" else strides[:4]  # the gradient of a sum has another shape
    dense = contiguous_strides(shape)
    if reduction != "rows":
        dense = next((stride for stride in of_shape if stride is not None and is_dense(shape, stride)), dense)
    layouts, split = layouts_of(shape, dense, of_shape)
    copied = tuple([position for position, layout in enumerate(layouts) if layout is None])
    read = ["dense" if layout is None else layout for layout in layouts]
    if len(read) == 4:
        read.append("rows" if reduction == "rows" else "scalar")
    elements = math.prod(shape)
    rows = shape[0] if reduction == "rows" else split
    columns = elements // rows
    block_rows, block_columns, num_warps = loss_tile(rows, columns, target)
    wide = exceed_int32(((min(block_rows, rows), columns), (columns + block_columns, 1)), ((rows + block_rows, 1),))
    problem = Problem(
        elementwise_loss_backward_kernel if backward else elementwise_loss_forward_kernel,
        (ceil_div(rows, block_rows) * ceil_div(columns, block_columns),),
        rows,
        columns,
        divisor,
        LOSS=loss,
        FUNCTION=FUNCTIONS[loss.name],
        SPEC=LossSpec._make((reduction, *read, wide)),
        TILE=RowsTile(block_rows, block_columns),
        num_warps=num_warps,
    )
    return Plan(problem, dense, copied)

"""What a recurrent layer with `recompute` did not save, computed again from y before its backward.

    previous = h before each step, a gather from y and h0
    gates    = X W_ih^T + b_ih + previous W_hh^T + b_hh, the pre-activations of all steps and both directions at once

A program computes one tile of one gate: two products, one after the other. The GRU has a fourth block, since its n gate
multiplies the hidden side by r: the third holds n's input side alone, the fourth its hidden side q.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinynet_kernels.constants import constexpr
from tinynet_kernels.gemm import GROUP, UNIT, Matrix, Product, gemm_tile, has_wide_rows, is_wide_product, tile_start
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.recurrent.spec import GATES, Sequences, Weights
from tinynet_kernels.recurrent.tiles import recurrent_gates_tile
from tinynet_kernels.tiles import Target, ceil_div, current_target, matmul_precision


@triton.jit
def recurrent_gates_kernel(
    x_ptr,
    previous_ptr,
    weight_ih_ptr,
    weight_hh_ptr,
    bias_ih_ptr,
    bias_hh_ptr,
    gates_ptr,
    R,
    inputs,
    outputs,
    H,
    stride_xr,
    stride_xi,
    stride_wn,
    stride_wi,
    GATES: constexpr,
    INPUT_PRODUCT: constexpr,
    HIDDEN_PRODUCT: constexpr,
    TILE: constexpr,
):
    """gates [R, D, 4 H]; one [block_m, block_n] tile of one gate and direction per program (grid: tiles x 4 x D).

    x [R, inputs], previous [R, D, outputs], W_ih [D GATES H, inputs], W_hh [D, GATES H, outputs].
    """
    WIDE: constexpr = INPUT_PRODUCT.wide
    R = widened(R, WIDE)
    inputs = widened(inputs, WIDE)
    stride_xr = widened(stride_xr, WIDE)
    stride_xi = widened(stride_xi, WIDE)
    stride_wn = widened(stride_wn, WIDE)
    stride_wi = widened(stride_wi, WIDE)
    gate = tl.program_id(1)
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    row_start, column_start = tile_start(tl.program_id(0), R, H, INPUT_PRODUCT, TILE)
    block = (direction * GATES + tl.minimum(gate, GATES - 1)).to(tl.int64) * H
    # The GRU's last two blocks are one product each.
    last_input = inputs if GATES == 4 else tl.where(gate == 3, 0, inputs)
    last_output = outputs if GATES == 4 else tl.where(gate == 2, 0, outputs)
    x = Matrix(x_ptr, stride_xr, stride_xi)
    weight_ih = Matrix(weight_ih_ptr + block * stride_wn, stride_wi, stride_wn)
    previous = Matrix(previous_ptr + direction * outputs, directions * outputs, 1)
    weight_hh = Matrix(weight_hh_ptr + block * outputs, 1, outputs)
    first = row_start * 0
    a = gemm_tile(x, weight_ih, row_start, column_start, first, last_input, R, H, INPUT_PRODUCT, TILE)
    a += gemm_tile(previous, weight_hh, row_start, column_start, first, last_output, R, H, HIDDEN_PRODUCT, TILE)
    row = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    column_mask = column < H - column_start
    if bias_ih_ptr is not None:
        unit = block + column_start + column
        bias_ih = tl.load(bias_ih_ptr + unit, mask=column_mask & (last_input > 0), other=0.0)
        bias_hh = tl.load(bias_hh_ptr + unit, mask=column_mask & (last_output > 0), other=0.0)
        a += (bias_ih.to(tl.float32) + bias_hh.to(tl.float32))[None, :]
    mask = (row < R - row_start)[:, None] & column_mask[None, :]
    base = (row_start.to(tl.int64) * directions + direction) * (4 * H) + gate * H + column_start
    offset = row[:, None] * (directions * 4 * H) + column[None, :]
    tl.store(gates_ptr + base + offset, a.to(gates_ptr.dtype.element_ty), mask=mask)


@costs(recurrent_gates_kernel)
def recurrent_gates_cost(weight_ih_ptr: Tensor, weight_hh_ptr: Tensor, R: int, **others: Any) -> Cost:
    """Two operations per weight and row; every tensor moved once."""
    operations = 2 * R * (weight_ih_ptr.numel() + weight_hh_ptr.numel())
    return Cost(operations, size_in_bytes(weight_ih_ptr, weight_hh_ptr, *others.values()))


def recomputed_gates(mode: str, x: Tensor, previous: Tensor, weights: Weights) -> Tensor:
    """The pre-activations [R, D, 4 H] that an LSTM's or GRU's forward saves without `recompute`.

    Args:
        mode: "lstm" or "gru".
        x: [R, I], any strides.
        previous: h before each step [R, D, P], contiguous.
        weights: the layer's.
    """
    directions, gate_rows, outputs = weights.hidden.shape
    hidden = gate_rows // GATES[mode]
    gates = x.new_empty((x.shape[0], directions, 4 * hidden))
    target = current_target()
    precision = matmul_precision(x.dtype, target)
    sizes = *x.shape, outputs, hidden
    strides = x.stride(), weights.input.stride()
    problem = _problem(GATES[mode], directions, sizes, *strides, x.dtype, precision, target)
    problem.launch_named(
        x_ptr=x,
        previous_ptr=previous,
        weight_ih_ptr=weights.input,
        weight_hh_ptr=weights.hidden,
        bias_ih_ptr=weights.input_bias,
        bias_hh_ptr=weights.hidden_bias,
        gates_ptr=gates,
    )
    return gates


@lru_cache(maxsize=4096)
def _problem(
    gates: int,
    directions: int,
    sizes: tuple[int, int, int, int],
    stride_x: tuple[int, int],
    stride_w: tuple[int, int],
    dtype: torch.dtype,
    precision: str,
    target: Target,
) -> Problem:
    R, inputs, outputs, hidden = sizes
    aligned = has_wide_rows(stride_x) and has_wide_rows(stride_w) and outputs % UNIT == 0
    tile = recurrent_gates_tile(R, hidden, max(inputs, outputs), dtype, aligned, target)
    wide = is_wide_product(R, hidden, inputs, tile, stride_x, stride_w)
    product = Product(precision, inputs % tile.block_k == 0, wide, GROUP)
    return Problem(
        recurrent_gates_kernel,
        (ceil_div(R, tile.block_m) * ceil_div(hidden, tile.block_n), 4, directions),
        *sizes,
        *stride_x,
        *stride_w,
        GATES=gates,
        INPUT_PRODUCT=product,
        HIDDEN_PRODUCT=product._replace(even=outputs % tile.block_k == 0),
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def previous_states(y: Tensor, h0: Tensor, sequences: Sequences, reset: Tensor | None) -> Tensor:
    """h before each step [R, D, P], zero after a reset: a gather from y [R, D, P] and h0 [D, B, P].

    Args:
        y: every h.
        h0: the first.
        sequences: where the rows lie.
        reset: uint8 [R], nonzero where a step starts from a zero state, or None.
    """
    rows, directions, _ = y.shape
    T, B = sequences.steps, sequences.batch
    sizes = torch.full((T,), B, device="cpu") if sequences.batch_sizes is None else sequences.batch_sizes
    offsets = sizes.cumsum(0) - sizes
    step = torch.repeat_interleave(torch.arange(T, device="cpu"), sizes, output_size=rows)
    sequence = torch.arange(rows, device="cpu") - offsets[step]
    after = (step + 1).clamp(max=T - 1)
    continues = (step + 1 < T) & (sequence < sizes[after])
    index = [
        torch.where(step > 0, offsets[(step - 1).clamp(min=0)] + sequence, rows + sequence),
        torch.where(continues, offsets[after] + sequence, rows + sequence),
    ]
    states = [torch.cat((y[:, d], h0[d]))[index[d].to(y.device)] for d in range(directions)]
    previous = torch.stack(states, 1)
    return previous if reset is None else previous.masked_fill_(reset.bool()[:, None, None], 0)

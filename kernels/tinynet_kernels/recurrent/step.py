"""Per-step recurrent kernels: one fused launch per step, for weights that no chip holds; graph-capturable.

Launch s computes the s-th step of each direction: t = s forwards and T - 1 - s for the reverse direction, mirrored in
the backward. A program computes [block_m sequences, block_n units] of one direction (grid: batch blocks x directions x
unit blocks); the product with W_hh walks its reduction in steps of block_k, the cell is its epilogue. States go from
launch to launch through fp32 buffers [D, B, units]: a launch reads one and writes another.

Backward: dh of a step is its state gradient, dY, and d_gates W_hh of the step that the launch before computed. Rows
whose sequence has ended, or that a reset cut off, take no product; their gradient passes through. A last launch
computes d_h0. A projection needs all units of a step at once, and so a launch of its own, both ways.

Layouts are those of `persistent.py`. An absent tensor is None.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.gemm import Matrix
from tinynet_kernels.launch import Cost, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.recurrent import cells
from tinynet_kernels.recurrent.place import (
    block_of,
    load,
    load_four,
    rows_at,
    states_at,
    step_of,
    store,
    store_four,
    store_three,
    unless_reset,
)


@triton.jit
def place_of(reset_ptr, offsets_ptr, lengths_ptr, t, T, B, UNITS: constexpr, TILE: constexpr):
    """(block, step, unit, mask, state_mask): the program's sequences, where their step t lies, its units of UNITS.

    `mask` says which of the step's rows exist, `state_mask` which states, [batch, unit].
    """
    block = block_of(lengths_ptr, T, B, TILE.block_m, False)
    step = step_of(reset_ptr, offsets_ptr, block, t, T, B, False)
    unit = tl.program_id(2) * TILE.block_n + tl.arange(0, TILE.block_n)
    mask = step.active[:, None] & (unit < UNITS)[None, :]
    return block, step, unit, mask, block.exists[:, None] & (unit < UNITS)[None, :]


@triton.jit
def zeros(TILE: constexpr):
    """fp32 zeros [batch, unit]."""
    ROWS: constexpr = TILE.block_m
    UNITS: constexpr = TILE.block_n
    return tl.zeros((ROWS, UNITS), tl.float32)


@triton.jit
def step_product(acc, operand, weight, rows, units, block, unit, K, SPEC: constexpr, TILE: constexpr):
    """acc + sum over k < K of operand[sequence, k] weight[k, unit] where `rows` and `units` allow it.

    Both are `Matrix`: operand from the block's first sequence, its k adjacent; weight from unit 0.
    """
    k = tl.arange(0, TILE.block_k)
    operand_ptr = operand.ptr
    operand_offset = block.index[:, None] * operand.row_stride
    weight_ptr = weight.ptr
    weight_offset = unit[None, :] * weight.column_stride
    for start in range(0, K, TILE.block_k):
        k_mask = k < K - start
        operand_mask = rows[:, None] & k_mask[None, :]
        weight_mask = k_mask[:, None] & units[None, :]
        a = tl.load(operand_ptr + operand_offset + k[None, :], mask=operand_mask, other=0.0)
        b = tl.load(weight_ptr + weight_offset + k[:, None] * weight.row_stride, mask=weight_mask, other=0.0)
        acc = tl.dot(a.to(b.dtype), b, acc, input_precision=SPEC.precision)
        operand_ptr += TILE.block_k
        weight_ptr += TILE.block_k * weight.row_stride
    return acc


@triton.jit
def gate_product(acc, h_ptr, weight_hh_ptr, block, step, unit, GATE: constexpr, SPEC: constexpr, TILE: constexpr):
    """acc + h W_hh^T of one gate; h [D, B, P], W_hh [D, gates H, P]."""
    H: constexpr = SPEC.hidden
    P: constexpr = SPEC.outputs
    weight_ptr = weight_hh_ptr + block.direction.to(tl.int64) * (SPEC.gates * H * P) + GATE * H * P
    h = Matrix(h_ptr + block.state * P, P, 1)
    weight = Matrix(weight_ptr, 1, widened(P, H * P >= 1 << 31))
    return step_product(acc, h, weight, step.active & step.keeps, unit < H, block, unit, P, SPEC, TILE)


@triton.jit
def dh_after(
    dh_in_ptr,
    d_hidden_ptr,
    weight_ptr,
    reset_ptr,
    offsets_ptr,
    block,
    unit,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """dh after the step of launch s, without its dY: dh_in + d_hidden W_hh of launch s - 1; [batch, unit] of P units.

    d_hidden [R, D, gates H], weight W_hh [D, gates H, P].
    """
    P: constexpr = SPEC.outputs
    ROWS: constexpr = SPEC.gates * SPEC.hidden
    units = unit < P
    dh = tl.load(states_at(dh_in_ptr, block, unit, P), mask=block.exists[:, None] & units[None, :], other=0.0)
    step = step_of(reset_ptr, offsets_ptr, block, tl.minimum(T - s, T - 1), T, B, False)
    d_hidden = Matrix(d_hidden_ptr + step.base * ROWS, block.directions * ROWS, 1)
    weight = Matrix(weight_ptr + block.direction.to(tl.int64) * (ROWS * P), P, 1)
    rows_before = tl.where(s > 0, ROWS, 0)  # no launch, no gradient
    return step_product(dh, d_hidden, weight, step.active & step.keeps, units, block, unit, rows_before, SPEC, TILE)


@triton.jit(do_not_specialize=["s"])
def rnn_step_forward_kernel(
    gates_x_ptr,
    weight_hh_ptr,
    h_in_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    y_ptr,
    h_out_ptr,
    previous_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """h_t = act(gates_x_t + h_(t-1) W_hh^T); W_hh [D, H, H]."""
    H: constexpr = SPEC.hidden
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, s, T, B, H, TILE)
    h = unless_reset(load(states_at(h_in_ptr, block, unit, H), state_mask), step, reset_ptr)
    a = load(rows_at(gates_x_ptr, block, step, unit, H), mask)
    a = gate_product(a, h_in_ptr, weight_hh_ptr, block, step, unit, 0, SPEC, TILE)
    if previous_ptr is not None:
        store(rows_at(previous_ptr, block, step, unit, H), h, mask)
    h = tl.where(step.active[:, None], cells.rnn_cell(a, SPEC.relu), h)
    store(rows_at(y_ptr, block, step, unit, H), h, mask)
    store(states_at(h_out_ptr, block, unit, H), h, state_mask)


@triton.jit(do_not_specialize=["s"])
def rnn_step_backward_kernel(
    d_y_ptr,
    y_ptr,
    weight_hh_ptr,
    dh_in_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    d_gates_ptr,
    dh_out_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """da_t = dh act'(h_t), act' from the output; W_hh [D, H, H]."""
    H: constexpr = SPEC.hidden
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, T - 1 - s, T, B, H, TILE)
    dh = dh_after(dh_in_ptr, d_gates_ptr, weight_hh_ptr, reset_ptr, offsets_ptr, block, unit, s, T, B, SPEC, TILE)
    h = load(rows_at(y_ptr, block, step, unit, H), mask)
    d_y = load(rows_at(d_y_ptr, block, step, unit, H), mask)
    store(rows_at(d_gates_ptr, block, step, unit, H), cells.rnn_cell_gradient(dh + d_y, h, SPEC.relu), mask)
    passed = tl.where(step.active[:, None], 0.0, dh)
    store(states_at(dh_out_ptr, block, unit, H), passed, state_mask)


@triton.jit(do_not_specialize=["s"])
def lstm_step_forward_kernel(
    gates_x_ptr,
    weight_hh_ptr,
    h_in_ptr,
    c_in_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    y_ptr,
    h_out_ptr,
    c_out_ptr,
    gates_ptr,
    previous_ptr,
    cell_ptr,
    unprojected_h_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """One LSTM step; W_hh [D, 4 H, P]. With unprojected_h [D, B, H] h goes there, the rest is the projection's."""
    H: constexpr = SPEC.hidden
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, s, T, B, H, TILE)
    c = unless_reset(load(states_at(c_in_ptr, block, unit, H), state_mask), step, reset_ptr)
    if cell_ptr is not None:
        store(rows_at(cell_ptr, block, step, unit, H), c, mask)
    gates_x = rows_at(gates_x_ptr, block, step, unit, 4 * H)
    i = gate_product(load(gates_x, mask), h_in_ptr, weight_hh_ptr, block, step, unit, 0, SPEC, TILE)
    f = gate_product(load(gates_x + H, mask), h_in_ptr, weight_hh_ptr, block, step, unit, 1, SPEC, TILE)
    g = gate_product(load(gates_x + 2 * H, mask), h_in_ptr, weight_hh_ptr, block, step, unit, 2, SPEC, TILE)
    o = gate_product(load(gates_x + 3 * H, mask), h_in_ptr, weight_hh_ptr, block, step, unit, 3, SPEC, TILE)
    next_c, next_h = cells.lstm_cell(i, f, g, o, c)
    store(states_at(c_out_ptr, block, unit, H), tl.where(step.active[:, None], next_c, c), state_mask)
    if gates_ptr is not None:
        store_four(rows_at(gates_ptr, block, step, unit, 4 * H), i, f, g, o, H, mask)
    if unprojected_h_ptr is not None:
        store(states_at(unprojected_h_ptr, block, unit, H), next_h, state_mask)
    else:
        h = unless_reset(load(states_at(h_in_ptr, block, unit, H), state_mask), step, reset_ptr)
        if previous_ptr is not None:
            store(rows_at(previous_ptr, block, step, unit, H), h, mask)
        store(rows_at(y_ptr, block, step, unit, H), next_h, mask)
        store(states_at(h_out_ptr, block, unit, H), tl.where(step.active[:, None], next_h, h), state_mask)


@triton.jit(do_not_specialize=["s"])
def lstm_step_projection_kernel(
    unprojected_h_ptr,
    weight_hr_ptr,
    h_in_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    y_ptr,
    h_out_ptr,
    previous_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """h = unprojected_h W_hr^T of one step; unprojected_h [D, B, H] in fp32, W_hr [D, P, H]."""
    H: constexpr = SPEC.hidden
    P: constexpr = SPEC.outputs
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, s, T, B, P, TILE)
    unprojected = Matrix(unprojected_h_ptr + block.state * H, H, 1)
    weight = Matrix(weight_hr_ptr + block.direction.to(tl.int64) * (P * H), 1, widened(H, P * H >= 1 << 31))
    next_h = step_product(zeros(TILE), unprojected, weight, step.active, unit < P, block, unit, H, SPEC, TILE)
    h = unless_reset(load(states_at(h_in_ptr, block, unit, P), state_mask), step, reset_ptr)
    if previous_ptr is not None:
        store(rows_at(previous_ptr, block, step, unit, P), h, mask)
    store(rows_at(y_ptr, block, step, unit, P), next_h, mask)
    store(states_at(h_out_ptr, block, unit, P), tl.where(step.active[:, None], next_h, h), state_mask)


@triton.jit(do_not_specialize=["s"])
def lstm_step_backward_kernel(
    d_y_ptr,
    gates_ptr,
    cell_ptr,
    weight_hh_ptr,
    weight_hr_ptr,
    dh_in_ptr,
    dc_in_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    d_gates_ptr,
    d_output_ptr,
    unprojected_ptr,
    dh_out_ptr,
    dc_out_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """d_gates of one step. With W_hr dh comes from d_output [R, D, P], which `step_state_gradient_kernel` computed."""
    H: constexpr = SPEC.hidden
    P: constexpr = SPEC.outputs
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, T - 1 - s, T, B, H, TILE)
    i, f, g, o = load_four(rows_at(gates_ptr, block, step, unit, 4 * H), H, mask)
    c = load(rows_at(cell_ptr, block, step, unit, H), mask)
    dc = load(states_at(dc_in_ptr, block, unit, H), state_mask)
    if weight_hr_ptr is not None:
        _, h = cells.lstm_cell(i, f, g, o, c)
        store(rows_at(unprojected_ptr, block, step, unit, H), h, mask)
        d_output = Matrix(d_output_ptr + step.base * P, block.directions * P, 1)
        weight = Matrix(weight_hr_ptr + block.direction.to(tl.int64) * (P * H), H, 1)
        dh = step_product(zeros(TILE), d_output, weight, step.active, unit < H, block, unit, P, SPEC, TILE)
    else:
        dh = dh_after(dh_in_ptr, d_gates_ptr, weight_hh_ptr, reset_ptr, offsets_ptr, block, unit, s, T, B, SPEC, TILE)
        store(states_at(dh_out_ptr, block, unit, H), tl.where(step.active[:, None], 0.0, dh), state_mask)
        dh += load(rows_at(d_y_ptr, block, step, unit, H), mask)
    di, df, dg, do, dc_before = cells.lstm_cell_gradient(dh, dc, i, f, g, o, c)
    store_four(rows_at(d_gates_ptr, block, step, unit, 4 * H), di, df, dg, do, H, mask)
    dc = tl.where(step.active[:, None], unless_reset(dc_before, step, reset_ptr), dc)
    store(states_at(dc_out_ptr, block, unit, H), dc, state_mask)


@triton.jit(do_not_specialize=["s"])
def gru_step_forward_kernel(
    gates_x_ptr,
    weight_hh_ptr,
    bias_hh_ptr,
    h_in_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    y_ptr,
    h_out_ptr,
    gates_ptr,
    previous_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """One GRU step; W_hh [D, 3 H, H], b_hh [D, 3 H], of which only b_hn is added here."""
    H: constexpr = SPEC.hidden
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, s, T, B, H, TILE)
    h = unless_reset(load(states_at(h_in_ptr, block, unit, H), state_mask), step, reset_ptr)
    gates_x = rows_at(gates_x_ptr, block, step, unit, 3 * H)
    n = load(gates_x + 2 * H, mask)
    q = zeros(TILE)
    if bias_hh_ptr is not None:
        q += load(bias_hh_ptr + block.direction * (3 * H) + 2 * H + unit, unit < H)[None, :]
    r = gate_product(load(gates_x, mask), h_in_ptr, weight_hh_ptr, block, step, unit, 0, SPEC, TILE)
    z = gate_product(load(gates_x + H, mask), h_in_ptr, weight_hh_ptr, block, step, unit, 1, SPEC, TILE)
    q = gate_product(q, h_in_ptr, weight_hh_ptr, block, step, unit, 2, SPEC, TILE)
    if previous_ptr is not None:
        store(rows_at(previous_ptr, block, step, unit, H), h, mask)
    if gates_ptr is not None:
        store_four(rows_at(gates_ptr, block, step, unit, 4 * H), r, z, n, q, H, mask)
    h = tl.where(step.active[:, None], cells.gru_cell(r, z, n, q, h), h)
    store(rows_at(y_ptr, block, step, unit, H), h, mask)
    store(states_at(h_out_ptr, block, unit, H), h, state_mask)


@triton.jit(do_not_specialize=["s"])
def gru_step_backward_kernel(
    d_y_ptr,
    gates_ptr,
    previous_ptr,
    weight_hh_ptr,
    dh_in_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    d_gates_ptr,
    d_hidden_ptr,
    dh_out_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """d_gates = (dr, dz, dn) and d_hidden = (dr, dz, dq) of one step, rows of [R, D, 3 H] each."""
    H: constexpr = SPEC.hidden
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, T - 1 - s, T, B, H, TILE)
    dh = dh_after(dh_in_ptr, d_hidden_ptr, weight_hh_ptr, reset_ptr, offsets_ptr, block, unit, s, T, B, SPEC, TILE)
    r, z, n, q = load_four(rows_at(gates_ptr, block, step, unit, 4 * H), H, mask)
    h = load(rows_at(previous_ptr, block, step, unit, H), mask)
    d_y = load(rows_at(d_y_ptr, block, step, unit, H), mask)
    dr, dz, dn, dq, direct = cells.gru_cell_gradient(dh + d_y, r, z, n, q, h)
    store_three(rows_at(d_gates_ptr, block, step, unit, 3 * H), dr, dz, dn, H, mask)
    store_three(rows_at(d_hidden_ptr, block, step, unit, 3 * H), dr, dz, dq, H, mask)
    dh = tl.where(step.active[:, None], unless_reset(direct, step, reset_ptr), dh)
    store(states_at(dh_out_ptr, block, unit, H), dh, state_mask)


@triton.jit(do_not_specialize=["s"])
def step_state_gradient_kernel(
    d_hidden_ptr,
    weight_hh_ptr,
    dh_in_ptr,
    d_y_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    d_output_ptr,
    dh_out_ptr,
    s,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """dh after the step of launch s; without dY (s = T) it is d_h0, else dh + dY goes to d_output [R, D, P]."""
    P: constexpr = SPEC.outputs
    t = tl.maximum(T - 1 - s, 0)
    block, step, unit, mask, state_mask = place_of(reset_ptr, offsets_ptr, lengths_ptr, t, T, B, P, TILE)
    dh = dh_after(dh_in_ptr, d_hidden_ptr, weight_hh_ptr, reset_ptr, offsets_ptr, block, unit, s, T, B, SPEC, TILE)
    if d_y_ptr is not None:
        d_y = load(rows_at(d_y_ptr, block, step, unit, P), mask)
        store(rows_at(d_output_ptr, block, step, unit, P), dh + d_y, mask)
        dh = tl.where(step.active[:, None], 0.0, dh)
    store(states_at(dh_out_ptr, block, unit, P), dh, state_mask)


_STATES = ("h_in_ptr", "c_in_ptr", "h_out_ptr", "c_out_ptr", "unprojected_h_ptr")
_STATES += ("dh_in_ptr", "dc_in_ptr", "dh_out_ptr", "dc_out_ptr")
_NO_ROWS = (*_STATES, "weight_hh_ptr", "weight_hr_ptr", "bias_hh_ptr", "offsets_ptr", "lengths_ptr")


@costs(rnn_step_forward_kernel)
@costs(rnn_step_backward_kernel)
@costs(lstm_step_forward_kernel)
@costs(lstm_step_projection_kernel)
@costs(lstm_step_backward_kernel)
@costs(gru_step_forward_kernel)
@costs(gru_step_backward_kernel)
@costs(step_state_gradient_kernel)
def recurrent_step_cost(T: int, B: int, **others: Any) -> Cost:
    """Two operations per weight and sequence; weight and states moved once, and one step's share of the packed rows."""
    weight = others.get("weight_hr_ptr")  # a projected backward reads W_hr alone
    weight = others["weight_hh_ptr"] if weight is None else weight
    states = size_in_bytes(*(others.get(name) for name in _STATES))
    rows = size_in_bytes(*(value for name, value in others.items() if name not in _NO_ROWS))
    moved = size_in_bytes(weight) + states + rows // T
    return Cost(2 * B * weight.numel(), moved, serial="a split product would need a second launch in every time step")

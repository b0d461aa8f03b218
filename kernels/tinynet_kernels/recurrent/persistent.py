"""Persistent recurrent kernels: one launch walks all the steps with the recurrent weight on chip.

A program owns block_batch sequences of one direction (grid: batch blocks x directions) and loops over time. They are
neighbors or, where `interleaved`, every n-th of n programs': each program then has long and short ones. h and c are
carried in fp32 registers; W_hh, loaded once before the loop, is the second operand of every step's product. The input's
share X W_ih^T + b of all steps was computed by one product before (`layer.py`).

With R rows, D directions, H hidden and P output units (P = H without a projection), all contiguous:

    gates_x            [R, D, gates H]   the input's share; 1, 4 or 3 gates for RNN, LSTM, GRU
    y, d_y, previous   [R, D, P]
    cell               [R, D, H]         fp32
    gates              [R, D, 4 H]       LSTM: i, f, g, o; GRU: r, z, n's input, q; the RNN needs y alone

What a backward needs is saved in buffers of its own, never over what was loaded: `gates`, the pre-activations, and
`previous` and `cell`, the h and c that each step started from. A reset zeroes both before a step. Rows past the end of
a sequence are masked: their state stays, which serves packing, both directions, h_n and, mirrored, the gradients.
An absent tensor is None: no resets, no tables, no bias, no projection, nothing to save.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, costs, size_in_bytes
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
def rnn_forward_kernel(
    gates_x_ptr,
    weight_hh_ptr,
    h0_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    y_ptr,
    h_n_ptr,
    previous_ptr,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """h_t = act(gates_x_t + h_(t-1) W_hh^T); W_hh [D, H, H]."""
    H: constexpr = SPEC.hidden
    block = block_of(lengths_ptr, T, B, TILE.block_batch, TILE.interleaved)
    unit = tl.arange(0, TILE.block_hidden)
    unit_mask = unit < H
    weight = weight_hh_ptr + block.direction * (H * H) + unit[None, :] * H + unit[:, None]
    weight = tl.load(weight, mask=unit_mask[:, None] & unit_mask[None, :], other=0.0)
    state_mask = block.exists[:, None] & unit_mask[None, :]
    h = load(states_at(h0_ptr, block, unit, H), state_mask)
    for s in range(block.steps):
        step = step_of(reset_ptr, offsets_ptr, block, s, block.steps, B, TILE.interleaved)
        mask = step.active[:, None] & unit_mask[None, :]
        h = unless_reset(h, step, reset_ptr)
        if previous_ptr is not None:
            store(rows_at(previous_ptr, block, step, unit, H), h, mask)
        a = load(rows_at(gates_x_ptr, block, step, unit, H), mask)
        a = tl.dot(h.to(weight.dtype), weight, a, input_precision=SPEC.precision)
        h = tl.where(step.active[:, None], cells.rnn_cell(a, SPEC.relu), h)
        store(rows_at(y_ptr, block, step, unit, H), h, mask)
    store(states_at(h_n_ptr, block, unit, H), h, state_mask)


@triton.jit
def rnn_backward_kernel(
    d_y_ptr,
    y_ptr,
    weight_hh_ptr,
    d_h_n_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    d_gates_ptr,
    d_h0_ptr,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """da_t = (dh + dY_t) act'(h_t), dh before = da_t W_hh, backwards in time; act' from the output."""
    H: constexpr = SPEC.hidden
    block = block_of(lengths_ptr, T, B, TILE.block_batch, TILE.interleaved)
    unit = tl.arange(0, TILE.block_hidden)
    unit_mask = unit < H
    weight = weight_hh_ptr + block.direction * (H * H) + unit[:, None] * H + unit[None, :]
    weight = tl.load(weight, mask=unit_mask[:, None] & unit_mask[None, :], other=0.0)
    state_mask = block.exists[:, None] & unit_mask[None, :]
    dh = load(states_at(d_h_n_ptr, block, unit, H), state_mask)
    for s in range(block.steps):
        step = step_of(reset_ptr, offsets_ptr, block, block.steps - 1 - s, block.steps, B, TILE.interleaved)
        mask = step.active[:, None] & unit_mask[None, :]
        h = load(rows_at(y_ptr, block, step, unit, H), mask)
        d_y = load(rows_at(d_y_ptr, block, step, unit, H), mask)
        da = cells.rnn_cell_gradient(dh + d_y, h, SPEC.relu)
        store(rows_at(d_gates_ptr, block, step, unit, H), da, mask)
        before = tl.dot(da.to(weight.dtype), weight, input_precision=SPEC.precision)
        dh = tl.where(step.active[:, None], unless_reset(before, step, reset_ptr), dh)
    store(states_at(d_h0_ptr, block, unit, H), dh, state_mask)


@triton.jit
def lstm_forward_kernel(
    gates_x_ptr,
    weight_hh_ptr,
    weight_hr_ptr,
    h0_ptr,
    c0_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    y_ptr,
    h_n_ptr,
    c_n_ptr,
    gates_ptr,
    previous_ptr,
    cell_ptr,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """LSTM steps; W_hh [D, 4 H, P], W_hr [D, P, H] projects h."""
    H: constexpr = SPEC.hidden
    P: constexpr = SPEC.outputs
    block = block_of(lengths_ptr, T, B, TILE.block_batch, TILE.interleaved)
    unit = tl.arange(0, TILE.block_hidden)
    output = tl.arange(0, TILE.block_output)
    unit_mask = unit < H
    output_mask = output < P
    weight_mask = output_mask[:, None] & unit_mask[None, :]
    weight = weight_hh_ptr + block.direction * (4 * H * P) + unit[None, :] * P + output[:, None]
    weight_i = tl.load(weight, mask=weight_mask, other=0.0)
    weight_f = tl.load(weight + H * P, mask=weight_mask, other=0.0)
    weight_g = tl.load(weight + 2 * H * P, mask=weight_mask, other=0.0)
    weight_o = tl.load(weight + 3 * H * P, mask=weight_mask, other=0.0)
    if weight_hr_ptr is not None:
        projection = weight_hr_ptr + block.direction * (P * H) + output[None, :] * H + unit[:, None]
        projection = tl.load(projection, mask=unit_mask[:, None] & output_mask[None, :], other=0.0)
    h_mask = block.exists[:, None] & output_mask[None, :]
    c_mask = block.exists[:, None] & unit_mask[None, :]
    h = load(states_at(h0_ptr, block, output, P), h_mask)
    c = load(states_at(c0_ptr, block, unit, H), c_mask)
    for s in range(block.steps):
        step = step_of(reset_ptr, offsets_ptr, block, s, block.steps, B, TILE.interleaved)
        mask = step.active[:, None] & unit_mask[None, :]
        active_output = step.active[:, None] & output_mask[None, :]
        h = unless_reset(h, step, reset_ptr)
        c = unless_reset(c, step, reset_ptr)
        if previous_ptr is not None:
            store(rows_at(previous_ptr, block, step, output, P), h, active_output)
        if cell_ptr is not None:
            store(rows_at(cell_ptr, block, step, unit, H), c, mask)
        operand = h.to(weight_i.dtype)
        gates_x = rows_at(gates_x_ptr, block, step, unit, 4 * H)
        i = tl.dot(operand, weight_i, load(gates_x, mask), input_precision=SPEC.precision)
        f = tl.dot(operand, weight_f, load(gates_x + H, mask), input_precision=SPEC.precision)
        g = tl.dot(operand, weight_g, load(gates_x + 2 * H, mask), input_precision=SPEC.precision)
        o = tl.dot(operand, weight_o, load(gates_x + 3 * H, mask), input_precision=SPEC.precision)
        next_c, next_h = cells.lstm_cell(i, f, g, o, c)
        if weight_hr_ptr is not None:
            next_h = tl.dot(next_h.to(projection.dtype), projection, input_precision=SPEC.precision)
        c = tl.where(step.active[:, None], next_c, c)
        h = tl.where(step.active[:, None], next_h, h)
        store(rows_at(y_ptr, block, step, output, P), h, active_output)
        if gates_ptr is not None:
            store_four(rows_at(gates_ptr, block, step, unit, 4 * H), i, f, g, o, H, mask)
    store(states_at(h_n_ptr, block, output, P), h, h_mask)
    store(states_at(c_n_ptr, block, unit, H), c, c_mask)


@triton.jit
def lstm_backward_kernel(
    d_y_ptr,
    gates_ptr,
    cell_ptr,
    weight_hh_ptr,
    weight_hr_ptr,
    d_h_n_ptr,
    d_c_n_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    d_gates_ptr,
    d_output_ptr,
    unprojected_ptr,
    d_h0_ptr,
    d_c0_ptr,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """d_gates of every step, backwards in time; with W_hr also what dW_hr = d_output^T unprojected needs."""
    H: constexpr = SPEC.hidden
    P: constexpr = SPEC.outputs
    block = block_of(lengths_ptr, T, B, TILE.block_batch, TILE.interleaved)
    unit = tl.arange(0, TILE.block_hidden)
    output = tl.arange(0, TILE.block_output)
    unit_mask = unit < H
    output_mask = output < P
    weight_mask = unit_mask[:, None] & output_mask[None, :]
    weight = weight_hh_ptr + block.direction * (4 * H * P) + unit[:, None] * P + output[None, :]
    weight_i = tl.load(weight, mask=weight_mask, other=0.0)
    weight_f = tl.load(weight + H * P, mask=weight_mask, other=0.0)
    weight_g = tl.load(weight + 2 * H * P, mask=weight_mask, other=0.0)
    weight_o = tl.load(weight + 3 * H * P, mask=weight_mask, other=0.0)
    if weight_hr_ptr is not None:
        projection = weight_hr_ptr + block.direction * (P * H) + output[:, None] * H + unit[None, :]
        projection = tl.load(projection, mask=output_mask[:, None] & unit_mask[None, :], other=0.0)
    h_mask = block.exists[:, None] & output_mask[None, :]
    c_mask = block.exists[:, None] & unit_mask[None, :]
    dh = load(states_at(d_h_n_ptr, block, output, P), h_mask)
    dc = load(states_at(d_c_n_ptr, block, unit, H), c_mask)
    for s in range(block.steps):
        step = step_of(reset_ptr, offsets_ptr, block, block.steps - 1 - s, block.steps, B, TILE.interleaved)
        mask = step.active[:, None] & unit_mask[None, :]
        active_output = step.active[:, None] & output_mask[None, :]
        i, f, g, o = load_four(rows_at(gates_ptr, block, step, unit, 4 * H), H, mask)
        c = load(rows_at(cell_ptr, block, step, unit, H), mask)
        d_h = dh + load(rows_at(d_y_ptr, block, step, output, P), active_output)
        if weight_hr_ptr is not None:
            d_output = d_h.to(d_output_ptr.dtype.element_ty)
            store(rows_at(d_output_ptr, block, step, output, P), d_output, active_output)
            _, h = cells.lstm_cell(i, f, g, o, c)
            store(rows_at(unprojected_ptr, block, step, unit, H), h, mask)
            d_h = tl.dot(d_output.to(projection.dtype), projection, input_precision=SPEC.precision)
        di, df, dg, do, dc_before = cells.lstm_cell_gradient(d_h, dc, i, f, g, o, c)
        store_four(rows_at(d_gates_ptr, block, step, unit, 4 * H), di, df, dg, do, H, mask)
        dh_before = tl.dot(di.to(weight_i.dtype), weight_i, input_precision=SPEC.precision)
        dh_before = tl.dot(df.to(weight_i.dtype), weight_f, dh_before, input_precision=SPEC.precision)
        dh_before = tl.dot(dg.to(weight_i.dtype), weight_g, dh_before, input_precision=SPEC.precision)
        dh_before = tl.dot(do.to(weight_i.dtype), weight_o, dh_before, input_precision=SPEC.precision)
        dh = tl.where(step.active[:, None], unless_reset(dh_before, step, reset_ptr), dh)
        dc = tl.where(step.active[:, None], unless_reset(dc_before, step, reset_ptr), dc)
    store(states_at(d_h0_ptr, block, output, P), dh, h_mask)
    store(states_at(d_c0_ptr, block, unit, H), dc, c_mask)


@triton.jit
def gru_forward_kernel(
    gates_x_ptr,
    weight_hh_ptr,
    bias_hh_ptr,
    h0_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    y_ptr,
    h_n_ptr,
    gates_ptr,
    previous_ptr,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """GRU steps; W_hh [D, 3 H, H], b_hh [D, 3 H], of which only b_hn is added here. Saved gates: r, z, n's input, q."""
    H: constexpr = SPEC.hidden
    BLOCK_HIDDEN: constexpr = TILE.block_hidden
    block = block_of(lengths_ptr, T, B, TILE.block_batch, TILE.interleaved)
    unit = tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    weight_mask = unit_mask[:, None] & unit_mask[None, :]
    weight = weight_hh_ptr + block.direction * (3 * H * H) + unit[None, :] * H + unit[:, None]
    weight_r = tl.load(weight, mask=weight_mask, other=0.0)
    weight_z = tl.load(weight + H * H, mask=weight_mask, other=0.0)
    weight_n = tl.load(weight + 2 * H * H, mask=weight_mask, other=0.0)
    bias_n = tl.zeros((BLOCK_HIDDEN,), tl.float32)
    if bias_hh_ptr is not None:
        bias_n += load(bias_hh_ptr + block.direction * (3 * H) + 2 * H + unit, unit_mask)
    state_mask = block.exists[:, None] & unit_mask[None, :]
    h = load(states_at(h0_ptr, block, unit, H), state_mask)
    for s in range(block.steps):
        step = step_of(reset_ptr, offsets_ptr, block, s, block.steps, B, TILE.interleaved)
        mask = step.active[:, None] & unit_mask[None, :]
        h = unless_reset(h, step, reset_ptr)
        if previous_ptr is not None:
            store(rows_at(previous_ptr, block, step, unit, H), h, mask)
        gates_x = rows_at(gates_x_ptr, block, step, unit, 3 * H)
        operand = h.to(weight_r.dtype)
        r = tl.dot(operand, weight_r, load(gates_x, mask), input_precision=SPEC.precision)
        z = tl.dot(operand, weight_z, load(gates_x + H, mask), input_precision=SPEC.precision)
        n = load(gates_x + 2 * H, mask)
        q = tl.dot(operand, weight_n, input_precision=SPEC.precision) + bias_n[None, :]
        h = tl.where(step.active[:, None], cells.gru_cell(r, z, n, q, h), h)
        store(rows_at(y_ptr, block, step, unit, H), h, mask)
        if gates_ptr is not None:
            store_four(rows_at(gates_ptr, block, step, unit, 4 * H), r, z, n, q, H, mask)
    store(states_at(h_n_ptr, block, unit, H), h, state_mask)


@triton.jit
def gru_backward_kernel(
    d_y_ptr,
    gates_ptr,
    previous_ptr,
    weight_hh_ptr,
    d_h_n_ptr,
    reset_ptr,
    offsets_ptr,
    lengths_ptr,
    d_gates_ptr,
    d_hidden_ptr,
    d_h0_ptr,
    T,
    B,
    SPEC: constexpr,
    TILE: constexpr,
):
    """d_gates = (dr, dz, dn) [R, D, 3 H] and d_hidden = dq [R, D, H] of every step, backwards in time."""
    H: constexpr = SPEC.hidden
    block = block_of(lengths_ptr, T, B, TILE.block_batch, TILE.interleaved)
    unit = tl.arange(0, TILE.block_hidden)
    unit_mask = unit < H
    weight_mask = unit_mask[:, None] & unit_mask[None, :]
    weight = weight_hh_ptr + block.direction * (3 * H * H) + unit[:, None] * H + unit[None, :]
    weight_r = tl.load(weight, mask=weight_mask, other=0.0)
    weight_z = tl.load(weight + H * H, mask=weight_mask, other=0.0)
    weight_n = tl.load(weight + 2 * H * H, mask=weight_mask, other=0.0)
    dh = load(states_at(d_h_n_ptr, block, unit, H), block.exists[:, None] & unit_mask[None, :])
    for s in range(block.steps):
        step = step_of(reset_ptr, offsets_ptr, block, block.steps - 1 - s, block.steps, B, TILE.interleaved)
        mask = step.active[:, None] & unit_mask[None, :]
        r, z, n, q = load_four(rows_at(gates_ptr, block, step, unit, 4 * H), H, mask)
        h = load(rows_at(previous_ptr, block, step, unit, H), mask)
        d_y = load(rows_at(d_y_ptr, block, step, unit, H), mask)
        dr, dz, dn, dq, dh_before = cells.gru_cell_gradient(dh + d_y, r, z, n, q, h)
        store_three(rows_at(d_gates_ptr, block, step, unit, 3 * H), dr, dz, dn, H, mask)
        store(rows_at(d_hidden_ptr, block, step, unit, H), dq, mask)
        dh_before = tl.dot(dr.to(weight_r.dtype), weight_r, dh_before, input_precision=SPEC.precision)
        dh_before = tl.dot(dz.to(weight_r.dtype), weight_z, dh_before, input_precision=SPEC.precision)
        dh_before = tl.dot(dq.to(weight_r.dtype), weight_n, dh_before, input_precision=SPEC.precision)
        dh = tl.where(step.active[:, None], unless_reset(dh_before, step, reset_ptr), dh)
    # Other terms than the first load's: offsets that both need live through the loop, where sm_80 spilled them.
    batch = block.first + block.distance
    d_h0 = d_h0_ptr + block.direction.to(tl.int64) * B * H + batch[:, None] * H + unit[None, :]
    store(d_h0, dh, (batch < B)[:, None] & unit_mask[None, :])


@costs(rnn_forward_kernel)
@costs(lstm_forward_kernel)
@costs(gru_forward_kernel)
@costs(rnn_backward_kernel)
@costs(lstm_backward_kernel)
@costs(gru_backward_kernel)
def recurrent_cost(weight_hh_ptr: torch.Tensor, weight_hr_ptr: torch.Tensor | None = None, **others: Any) -> Cost:
    """Two operations per weight and row; every tensor is read or written once."""
    directions, _, outputs = weight_hh_ptr.shape
    rows = (others["y_ptr"] if "d_y_ptr" not in others else others["d_y_ptr"]).numel() // (directions * outputs)
    weights = weight_hh_ptr.numel() + (0 if weight_hr_ptr is None else weight_hr_ptr.numel())
    moved = size_in_bytes(weight_hh_ptr, weight_hr_ptr, *others.values())
    return Cost(2 * rows * weights, moved, serial="each time step depends on the one before")

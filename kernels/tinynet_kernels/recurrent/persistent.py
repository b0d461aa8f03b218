"""Persistent recurrent kernels: one launch walks all the steps with the recurrent weight on chip.

A program owns BLOCK_BATCH sequences of one direction (grid: batch blocks x directions) and loops over time. They are
neighbors, or every n-th of n programs' where DEALT: programs then have like work, and no longer like steps. h and c are
carried in fp32 registers; W_hh, loaded once before the loop, is the second operand of every step's product. The input's
share X W_ih^T + b of all steps was made by one product before (`layer.py`).

With R rows, D directions, H hidden and P output units (P = H without a projection), all contiguous:

    gates_x            [R, D, gates H]   the input's share; 1, 4 or 3 gates for RNN, LSTM, GRU
    y, d_y, previous   [R, D, P]
    cell               [R, D, H]         fp32
    gates              [R, D, 4 H]       LSTM: i, f, g, o; GRU: r, z, n's input, q; the RNN needs y alone

What a backward needs is kept in buffers of its own, never over what was loaded: `gates`, the pre-activations, and
`previous` and `cell`, the h and c that each step started from. A reset zeroes both before a step. Rows past the end of
a sequence are masked: their state stays, which serves packing, both directions, h_n and, mirrored, the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, costs, size_in_bytes
from tinynet_kernels.recurrent.cells import (
    active_sequences,
    first_row_of,
    gru_cell,
    gru_cell_gradient,
    lengths_of,
    lstm_cell,
    lstm_cell_gradient,
    reset_rows,
    rnn_cell,
    rnn_cell_gradient,
    sequences_of,
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
    H: constexpr,
    RELU: constexpr,
    SAVE: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    DEALT: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
):
    """h_t = act(gates_x_t + h_(t-1) W_hh^T); W_hh [D, H, H]."""
    direction = tl.program_id(1)
    directions = tl.num_programs(1)
    first, index, place = sequences_of(BLOCK_BATCH, DEALT)
    batch = first + place
    unit = tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    weight_mask = unit_mask[:, None] & unit_mask[None, :]
    weight_base = weight_hh_ptr + direction * (H * H)
    weight = tl.load(weight_base + unit[None, :] * H + unit[:, None], mask=weight_mask, other=0.0)
    state_base = (direction.to(tl.int64) * B + first) * H
    state_offset = place[:, None] * H + unit[None, :]
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    h = tl.load(h0_ptr + state_base + state_offset, mask=state_mask, other=0.0).to(tl.float32)
    length, steps = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    offset = place[:, None] * (directions * H) + unit[None, :]
    for s in range(steps):
        t = s + direction * (steps - 1 - 2 * s)
        row = first_row_of(offsets_ptr, t, B, PACKED)
        base = ((row + first) * directions + direction) * H
        active = active_sequences(t, length, index, DEALT)
        mask = active[:, None] & unit_mask[None, :]
        if HAS_RESET:
            reset = reset_rows(reset_ptr, row, batch, active)
            h = tl.where(reset[:, None], 0.0, h)
        if SAVE:
            tl.store(previous_ptr + base + offset, h.to(previous_ptr.dtype.element_ty), mask=mask)
        a = tl.load(gates_x_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        a = tl.dot(h.to(weight.dtype), weight, a, input_precision=PRECISION)
        h = tl.where(active[:, None], rnn_cell(a, RELU), h)
        tl.store(y_ptr + base + offset, h.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(h_n_ptr + state_base + state_offset, h.to(h_n_ptr.dtype.element_ty), mask=state_mask)


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
    H: constexpr,
    RELU: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    DEALT: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
):
    """da_t = (dh + dY_t) act'(h_t), dh before = da_t W_hh, backwards in time; act' from the output."""
    direction = tl.program_id(1)
    directions = tl.num_programs(1)
    first, index, place = sequences_of(BLOCK_BATCH, DEALT)
    batch = first + place
    unit = tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    weight_mask = unit_mask[:, None] & unit_mask[None, :]
    weight_base = weight_hh_ptr + direction * (H * H)
    weight = tl.load(weight_base + unit[:, None] * H + unit[None, :], mask=weight_mask, other=0.0)
    state_base = (direction.to(tl.int64) * B + first) * H
    state_offset = place[:, None] * H + unit[None, :]
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    dh = tl.load(d_h_n_ptr + state_base + state_offset, mask=state_mask, other=0.0).to(tl.float32)
    length, steps = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    offset = place[:, None] * (directions * H) + unit[None, :]
    for s in range(steps):
        t = steps - 1 - s + direction * (2 * s - steps + 1)
        row = first_row_of(offsets_ptr, t, B, PACKED)
        base = ((row + first) * directions + direction) * H
        active = active_sequences(t, length, index, DEALT)
        mask = active[:, None] & unit_mask[None, :]
        h = tl.load(y_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        d_y = tl.load(d_y_ptr + base + offset, mask=mask, other=0.0).to(tl.float32)
        da = rnn_cell_gradient(dh + d_y, h, RELU)
        tl.store(d_gates_ptr + base + offset, da.to(d_gates_ptr.dtype.element_ty), mask=mask)
        before = tl.dot(da.to(weight.dtype), weight, input_precision=PRECISION)
        if HAS_RESET:
            reset = reset_rows(reset_ptr, row, batch, active)
            before = tl.where(reset[:, None], 0.0, before)
        dh = tl.where(active[:, None], before, dh)
    tl.store(d_h0_ptr + state_base + state_offset, dh.to(d_h0_ptr.dtype.element_ty), mask=state_mask)


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
    H: constexpr,
    P: constexpr,
    PROJECTED: constexpr,
    SAVE: constexpr,
    SAVE_CELL: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    DEALT: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_OUTPUT: constexpr,
):
    """LSTM steps; W_hh [D, 4 H, P], W_hr [D, P, H] projects h. SAVE keeps gates and h, SAVE_CELL keeps c."""
    direction = tl.program_id(1)
    directions = tl.num_programs(1)
    first, index, place = sequences_of(BLOCK_BATCH, DEALT)
    batch = first + place
    unit = tl.arange(0, BLOCK_HIDDEN)
    output = tl.arange(0, BLOCK_OUTPUT)
    unit_mask = unit < H
    output_mask = output < P
    weight_mask = output_mask[:, None] & unit_mask[None, :]
    weight = weight_hh_ptr + direction * (4 * H * P) + unit[None, :] * P + output[:, None]
    weight_i = tl.load(weight, mask=weight_mask, other=0.0)
    weight_f = tl.load(weight + H * P, mask=weight_mask, other=0.0)
    weight_g = tl.load(weight + 2 * H * P, mask=weight_mask, other=0.0)
    weight_o = tl.load(weight + 3 * H * P, mask=weight_mask, other=0.0)
    if PROJECTED:
        projection_base = weight_hr_ptr + direction * (P * H)
        projection_mask = unit_mask[:, None] & output_mask[None, :]
        projection = tl.load(projection_base + output[None, :] * H + unit[:, None], mask=projection_mask, other=0.0)
    first_state = direction.to(tl.int64) * B + first
    h_offset = place[:, None] * P + output[None, :]
    c_offset = place[:, None] * H + unit[None, :]
    h_mask = (batch < B)[:, None] & output_mask[None, :]
    c_mask = (batch < B)[:, None] & unit_mask[None, :]
    h = tl.load(h0_ptr + first_state * P + h_offset, mask=h_mask, other=0.0).to(tl.float32)
    c = tl.load(c0_ptr + first_state * H + c_offset, mask=c_mask, other=0.0).to(tl.float32)
    length, steps = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    gate_offset = place[:, None] * (directions * 4 * H) + unit[None, :]
    unit_offset = place[:, None] * (directions * H) + unit[None, :]
    output_offset = place[:, None] * (directions * P) + output[None, :]
    for s in range(steps):
        t = s + direction * (steps - 1 - 2 * s)
        row = first_row_of(offsets_ptr, t, B, PACKED)
        base = (row + first) * directions + direction
        active = active_sequences(t, length, index, DEALT)
        mask = active[:, None] & unit_mask[None, :]
        active_output = active[:, None] & output_mask[None, :]
        if HAS_RESET:
            reset = reset_rows(reset_ptr, row, batch, active)
            h = tl.where(reset[:, None], 0.0, h)
            c = tl.where(reset[:, None], 0.0, c)
        if SAVE:
            previous = previous_ptr + base * P + output_offset
            tl.store(previous, h.to(previous_ptr.dtype.element_ty), mask=active_output)
        if SAVE_CELL:
            tl.store(cell_ptr + base * H + unit_offset, c, mask=mask)
        gate = gates_x_ptr + base * (4 * H) + gate_offset
        operand = h.to(weight_i.dtype)
        i = tl.load(gate, mask=mask, other=0.0).to(tl.float32)
        i = tl.dot(operand, weight_i, i, input_precision=PRECISION)
        f = tl.load(gate + H, mask=mask, other=0.0).to(tl.float32)
        f = tl.dot(operand, weight_f, f, input_precision=PRECISION)
        g = tl.load(gate + 2 * H, mask=mask, other=0.0).to(tl.float32)
        g = tl.dot(operand, weight_g, g, input_precision=PRECISION)
        o = tl.load(gate + 3 * H, mask=mask, other=0.0).to(tl.float32)
        o = tl.dot(operand, weight_o, o, input_precision=PRECISION)
        next_c, next_h = lstm_cell(i, f, g, o, c)
        if PROJECTED:
            next_h = tl.dot(next_h.to(projection.dtype), projection, input_precision=PRECISION)
        c = tl.where(active[:, None], next_c, c)
        h = tl.where(active[:, None], next_h, h)
        tl.store(y_ptr + base * P + output_offset, h.to(y_ptr.dtype.element_ty), mask=active_output)
        if SAVE:
            saved = gates_ptr + base * (4 * H) + gate_offset
            tl.store(saved, i.to(gates_ptr.dtype.element_ty), mask=mask)
            tl.store(saved + H, f.to(gates_ptr.dtype.element_ty), mask=mask)
            tl.store(saved + 2 * H, g.to(gates_ptr.dtype.element_ty), mask=mask)
            tl.store(saved + 3 * H, o.to(gates_ptr.dtype.element_ty), mask=mask)
    tl.store(h_n_ptr + first_state * P + h_offset, h.to(h_n_ptr.dtype.element_ty), mask=h_mask)
    tl.store(c_n_ptr + first_state * H + c_offset, c.to(c_n_ptr.dtype.element_ty), mask=c_mask)


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
    H: constexpr,
    P: constexpr,
    PROJECTED: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    DEALT: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_OUTPUT: constexpr,
):
    """d_gates of every step, backwards in time; PROJECTED also keeps what dW_hr = d_output^T unprojected needs."""
    direction = tl.program_id(1)
    directions = tl.num_programs(1)
    first, index, place = sequences_of(BLOCK_BATCH, DEALT)
    batch = first + place
    unit = tl.arange(0, BLOCK_HIDDEN)
    output = tl.arange(0, BLOCK_OUTPUT)
    unit_mask = unit < H
    output_mask = output < P
    weight_mask = unit_mask[:, None] & output_mask[None, :]
    weight = weight_hh_ptr + direction * (4 * H * P) + unit[:, None] * P + output[None, :]
    weight_i = tl.load(weight, mask=weight_mask, other=0.0)
    weight_f = tl.load(weight + H * P, mask=weight_mask, other=0.0)
    weight_g = tl.load(weight + 2 * H * P, mask=weight_mask, other=0.0)
    weight_o = tl.load(weight + 3 * H * P, mask=weight_mask, other=0.0)
    if PROJECTED:
        projection_base = weight_hr_ptr + direction * (P * H)
        projection_mask = output_mask[:, None] & unit_mask[None, :]
        projection = tl.load(projection_base + output[:, None] * H + unit[None, :], mask=projection_mask, other=0.0)
    first_state = direction.to(tl.int64) * B + first
    h_offset = place[:, None] * P + output[None, :]
    c_offset = place[:, None] * H + unit[None, :]
    h_mask = (batch < B)[:, None] & output_mask[None, :]
    c_mask = (batch < B)[:, None] & unit_mask[None, :]
    dh = tl.load(d_h_n_ptr + first_state * P + h_offset, mask=h_mask, other=0.0).to(tl.float32)
    dc = tl.load(d_c_n_ptr + first_state * H + c_offset, mask=c_mask, other=0.0).to(tl.float32)
    length, steps = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    gate_offset = place[:, None] * (directions * 4 * H) + unit[None, :]
    unit_offset = place[:, None] * (directions * H) + unit[None, :]
    output_offset = place[:, None] * (directions * P) + output[None, :]
    for s in range(steps):
        t = steps - 1 - s + direction * (2 * s - steps + 1)
        row = first_row_of(offsets_ptr, t, B, PACKED)
        base = (row + first) * directions + direction
        active = active_sequences(t, length, index, DEALT)
        mask = active[:, None] & unit_mask[None, :]
        active_output = active[:, None] & output_mask[None, :]
        gate = gates_ptr + base * (4 * H) + gate_offset
        i = tl.load(gate, mask=mask, other=0.0).to(tl.float32)
        f = tl.load(gate + H, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(gate + 2 * H, mask=mask, other=0.0).to(tl.float32)
        o = tl.load(gate + 3 * H, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(cell_ptr + base * H + unit_offset, mask=mask, other=0.0)
        d_y = tl.load(d_y_ptr + base * P + output_offset, mask=active_output, other=0.0).to(tl.float32)
        d_unprojected = dh + d_y
        if PROJECTED:
            d_output = d_unprojected.to(d_output_ptr.dtype.element_ty)
            tl.store(d_output_ptr + base * P + output_offset, d_output, mask=active_output)
            _, h = lstm_cell(i, f, g, o, c)
            unprojected = unprojected_ptr + base * H + unit_offset
            tl.store(unprojected, h.to(unprojected_ptr.dtype.element_ty), mask=mask)
            d_unprojected = tl.dot(d_output.to(projection.dtype), projection, input_precision=PRECISION)
        di, df, dg, do, dc_before = lstm_cell_gradient(d_unprojected, dc, i, f, g, o, c)
        d_gate = d_gates_ptr + base * (4 * H) + gate_offset
        tl.store(d_gate, di.to(d_gates_ptr.dtype.element_ty), mask=mask)
        tl.store(d_gate + H, df.to(d_gates_ptr.dtype.element_ty), mask=mask)
        tl.store(d_gate + 2 * H, dg.to(d_gates_ptr.dtype.element_ty), mask=mask)
        tl.store(d_gate + 3 * H, do.to(d_gates_ptr.dtype.element_ty), mask=mask)
        dh_before = tl.dot(di.to(weight_i.dtype), weight_i, input_precision=PRECISION)
        dh_before = tl.dot(df.to(weight_i.dtype), weight_f, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(dg.to(weight_i.dtype), weight_g, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(do.to(weight_i.dtype), weight_o, dh_before, input_precision=PRECISION)
        if HAS_RESET:
            reset = reset_rows(reset_ptr, row, batch, active)
            dh_before = tl.where(reset[:, None], 0.0, dh_before)
            dc_before = tl.where(reset[:, None], 0.0, dc_before)
        dh = tl.where(active[:, None], dh_before, dh)
        dc = tl.where(active[:, None], dc_before, dc)
    tl.store(d_h0_ptr + first_state * P + h_offset, dh.to(d_h0_ptr.dtype.element_ty), mask=h_mask)
    tl.store(d_c0_ptr + first_state * H + c_offset, dc.to(d_c0_ptr.dtype.element_ty), mask=c_mask)


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
    H: constexpr,
    HAS_BIAS: constexpr,
    SAVE: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    DEALT: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
):
    """GRU steps; W_hh [D, 3 H, H], b_hh [D, 3 H], of which only b_hn is added here. Saved gates: r, z, n's input, q."""
    direction = tl.program_id(1)
    directions = tl.num_programs(1)
    first, index, place = sequences_of(BLOCK_BATCH, DEALT)
    batch = first + place
    unit = tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    weight_mask = unit_mask[:, None] & unit_mask[None, :]
    weight = weight_hh_ptr + direction * (3 * H * H) + unit[None, :] * H + unit[:, None]
    weight_r = tl.load(weight, mask=weight_mask, other=0.0)
    weight_z = tl.load(weight + H * H, mask=weight_mask, other=0.0)
    weight_n = tl.load(weight + 2 * H * H, mask=weight_mask, other=0.0)
    bias_n = tl.zeros((BLOCK_HIDDEN,), tl.float32)
    if HAS_BIAS:
        bias_n += tl.load(bias_hh_ptr + direction * (3 * H) + 2 * H + unit, mask=unit_mask, other=0.0).to(tl.float32)
    state_base = (direction.to(tl.int64) * B + first) * H
    state_offset = place[:, None] * H + unit[None, :]
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    h = tl.load(h0_ptr + state_base + state_offset, mask=state_mask, other=0.0).to(tl.float32)
    length, steps = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    gate_offset = place[:, None] * (directions * 3 * H) + unit[None, :]
    saved_offset = place[:, None] * (directions * 4 * H) + unit[None, :]
    offset = place[:, None] * (directions * H) + unit[None, :]
    for s in range(steps):
        t = s + direction * (steps - 1 - 2 * s)
        row = first_row_of(offsets_ptr, t, B, PACKED)
        base = (row + first) * directions + direction
        active = active_sequences(t, length, index, DEALT)
        mask = active[:, None] & unit_mask[None, :]
        if HAS_RESET:
            reset = reset_rows(reset_ptr, row, batch, active)
            h = tl.where(reset[:, None], 0.0, h)
        if SAVE:
            tl.store(previous_ptr + base * H + offset, h.to(previous_ptr.dtype.element_ty), mask=mask)
        gate = gates_x_ptr + base * (3 * H) + gate_offset
        operand = h.to(weight_r.dtype)
        r = tl.load(gate, mask=mask, other=0.0).to(tl.float32)
        r = tl.dot(operand, weight_r, r, input_precision=PRECISION)
        z = tl.load(gate + H, mask=mask, other=0.0).to(tl.float32)
        z = tl.dot(operand, weight_z, z, input_precision=PRECISION)
        n = tl.load(gate + 2 * H, mask=mask, other=0.0).to(tl.float32)
        q = tl.dot(operand, weight_n, input_precision=PRECISION) + bias_n[None, :]
        h = tl.where(active[:, None], gru_cell(r, z, n, q, h), h)
        tl.store(y_ptr + base * H + offset, h.to(y_ptr.dtype.element_ty), mask=mask)
        if SAVE:
            saved = gates_ptr + base * (4 * H) + saved_offset
            tl.store(saved, r.to(gates_ptr.dtype.element_ty), mask=mask)
            tl.store(saved + H, z.to(gates_ptr.dtype.element_ty), mask=mask)
            tl.store(saved + 2 * H, n.to(gates_ptr.dtype.element_ty), mask=mask)
            tl.store(saved + 3 * H, q.to(gates_ptr.dtype.element_ty), mask=mask)
    tl.store(h_n_ptr + state_base + state_offset, h.to(h_n_ptr.dtype.element_ty), mask=state_mask)


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
    d_apart_ptr,
    d_h0_ptr,
    T,
    B,
    H: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    DEALT: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
):
    """d_gates = (dr, dz, dn) [R, D, 3 H] and d_apart = dq [R, D, H] of every step, backwards in time."""
    direction = tl.program_id(1)
    directions = tl.num_programs(1)
    first, index, place = sequences_of(BLOCK_BATCH, DEALT)
    batch = first + place
    unit = tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    weight_mask = unit_mask[:, None] & unit_mask[None, :]
    weight = weight_hh_ptr + direction * (3 * H * H) + unit[:, None] * H + unit[None, :]
    weight_r = tl.load(weight, mask=weight_mask, other=0.0)
    weight_z = tl.load(weight + H * H, mask=weight_mask, other=0.0)
    weight_n = tl.load(weight + 2 * H * H, mask=weight_mask, other=0.0)
    state_base = (direction.to(tl.int64) * B + first) * H
    state_offset = place[:, None] * H + unit[None, :]
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    dh = tl.load(d_h_n_ptr + state_base + state_offset, mask=state_mask, other=0.0).to(tl.float32)
    length, steps = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    gate_offset = place[:, None] * (directions * 3 * H) + unit[None, :]
    saved_offset = place[:, None] * (directions * 4 * H) + unit[None, :]
    offset = place[:, None] * (directions * H) + unit[None, :]
    for s in range(steps):
        t = steps - 1 - s + direction * (2 * s - steps + 1)
        row = first_row_of(offsets_ptr, t, B, PACKED)
        base = (row + first) * directions + direction
        active = active_sequences(t, length, index, DEALT)
        mask = active[:, None] & unit_mask[None, :]
        saved = gates_ptr + base * (4 * H) + saved_offset
        r = tl.load(saved, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(saved + H, mask=mask, other=0.0).to(tl.float32)
        n = tl.load(saved + 2 * H, mask=mask, other=0.0).to(tl.float32)
        q = tl.load(saved + 3 * H, mask=mask, other=0.0).to(tl.float32)
        h = tl.load(previous_ptr + base * H + offset, mask=mask, other=0.0).to(tl.float32)
        d_y = tl.load(d_y_ptr + base * H + offset, mask=mask, other=0.0).to(tl.float32)
        dr, dz, dn, dq, dh_before = gru_cell_gradient(dh + d_y, r, z, n, q, h)
        d_gate = d_gates_ptr + base * (3 * H) + gate_offset
        tl.store(d_gate, dr.to(d_gates_ptr.dtype.element_ty), mask=mask)
        tl.store(d_gate + H, dz.to(d_gates_ptr.dtype.element_ty), mask=mask)
        tl.store(d_gate + 2 * H, dn.to(d_gates_ptr.dtype.element_ty), mask=mask)
        tl.store(d_apart_ptr + base * H + offset, dq.to(d_apart_ptr.dtype.element_ty), mask=mask)
        dh_before = tl.dot(dr.to(weight_r.dtype), weight_r, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(dz.to(weight_r.dtype), weight_z, dh_before, input_precision=PRECISION)
        dh_before = tl.dot(dq.to(weight_r.dtype), weight_n, dh_before, input_precision=PRECISION)
        if HAS_RESET:
            reset = reset_rows(reset_ptr, row, batch, active)
            dh_before = tl.where(reset[:, None], 0.0, dh_before)
        dh = tl.where(active[:, None], dh_before, dh)
    # Other terms than the first load's: offsets that both need live through the loop, where sm_80 spilled them.
    d_h0 = d_h0_ptr + direction.to(tl.int64) * B * H + batch[:, None] * H + unit[None, :]
    tl.store(d_h0, dh.to(d_h0_ptr.dtype.element_ty), mask=(batch < B)[:, None] & unit_mask[None, :])


@costs(rnn_forward_kernel)
@costs(lstm_forward_kernel)
@costs(gru_forward_kernel)
def recurrent_forward_cost(
    gates_x_ptr: torch.Tensor,
    weight_hh_ptr: torch.Tensor,
    h0_ptr: torch.Tensor,
    y_ptr: torch.Tensor,
    h_n_ptr: torch.Tensor,
    weight_hr_ptr: torch.Tensor | None = None,
    c0_ptr: torch.Tensor | None = None,
    c_n_ptr: torch.Tensor | None = None,
    gates_ptr: torch.Tensor | None = None,
    previous_ptr: torch.Tensor | None = None,
    cell_ptr: torch.Tensor | None = None,
    **_: Any,
) -> Cost:
    """Two operations a weight and row; weights, states and every row's gates read once, y and what is saved written."""
    moved = (gates_x_ptr, weight_hh_ptr, weight_hr_ptr, h0_ptr, c0_ptr, y_ptr, h_n_ptr, c_n_ptr)
    kept = (gates_ptr, previous_ptr, cell_ptr)
    return Cost(_products(y_ptr, weight_hh_ptr, weight_hr_ptr), size_in_bytes(*moved, *kept))


@costs(rnn_backward_kernel)
@costs(lstm_backward_kernel)
@costs(gru_backward_kernel)
def recurrent_backward_cost(
    d_y_ptr: torch.Tensor,
    weight_hh_ptr: torch.Tensor,
    weight_hr_ptr: torch.Tensor | None = None,
    **arguments: Any,
) -> Cost:
    """As the forward; every tensor is read or written once."""
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    moved = size_in_bytes(d_y_ptr, weight_hh_ptr, weight_hr_ptr, *tensors)
    return Cost(_products(d_y_ptr, weight_hh_ptr, weight_hr_ptr), moved)


def _products(y: torch.Tensor, weight_hh: torch.Tensor, weight_hr: torch.Tensor | None) -> int:
    """Operations of the products of all rows; y [R, D, P] and a direction's weights once a row."""
    directions, _, outputs = weight_hh.shape
    rows = y.numel() // (directions * outputs)
    return 2 * rows * (weight_hh.numel() + (0 if weight_hr is None else weight_hr.numel()))

"""Per-step recurrent kernels: one fused launch a step, for weights that no chip holds; graph-capturable.

Launch s makes the s-th step of each direction: t = s forwards and T - 1 - s for the reverse direction, mirrored in the
backward. A program makes [BLOCK_BATCH, BLOCK_HIDDEN] of one direction (grid: unit blocks x batch blocks x directions);
the product with W_hh walks its reduction in steps of BLOCK_K, the cell is its epilogue. States go from launch to launch
through fp32 buffers [D, B, units]: a launch reads one and writes another.

Backward: dh of a step is its state gradient, dY, and d_gates W_hh of the step that the launch before made. Rows whose
sequence has ended, or that a reset cut off, take no product; their gradient passes through. A last launch makes d_h0.
A projection needs all units of a step at once, and so a launch of its own, both ways.

Layouts are those of `persistent.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.recurrent.cells import (
    first_row_of,
    gru_cell,
    gru_cell_gradient,
    lengths_of,
    lstm_cell,
    lstm_cell_gradient,
    reset_rows,
    rnn_cell,
    rnn_cell_gradient,
)


@triton.jit
def step_product(
    acc,
    operand_ptr,
    weight_ptr,
    operand_offset,
    weight_offset,
    row_mask,
    unit_mask,
    weight_step,
    K,
    BLOCK_K: constexpr,
    PRECISION: constexpr,
):
    """acc + sum over k < K of operand[row, k] weight[k, unit]; the operand's k are adjacent, the weight's `weight_step`
    apart. `operand_offset` is [rows, 1] and `weight_offset` [1, units]."""
    k = tl.arange(0, BLOCK_K)
    for start in range(0, K, BLOCK_K):
        k_mask = k < K - start
        operand_mask = row_mask[:, None] & k_mask[None, :]
        weight_mask = k_mask[:, None] & unit_mask[None, :]
        operand = tl.load(operand_ptr + operand_offset + k[None, :], mask=operand_mask, other=0.0)
        weight = tl.load(weight_ptr + weight_offset + k[:, None] * weight_step, mask=weight_mask, other=0.0)
        acc = tl.dot(operand.to(weight.dtype), weight, acc, input_precision=PRECISION)
        operand_ptr += BLOCK_K
        weight_ptr += BLOCK_K * weight_step
    return acc


@triton.jit
def weight_rows(unit, UNITS: constexpr, LENGTH: constexpr):
    """Where the rows of a weight [UNITS, LENGTH] begin, [1, units]."""
    return widened(unit, UNITS * LENGTH >= 1 << 31)[None, :] * LENGTH


@triton.jit
def state_gradient(
    dh_in_ptr,
    d_hidden_ptr,
    weight_hh_ptr,
    reset_ptr,
    offsets_ptr,
    length,
    first,
    batch,
    unit,
    s,
    T,
    B,
    GATES: constexpr,
    P: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_K: constexpr,
):
    """dh after the step of launch s, without its dY: dh_in + d_hidden W_hh of launch s - 1; [batch, unit] of P units.

    d_hidden [R, D, GATES], W_hh [D, GATES, P].
    """
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    unit_mask = unit < P
    mask = (batch < B)[:, None] & unit_mask[None, :]
    state = (direction.to(tl.int64) * B + first) * P
    dh = tl.load(dh_in_ptr + state + (batch - first)[:, None] * P + unit[None, :], mask=mask, other=0.0)
    made = tl.where(direction == 0, T - s, s - 1)
    made = tl.where(s > 0, made, 0)
    row = first_row_of(offsets_ptr, made, B, PACKED)
    rows = made < length
    if HAS_RESET:
        rows = rows & (reset_rows(reset_ptr, row, batch, rows) == 0)
    return step_product(
        dh,
        d_hidden_ptr + ((row + first) * directions + direction) * GATES,
        weight_hh_ptr + direction.to(tl.int64) * (GATES * P),
        (batch - first)[:, None] * (directions * GATES),
        unit[None, :],
        rows,
        unit_mask,
        P,
        tl.where(s > 0, GATES, 0),
        BLOCK_K,
        PRECISION,
    )


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
    H: constexpr,
    RELU: constexpr,
    SAVE: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """h_t = act(gates_x_t + h_(t-1) W_hh^T); W_hh [D, H, H]."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    t = tl.where(direction == 0, s, T - 1 - s)
    row = first_row_of(offsets_ptr, t, B, PACKED)
    active = t < length
    mask = active[:, None] & unit_mask[None, :]
    state = (direction.to(tl.int64) * B + first) * H
    state_offset = index[:, None] * H + unit[None, :]
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    h = tl.load(h_in_ptr + state + state_offset, mask=state_mask, other=0.0)
    rows = active
    if HAS_RESET:
        reset = reset_rows(reset_ptr, row, batch, active)
        h = tl.where(reset[:, None], 0.0, h)
        rows = rows & (reset == 0)
    base = ((row + first) * directions + direction) * H
    offset = index[:, None] * (directions * H) + unit[None, :]
    a = step_product(
        tl.load(gates_x_ptr + base + offset, mask=mask, other=0.0).to(tl.float32),
        h_in_ptr + state,
        weight_hh_ptr + direction.to(tl.int64) * (H * H),
        index[:, None] * H,
        weight_rows(unit, H, H),
        rows,
        unit_mask,
        1,
        H,
        BLOCK_K,
        PRECISION,
    )
    if SAVE:
        tl.store(previous_ptr + base + offset, h.to(previous_ptr.dtype.element_ty), mask=mask)
    h = tl.where(active[:, None], rnn_cell(a, RELU), h)
    tl.store(y_ptr + base + offset, h.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(h_out_ptr + state + state_offset, h, mask=state_mask)


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
    H: constexpr,
    RELU: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """da_t = dh act'(h_t), act' from the output; W_hh [D, H, H]."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    t = tl.where(direction == 0, T - 1 - s, s)
    row = first_row_of(offsets_ptr, t, B, PACKED)
    base = (row + first) * directions + direction
    active = t < length
    mask = active[:, None] & unit_mask[None, :]
    state = direction.to(tl.int64) * B + first
    offset = index[:, None] * (directions * H) + unit[None, :]
    dh = state_gradient(
        dh_in_ptr,
        d_gates_ptr,
        weight_hh_ptr,
        reset_ptr,
        offsets_ptr,
        length,
        first,
        batch,
        unit,
        s,
        T,
        B,
        H,
        H,
        HAS_RESET,
        PACKED,
        PRECISION,
        BLOCK_K,
    )
    h = tl.load(y_ptr + base * H + offset, mask=mask, other=0.0).to(tl.float32)
    d_y = tl.load(d_y_ptr + base * H + offset, mask=mask, other=0.0).to(tl.float32)
    da = rnn_cell_gradient(dh + d_y, h, RELU)
    tl.store(d_gates_ptr + base * H + offset, da.to(d_gates_ptr.dtype.element_ty), mask=mask)
    state_offset = index[:, None] * H + unit[None, :]
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    tl.store(dh_out_ptr + state * H + state_offset, tl.where(active[:, None], 0.0, dh), mask=state_mask)


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
    s,
    T,
    B,
    H: constexpr,
    P: constexpr,
    PROJECTED: constexpr,
    SAVE: constexpr,
    SAVE_CELL: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """One LSTM step; W_hh [D, 4 H, P]. PROJECTED leaves h unprojected in h_out [D, B, H] and y to the projection."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    t = tl.where(direction == 0, s, T - 1 - s)
    row = first_row_of(offsets_ptr, t, B, PACKED)
    base = (row + first) * directions + direction
    active = t < length
    mask = active[:, None] & unit_mask[None, :]
    state = direction.to(tl.int64) * B + first
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    state_offset = index[:, None] * H + unit[None, :]
    c = tl.load(c_in_ptr + state * H + state_offset, mask=state_mask, other=0.0)
    rows = active
    if HAS_RESET:
        reset = reset_rows(reset_ptr, row, batch, active)
        rows = rows & (reset == 0)
        c = tl.where(reset[:, None], 0.0, c)
    unit_offset = index[:, None] * (directions * H) + unit[None, :]
    if SAVE_CELL:
        tl.store(cell_ptr + base * H + unit_offset, c, mask=mask)
    gate_offset = index[:, None] * (directions * 4 * H) + unit[None, :]
    gate = gates_x_ptr + base * (4 * H) + gate_offset
    weight = weight_hh_ptr + direction.to(tl.int64) * (4 * H * P)
    operand_offset = index[:, None] * P
    i = step_product(
        tl.load(gate, mask=mask, other=0.0).to(tl.float32),
        h_in_ptr + state * P,
        weight,
        operand_offset,
        weight_rows(unit, H, P),
        rows,
        unit_mask,
        1,
        P,
        BLOCK_K,
        PRECISION,
    )
    f = step_product(
        tl.load(gate + H, mask=mask, other=0.0).to(tl.float32),
        h_in_ptr + state * P,
        weight + H * P,
        operand_offset,
        weight_rows(unit, H, P),
        rows,
        unit_mask,
        1,
        P,
        BLOCK_K,
        PRECISION,
    )
    g = step_product(
        tl.load(gate + 2 * H, mask=mask, other=0.0).to(tl.float32),
        h_in_ptr + state * P,
        weight + 2 * H * P,
        operand_offset,
        weight_rows(unit, H, P),
        rows,
        unit_mask,
        1,
        P,
        BLOCK_K,
        PRECISION,
    )
    o = step_product(
        tl.load(gate + 3 * H, mask=mask, other=0.0).to(tl.float32),
        h_in_ptr + state * P,
        weight + 3 * H * P,
        operand_offset,
        weight_rows(unit, H, P),
        rows,
        unit_mask,
        1,
        P,
        BLOCK_K,
        PRECISION,
    )
    next_c, next_h = lstm_cell(i, f, g, o, c)
    tl.store(c_out_ptr + state * H + state_offset, tl.where(active[:, None], next_c, c), mask=state_mask)
    if SAVE:
        saved = gates_ptr + base * (4 * H) + gate_offset
        tl.store(saved, i.to(gates_ptr.dtype.element_ty), mask=mask)
        tl.store(saved + H, f.to(gates_ptr.dtype.element_ty), mask=mask)
        tl.store(saved + 2 * H, g.to(gates_ptr.dtype.element_ty), mask=mask)
        tl.store(saved + 3 * H, o.to(gates_ptr.dtype.element_ty), mask=mask)
    if PROJECTED:
        tl.store(h_out_ptr + state * H + state_offset, next_h, mask=state_mask)
    else:
        h = tl.load(h_in_ptr + state * H + state_offset, mask=state_mask, other=0.0)
        if HAS_RESET:
            h = tl.where(reset[:, None], 0.0, h)
        if SAVE:
            tl.store(previous_ptr + base * H + unit_offset, h.to(previous_ptr.dtype.element_ty), mask=mask)
        tl.store(y_ptr + base * H + unit_offset, next_h.to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(h_out_ptr + state * H + state_offset, tl.where(active[:, None], next_h, h), mask=state_mask)


@triton.jit(do_not_specialize=["s"])
def lstm_step_projection_kernel(
    unprojected_ptr,
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
    H: constexpr,
    P: constexpr,
    SAVE: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """h = unprojected W_hr^T of one step; unprojected [D, B, H] in fp32, W_hr [D, P, H]."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < P
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    t = tl.where(direction == 0, s, T - 1 - s)
    row = first_row_of(offsets_ptr, t, B, PACKED)
    base = (row + first) * directions + direction
    active = t < length
    mask = active[:, None] & unit_mask[None, :]
    state = direction.to(tl.int64) * B + first
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    state_offset = index[:, None] * P + unit[None, :]
    offset = index[:, None] * (directions * P) + unit[None, :]
    next_h = step_product(
        tl.zeros((BLOCK_BATCH, BLOCK_HIDDEN), tl.float32),
        unprojected_ptr + state * H,
        weight_hr_ptr + direction.to(tl.int64) * (P * H),
        index[:, None] * H,
        weight_rows(unit, P, H),
        active,
        unit_mask,
        1,
        H,
        BLOCK_K,
        PRECISION,
    )
    h = tl.load(h_in_ptr + state * P + state_offset, mask=state_mask, other=0.0)
    if HAS_RESET:
        h = tl.where(reset_rows(reset_ptr, row, batch, active)[:, None], 0.0, h)
    if SAVE:
        tl.store(previous_ptr + base * P + offset, h.to(previous_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + base * P + offset, next_h.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(h_out_ptr + state * P + state_offset, tl.where(active[:, None], next_h, h), mask=state_mask)


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
    H: constexpr,
    P: constexpr,
    PROJECTED: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """d_gates of one step. PROJECTED takes dh from d_output [R, D, P], which `step_state_gradient_kernel` made."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    t = tl.where(direction == 0, T - 1 - s, s)
    row = first_row_of(offsets_ptr, t, B, PACKED)
    base = (row + first) * directions + direction
    active = t < length
    mask = active[:, None] & unit_mask[None, :]
    state = direction.to(tl.int64) * B + first
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    state_offset = index[:, None] * H + unit[None, :]
    unit_offset = index[:, None] * (directions * H) + unit[None, :]
    gate_offset = index[:, None] * (directions * 4 * H) + unit[None, :]
    gate = gates_ptr + base * (4 * H) + gate_offset
    i = tl.load(gate, mask=mask, other=0.0).to(tl.float32)
    f = tl.load(gate + H, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gate + 2 * H, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(gate + 3 * H, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(cell_ptr + base * H + unit_offset, mask=mask, other=0.0)
    dc = tl.load(dc_in_ptr + state * H + state_offset, mask=state_mask, other=0.0)
    if PROJECTED:
        _, h = lstm_cell(i, f, g, o, c)
        unprojected = unprojected_ptr + base * H + unit_offset
        tl.store(unprojected, h.to(unprojected_ptr.dtype.element_ty), mask=mask)
        dh = step_product(
            tl.zeros((BLOCK_BATCH, BLOCK_HIDDEN), tl.float32),
            d_output_ptr + base * P,
            weight_hr_ptr + direction.to(tl.int64) * (P * H),
            index[:, None] * (directions * P),
            unit[None, :],
            active,
            unit_mask,
            H,
            P,
            BLOCK_K,
            PRECISION,
        )
    else:
        dh = state_gradient(
            dh_in_ptr,
            d_gates_ptr,
            weight_hh_ptr,
            reset_ptr,
            offsets_ptr,
            length,
            first,
            batch,
            unit,
            s,
            T,
            B,
            4 * H,
            P,
            HAS_RESET,
            PACKED,
            PRECISION,
            BLOCK_K,
        )
        tl.store(dh_out_ptr + state * H + state_offset, tl.where(active[:, None], 0.0, dh), mask=state_mask)
        dh += tl.load(d_y_ptr + base * H + unit_offset, mask=mask, other=0.0).to(tl.float32)
    di, df, dg, do, dc_before = lstm_cell_gradient(dh, dc, i, f, g, o, c)
    d_gate = d_gates_ptr + base * (4 * H) + gate_offset
    tl.store(d_gate, di.to(d_gates_ptr.dtype.element_ty), mask=mask)
    tl.store(d_gate + H, df.to(d_gates_ptr.dtype.element_ty), mask=mask)
    tl.store(d_gate + 2 * H, dg.to(d_gates_ptr.dtype.element_ty), mask=mask)
    tl.store(d_gate + 3 * H, do.to(d_gates_ptr.dtype.element_ty), mask=mask)
    if HAS_RESET:
        dc_before = tl.where(reset_rows(reset_ptr, row, batch, active)[:, None], 0.0, dc_before)
    tl.store(dc_out_ptr + state * H + state_offset, tl.where(active[:, None], dc_before, dc), mask=state_mask)


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
    H: constexpr,
    HAS_BIAS: constexpr,
    SAVE: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """One GRU step; W_hh [D, 3 H, H], b_hh [D, 3 H], of which only b_hn is added here."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    t = tl.where(direction == 0, s, T - 1 - s)
    row = first_row_of(offsets_ptr, t, B, PACKED)
    base = (row + first) * directions + direction
    active = t < length
    mask = active[:, None] & unit_mask[None, :]
    state = direction.to(tl.int64) * B + first
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    state_offset = index[:, None] * H + unit[None, :]
    h = tl.load(h_in_ptr + state * H + state_offset, mask=state_mask, other=0.0)
    rows = active
    if HAS_RESET:
        reset = reset_rows(reset_ptr, row, batch, active)
        rows = rows & (reset == 0)
        h = tl.where(reset[:, None], 0.0, h)
    gate = gates_x_ptr + base * (3 * H) + index[:, None] * (directions * 3 * H) + unit[None, :]
    weight = weight_hh_ptr + direction.to(tl.int64) * (3 * H * H)
    operand_offset = index[:, None] * H
    n = tl.load(gate + 2 * H, mask=mask, other=0.0).to(tl.float32)
    q = tl.zeros((BLOCK_BATCH, BLOCK_HIDDEN), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_hh_ptr + direction * (3 * H) + 2 * H + unit, mask=unit_mask, other=0.0)
        q += bias.to(tl.float32)[None, :]
    r = step_product(
        tl.load(gate, mask=mask, other=0.0).to(tl.float32),
        h_in_ptr + state * H,
        weight,
        operand_offset,
        weight_rows(unit, H, H),
        rows,
        unit_mask,
        1,
        H,
        BLOCK_K,
        PRECISION,
    )
    z = step_product(
        tl.load(gate + H, mask=mask, other=0.0).to(tl.float32),
        h_in_ptr + state * H,
        weight + H * H,
        operand_offset,
        weight_rows(unit, H, H),
        rows,
        unit_mask,
        1,
        H,
        BLOCK_K,
        PRECISION,
    )
    q = step_product(
        q,
        h_in_ptr + state * H,
        weight + 2 * H * H,
        operand_offset,
        weight_rows(unit, H, H),
        rows,
        unit_mask,
        1,
        H,
        BLOCK_K,
        PRECISION,
    )
    offset = index[:, None] * (directions * H) + unit[None, :]
    if SAVE:
        tl.store(previous_ptr + base * H + offset, h.to(previous_ptr.dtype.element_ty), mask=mask)
        saved = gates_ptr + base * (4 * H) + index[:, None] * (directions * 4 * H) + unit[None, :]
        tl.store(saved, r.to(gates_ptr.dtype.element_ty), mask=mask)
        tl.store(saved + H, z.to(gates_ptr.dtype.element_ty), mask=mask)
        tl.store(saved + 2 * H, n.to(gates_ptr.dtype.element_ty), mask=mask)
        tl.store(saved + 3 * H, q.to(gates_ptr.dtype.element_ty), mask=mask)
    h = tl.where(active[:, None], gru_cell(r, z, n, q, h), h)
    tl.store(y_ptr + base * H + offset, h.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(h_out_ptr + state * H + state_offset, h, mask=state_mask)


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
    d_input_ptr,
    d_hidden_ptr,
    dh_out_ptr,
    s,
    T,
    B,
    H: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """d_input = (dr, dz, dn) and d_hidden = (dr, dz, dq) of one step, rows of [R, D, 3 H] each."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    unit_mask = unit < H
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    t = tl.where(direction == 0, T - 1 - s, s)
    row = first_row_of(offsets_ptr, t, B, PACKED)
    base = (row + first) * directions + direction
    active = t < length
    mask = active[:, None] & unit_mask[None, :]
    state = direction.to(tl.int64) * B + first
    saved = gates_ptr + base * (4 * H) + index[:, None] * (directions * 4 * H) + unit[None, :]
    r = tl.load(saved, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(saved + H, mask=mask, other=0.0).to(tl.float32)
    n = tl.load(saved + 2 * H, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(saved + 3 * H, mask=mask, other=0.0).to(tl.float32)
    offset = index[:, None] * (directions * H) + unit[None, :]
    h = tl.load(previous_ptr + base * H + offset, mask=mask, other=0.0).to(tl.float32)
    d_y = tl.load(d_y_ptr + base * H + offset, mask=mask, other=0.0).to(tl.float32)
    dh = state_gradient(
        dh_in_ptr,
        d_hidden_ptr,
        weight_hh_ptr,
        reset_ptr,
        offsets_ptr,
        length,
        first,
        batch,
        unit,
        s,
        T,
        B,
        3 * H,
        H,
        HAS_RESET,
        PACKED,
        PRECISION,
        BLOCK_K,
    )
    dr, dz, dn, dq, direct = gru_cell_gradient(dh + d_y, r, z, n, q, h)
    gate_offset = index[:, None] * (directions * 3 * H) + unit[None, :]
    d_input = d_input_ptr + base * (3 * H) + gate_offset
    tl.store(d_input, dr.to(d_input_ptr.dtype.element_ty), mask=mask)
    tl.store(d_input + H, dz.to(d_input_ptr.dtype.element_ty), mask=mask)
    tl.store(d_input + 2 * H, dn.to(d_input_ptr.dtype.element_ty), mask=mask)
    d_hidden = d_hidden_ptr + base * (3 * H) + gate_offset
    tl.store(d_hidden, dr.to(d_hidden_ptr.dtype.element_ty), mask=mask)
    tl.store(d_hidden + H, dz.to(d_hidden_ptr.dtype.element_ty), mask=mask)
    tl.store(d_hidden + 2 * H, dq.to(d_hidden_ptr.dtype.element_ty), mask=mask)
    if HAS_RESET:
        direct = tl.where(reset_rows(reset_ptr, row, batch, active)[:, None], 0.0, direct)
    state_offset = index[:, None] * H + unit[None, :]
    state_mask = (batch < B)[:, None] & unit_mask[None, :]
    tl.store(dh_out_ptr + state * H + state_offset, tl.where(active[:, None], direct, dh), mask=state_mask)


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
    GATES: constexpr,
    P: constexpr,
    LAST: constexpr,
    HAS_RESET: constexpr,
    PACKED: constexpr,
    PRECISION: constexpr,
    BLOCK_BATCH: constexpr,
    BLOCK_HIDDEN: constexpr,
    BLOCK_K: constexpr,
):
    """dh after the step of launch s; LAST (s = T) makes d_h0, else dh + dY goes to d_output [R, D, P]."""
    direction = tl.program_id(2)
    directions = tl.num_programs(2)
    first = tl.program_id(1) * BLOCK_BATCH
    index = tl.arange(0, BLOCK_BATCH)
    batch = first + index
    unit = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    length, _ = lengths_of(lengths_ptr, batch, first, T, B, PACKED)
    dh = state_gradient(
        dh_in_ptr,
        d_hidden_ptr,
        weight_hh_ptr,
        reset_ptr,
        offsets_ptr,
        length,
        first,
        batch,
        unit,
        s,
        T,
        B,
        GATES,
        P,
        HAS_RESET,
        PACKED,
        PRECISION,
        BLOCK_K,
    )
    if not LAST:
        t = tl.where(direction == 0, T - 1 - s, s)
        base = (first_row_of(offsets_ptr, t, B, PACKED) + first) * directions + direction
        active = t < length
        mask = active[:, None] & (unit < P)[None, :]
        offset = base * P + index[:, None] * (directions * P) + unit[None, :]
        d_y = tl.load(d_y_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(d_output_ptr + offset, (dh + d_y).to(d_output_ptr.dtype.element_ty), mask=mask)
        dh = tl.where(active[:, None], 0.0, dh)
    state = (direction.to(tl.int64) * B + first) * P
    state_mask = (batch < B)[:, None] & (unit < P)[None, :]
    tl.store(
        dh_out_ptr + state + index[:, None] * P + unit[None, :], dh.to(dh_out_ptr.dtype.element_ty), mask=state_mask
    )


_STATES = ("h_in_ptr", "c_in_ptr", "h_out_ptr", "c_out_ptr", "dh_in_ptr", "dc_in_ptr", "dh_out_ptr", "dc_out_ptr")
_WEIGHTS = ("weight_hh_ptr", "weight_hr_ptr", "bias_hh_ptr")
_TABLES = ("offsets_ptr", "lengths_ptr")


@costs(rnn_step_forward_kernel)
@costs(rnn_step_backward_kernel)
@costs(lstm_step_forward_kernel)
@costs(lstm_step_projection_kernel)
@costs(lstm_step_backward_kernel)
@costs(gru_step_forward_kernel)
@costs(gru_step_backward_kernel)
@costs(step_state_gradient_kernel)
def recurrent_step_cost(T: int, B: int, **arguments: Any) -> Cost:
    """Two operations a weight and sequence; weight and states moved once, and one step's share of the packed rows."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    weight = tensors.get("weight_hr_ptr", tensors.get("weight_hh_ptr"))  # a projected backward reads W_hr alone
    assert weight is not None
    states = size_in_bytes(*(tensors.get(name) for name in _STATES))
    rows = size_in_bytes(*(value for name, value in tensors.items() if name not in (*_STATES, *_WEIGHTS, *_TABLES)))
    return Cost(2 * B * weight.numel(), size_in_bytes(weight) + states + rows // T)

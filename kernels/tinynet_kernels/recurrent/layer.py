"""One layer of an RNN, LSTM or GRU, one direction or both: which kernels run, forward and backward.

Forward: one product makes the input's share of every step's gates, X W_ih^T + b for both directions at once. Then one
persistent kernel walks the steps (`persistent.py`), or, where W_hh does not fit the chip, each step is one
fused kernel (`step.py`). Which of the two is `tiles.recurrent_tile`'s rule.

Backward: the mirror of it leaves d_gates of all steps. From them one product makes dX = d_input W_ih, and one launch
makes all weight and bias gradients (`weights.py`). d_input and d_hidden are the same but for the GRU, whose n
gate multiplies the hidden side by r: what its d_hidden has of its own lies apart.

Saved for backward: x, y, the gates' pre-activations, and the states each step started from. With `recompute` only y and
the LSTM's c; the pre-activations of all steps come back from one launch, since y holds every h
(`recompute.py`).

Rows are packed, R of them for T steps of at most B sequences: see `cells.py`. All tensors are contiguous
unless said otherwise. D directions, I inputs, H hidden units, P output units (H without a projection).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinynet_kernels.activation_spec import IDENTITY
from tinynet_kernels.launch import launch
from tinynet_kernels.linear import linear_forward, linear_input_gradient
from tinynet_kernels.recurrent.persistent import (
    gru_backward_kernel,
    gru_forward_kernel,
    lstm_backward_kernel,
    lstm_forward_kernel,
    rnn_backward_kernel,
    rnn_forward_kernel,
)
from tinynet_kernels.recurrent.recompute import previous_states, recomputed_gates
from tinynet_kernels.recurrent.spec import GATES, Gradients, Saved, Sequences, Wanted, Weights
from tinynet_kernels.recurrent.step import (
    gru_step_backward_kernel,
    gru_step_forward_kernel,
    lstm_step_backward_kernel,
    lstm_step_forward_kernel,
    lstm_step_projection_kernel,
    rnn_step_backward_kernel,
    rnn_step_forward_kernel,
    step_state_gradient_kernel,
)
from tinynet_kernels.recurrent.weights import WeightGradients, recurrent_weight_gradients
from tinynet_kernels.tiles import (
    RecurrentTile,
    ceil_div,
    current_target,
    every_register,
    matmul_precision,
    recurrent_step_tile,
    recurrent_tile,
)


def recurrent_forward(
    mode: str,
    x: Tensor,
    weights: Weights,
    h0: Tensor,
    c0: Tensor | None,
    sequences: Sequences,
    reset: Tensor | None,
    *,
    save: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Saved]:
    """(y [R, D P], h_n [D, B, P], c_n [D, B, H] or None, what the backward needs).

    Args:
        mode: a key of `GATES`.
        x: [R, I], any strides.
        weights: the layer's.
        h0: [D, B, P].
        c0: [D, B, H] for the LSTM, else None.
        sequences: where the rows lie.
        reset: uint8 [R], nonzero where a step starts from a zero state, or None.
        save: whether a backward will follow.
        recompute: save only the LSTM's c (y is saved anyway).
    """
    weights = _with_dense_biases(weights)
    gates_x, _ = linear_forward(x, weights.input, _folded_bias(mode, weights), IDENTITY, save=False)
    call = _Call(mode, weights, sequences, reset, x)
    directions, rows = call.directions, x.shape[0]
    y = x.new_empty((rows, directions * call.outputs))
    keep = save and not recompute
    with_gates = keep and call.gates > 1
    saved = Saved(
        x.new_empty((rows, directions, 4 * call.hidden)) if with_gates else None,
        x.new_empty((rows, directions, call.outputs)) if keep else None,
        x.new_empty((rows, directions, call.hidden), dtype=torch.float32) if save and mode == "lstm" else None,
    )
    run = _forward_steps if call.tile is None else _forward_persistent
    h_n, c_n = run(call, gates_x, h0, c0, y, saved)
    return y, h_n, c_n, saved


def _with_dense_biases(weights: Weights) -> Weights:
    """The weights with biases that kernels can walk: without gaps."""
    input_bias, hidden_bias = weights.input_bias, weights.hidden_bias
    if input_bias is None or hidden_bias is None or (input_bias.is_contiguous() and hidden_bias.is_contiguous()):
        return weights
    return weights._replace(input_bias=input_bias.contiguous(), hidden_bias=hidden_bias.contiguous())


def _folded_bias(mode: str, weights: Weights) -> Tensor | None:
    """b_ih + b_hh in fp32; the GRU's b_hn stays out, since r multiplies it."""
    if weights.input_bias is None or weights.hidden_bias is None:
        return None
    hidden_bias = weights.hidden_bias.float()
    if mode == "gru":
        outside = hidden_bias.view(weights.hidden.shape[0], 3, -1).clone()
        outside[:, 2] = 0
        hidden_bias = outside.view(-1)
    return weights.input_bias.float() + hidden_bias


class _Call:
    """The sizes, constants and tables that all launches of one layer share."""

    def __init__(self, mode: str, weights: Weights, sequences: Sequences, reset: Tensor | None, x: Tensor) -> None:
        self.mode = mode
        self.weights = weights
        self.sequences = sequences
        self.gates = GATES[mode]
        self.directions, gate_rows, self.outputs = weights.hidden.shape
        self.hidden = gate_rows // self.gates
        self.tables = (reset, sequences.offsets, sequences.lengths)
        target = current_target()
        precision = matmul_precision(x.dtype, target)
        packed = sequences.offsets is not None
        self.tile: RecurrentTile | None = recurrent_tile(
            sequences.batch, packed, self.gates, self.hidden, self.outputs, x.dtype, precision, target
        )
        # The GRU's d_hidden has dq where d_input has dn. A step kernel wants its whole rows, not dq alone.
        apart = self.hidden if self.tile is not None else self.gates * self.hidden
        self.apart = apart if mode == "gru" else 0
        self.constants: dict[str, Any] = {
            "H": self.hidden,
            "HAS_RESET": reset is not None,
            "PACKED": packed,
            "PRECISION": precision,
        }
        if mode == "lstm":
            self.constants |= {"P": self.outputs, "PROJECTED": weights.projection is not None}
        elif mode != "gru":
            self.constants |= {"RELU": mode == "rnn_relu"}

    def launch_persistent(self, kernel: Any, *tensors: Tensor | None, **constants: Any) -> None:
        tile = self.tile
        assert tile is not None
        if self.mode == "lstm":
            constants["BLOCK_OUTPUT"] = tile.block_output
        registers = every_register(tile.block_batch, self.constants["PRECISION"], current_target())
        launch(
            kernel,
            (ceil_div(self.sequences.batch, tile.block_batch), self.directions),
            *tensors,
            self.sequences.steps,
            self.sequences.batch,
            **self.constants,
            **constants,
            DEALT=tile.dealt,
            BLOCK_BATCH=tile.block_batch,
            BLOCK_HIDDEN=tile.block_hidden,
            num_warps=tile.num_warps,
            num_stages=1,
            **registers,
        )

    def launch_step(
        self, kernel: Any, step: int, units: int, reduction: int, *tensors: Tensor | None, **constants: Any
    ) -> None:
        batch = self.sequences.batch
        tile = recurrent_step_tile(batch, units, reduction, self.weights.hidden.dtype, current_target())
        launch(
            kernel,
            (ceil_div(units, tile.block_n), ceil_div(batch, tile.block_m), self.directions),
            *tensors,
            step,
            self.sequences.steps,
            batch,
            **constants,
            BLOCK_BATCH=tile.block_m,
            BLOCK_HIDDEN=tile.block_n,
            BLOCK_K=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )


def _forward_persistent(
    call: _Call, gates_x: Tensor, h0: Tensor, c0: Tensor | None, y: Tensor, saved: Saved
) -> tuple[Tensor, Tensor | None]:
    weights = call.weights
    h_n = torch.empty_like(h0)
    save = saved.previous is not None
    if call.mode == "lstm":
        assert c0 is not None
        c_n = torch.empty_like(c0)
        call.launch_persistent(
            lstm_forward_kernel,
            *(gates_x, weights.hidden, weights.projection, h0, c0, *call.tables, y, h_n, c_n, *saved),
            SAVE=save,
            SAVE_CELL=saved.cell is not None,
        )
        return h_n, c_n
    if call.mode == "gru":
        call.launch_persistent(
            gru_forward_kernel,
            *(gates_x, weights.hidden, weights.hidden_bias, h0, *call.tables, y, h_n, saved.gates, saved.previous),
            HAS_BIAS=weights.hidden_bias is not None,
            SAVE=save,
        )
    else:
        call.launch_persistent(
            rnn_forward_kernel, gates_x, weights.hidden, h0, *call.tables, y, h_n, saved.previous, SAVE=save
        )
    return h_n, None


def _forward_steps(
    call: _Call, gates_x: Tensor, h0: Tensor, c0: Tensor | None, y: Tensor, saved: Saved
) -> tuple[Tensor, Tensor | None]:
    weights, H, P = call.weights, call.hidden, call.outputs
    save = saved.previous is not None
    h = _States(h0)
    c = None if c0 is None else _States(c0)
    unprojected = None if weights.projection is None else h.before.new_empty((call.directions, call.sequences.batch, H))
    for step in range(call.sequences.steps):
        if c is not None:
            call.launch_step(
                lstm_step_forward_kernel,
                *(step, H, P, gates_x, weights.hidden, h.before, c.before, *call.tables, y),
                *(h.after if unprojected is None else unprojected, c.after, *saved),
                **call.constants,
                SAVE=save,
                SAVE_CELL=saved.cell is not None,
            )
            c.advance()
            if unprojected is not None:
                constants = {key: value for key, value in call.constants.items() if key != "PROJECTED"}
                call.launch_step(
                    lstm_step_projection_kernel,
                    *(step, P, H, unprojected, weights.projection, h.before, *call.tables, y, h.after, saved.previous),
                    **constants,
                    SAVE=save,
                )
        elif call.mode == "gru":
            call.launch_step(
                gru_step_forward_kernel,
                *(step, H, H, gates_x, weights.hidden, weights.hidden_bias, h.before, *call.tables),
                *(y, h.after, saved.gates, saved.previous),
                **call.constants,
                HAS_BIAS=weights.hidden_bias is not None,
                SAVE=save,
            )
        else:
            call.launch_step(
                rnn_step_forward_kernel,
                *(step, H, H, gates_x, weights.hidden, h.before, *call.tables, y, h.after, saved.previous),
                **call.constants,
                SAVE=save,
            )
        h.advance()
    return h.before.to(h0.dtype), None if c is None or c0 is None else c.before.to(c0.dtype)


class _States:
    """Two fp32 buffers between launches, one to read and one to write; the first to read is the given state."""

    def __init__(self, initial: Tensor) -> None:
        self.before = initial.float()
        self._buffers = torch.empty_like(self.before), torch.empty_like(self.before)
        self.after = self._buffers[0]

    def advance(self) -> None:
        self.before = self.after
        self.after = self._buffers[1] if self.before is self._buffers[0] else self._buffers[0]


def recurrent_backward(
    mode: str,
    d_y: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    x: Tensor,
    weights: Weights,
    y: Tensor | None,
    h0: Tensor,
    saved: Saved,
    sequences: Sequences,
    reset: Tensor | None,
    wanted: Wanted,
) -> Gradients:
    """The gradients that are wanted, the others None.

    Args:
        mode: a key of `GATES`.
        d_y: [R, D P].
        d_h_n: [D, B, P].
        d_c_n: [D, B, H] for the LSTM, else None.
        x: as given to the forward.
        weights: as given to the forward.
        y: the forward's; None where neither an RNN's derivative nor states to be recomputed read it.
        h0: as given to the forward.
        saved: the forward's.
        sequences: as given to the forward.
        reset: as given to the forward.
        wanted: which of `Gradients` to make.
    """
    weights = _with_dense_biases(weights)
    call = _Call(mode, weights, sequences, reset, x)
    rows, D, H, P = x.shape[0], call.directions, call.hidden, call.outputs
    if saved.previous is None:
        assert y is not None
        previous = previous_states(y.view(rows, D, P), h0, sequences, reset)
        gates = recomputed_gates(mode, x, previous, weights) if call.gates > 1 else None
        saved = Saved(gates, previous, saved.cell)
    made = _Made(
        x.new_empty((rows, D * call.gates * H)),
        x.new_empty((rows, D * call.apart)) if call.apart else None,
        None if weights.projection is None else x.new_empty((rows, D, P)),
        None if weights.projection is None else x.new_empty((rows, D, H)),
    )
    run = _backward_steps if call.tile is None else _backward_persistent
    d_h0, d_c0 = run(call, d_y, d_h_n, d_c_n, y, saved, made, wanted.h0)
    want_bias = wanted.input_bias or wanted.hidden_bias
    parameters = WeightGradients(None, None, None, None, None)
    if wanted.input or wanted.hidden or wanted.projection or want_bias:
        assert saved.previous is not None
        parameters = recurrent_weight_gradients(
            made.gates,
            made.apart,
            x,
            saved.previous,
            made.output,
            made.unprojected,
            want_input=wanted.input,
            want_hidden=wanted.hidden,
            want_projection=wanted.projection,
            want_bias=want_bias,
        )
    return Gradients(
        linear_input_gradient(made.gates, weights.input) if wanted.x else None,
        parameters.input,
        parameters.hidden,
        parameters.input_bias if wanted.input_bias else None,
        parameters.hidden_bias if wanted.hidden_bias else None,
        parameters.projection,
        d_h0 if wanted.h0 else None,
        d_c0 if wanted.c0 else None,
    )


class _Made(NamedTuple):
    """What the backward's recurrence leaves for the products after it.

    Attributes:
        gates: d_input [R, D gates H], which is d_hidden too but for the GRU's.
        apart: the GRU's dq [R, D H], or from step kernels all of its d_hidden; None else.
        output: gradient of the projected h [R, D, P], or None.
        unprojected: h before the projection [R, D, H], or None.
    """

    gates: Tensor
    apart: Tensor | None
    output: Tensor | None
    unprojected: Tensor | None


def _backward_persistent(
    call: _Call,
    d_y: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    y: Tensor | None,
    saved: Saved,
    made: _Made,
    _: bool,
) -> tuple[Tensor, Tensor | None]:
    weights = call.weights
    d_h0 = torch.empty_like(d_h_n)
    if call.mode == "lstm":
        assert d_c_n is not None
        d_c0 = torch.empty_like(d_c_n)
        call.launch_persistent(
            lstm_backward_kernel,
            *(d_y, saved.gates, saved.cell, weights.hidden, weights.projection, d_h_n, d_c_n, *call.tables),
            *(made.gates, made.output, made.unprojected, d_h0, d_c0),
        )
        return d_h0, d_c0
    if call.mode == "gru":
        call.launch_persistent(
            gru_backward_kernel,
            *(d_y, saved.gates, saved.previous, weights.hidden, d_h_n, *call.tables),
            *(made.gates, made.apart, d_h0),
        )
    else:
        call.launch_persistent(rnn_backward_kernel, d_y, y, weights.hidden, d_h_n, *call.tables, made.gates, d_h0)
    return d_h0, None


def _backward_steps(
    call: _Call,
    d_y: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    y: Tensor | None,
    saved: Saved,
    made: _Made,
    want_h0: bool,
) -> tuple[Tensor | None, Tensor | None]:
    weights, H, P = call.weights, call.hidden, call.outputs
    steps, reduction = call.sequences.steps, call.gates * call.hidden
    constants = {key: call.constants[key] for key in ("HAS_RESET", "PACKED", "PRECISION")}
    d_hidden = made.gates if made.apart is None else made.apart
    dh = _States(d_h_n)
    dc = None if d_c_n is None else _States(d_c_n)

    def state_gradient(step: int, last: bool, out: Tensor) -> None:
        call.launch_step(
            step_state_gradient_kernel,
            *(step, P, reduction, d_hidden, weights.hidden, dh.before, None if last else d_y, *call.tables),
            *(None if last else made.output, out),
            **constants,
            GATES=reduction,
            P=P,
            LAST=last,
        )

    for step in range(steps):
        if dc is not None:
            if weights.projection is not None:
                state_gradient(step, False, dh.after)
            call.launch_step(
                lstm_step_backward_kernel,
                *(step, H, reduction if weights.projection is None else P),
                *(d_y, saved.gates, saved.cell, weights.hidden, weights.projection, dh.before, dc.before, *call.tables),
                *(d_hidden, made.output, made.unprojected, dh.after, dc.after),
                **call.constants,
            )
            dc.advance()
        elif call.mode == "gru":
            call.launch_step(
                gru_step_backward_kernel,
                *(step, H, reduction, d_y, saved.gates, saved.previous, weights.hidden, dh.before, *call.tables),
                *(made.gates, d_hidden, dh.after),
                **call.constants,
            )
        else:
            call.launch_step(
                rnn_step_backward_kernel,
                *(step, H, reduction, d_y, y, weights.hidden, dh.before, *call.tables, d_hidden, dh.after),
                **call.constants,
            )
        dh.advance()
    d_h0 = None
    if want_h0:
        d_h0 = torch.empty_like(d_h_n)
        state_gradient(steps, True, d_h0)
    return d_h0, None if dc is None or d_c_n is None else dc.before.to(d_c_n.dtype)

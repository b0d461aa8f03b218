"""One layer of an RNN, LSTM or GRU, one direction or both: which kernels run, forward and backward.

Forward: one product computes the input's share of every step's gates, X W_ih^T + b for both directions at once. Then
one persistent kernel walks the steps (`persistent.py`), or, where W_hh does not fit the chip, each step is one fused
kernel (`step.py`). Which of the two is the rule `tiles.recurrent_tile`.

Backward: the mirror of it leaves d_gates of all steps. From them one product computes dX = d_input W_ih, and one launch
all weight and bias gradients (`weights.py`). d_input and d_hidden are the same but for the GRU, whose n gate multiplies
the hidden side by r: what differs in its d_hidden has a buffer of its own.

Saved for backward: x, y, the gates' pre-activations, and the states each step started from. With `recompute` only y and
the LSTM's c; the pre-activations of all steps come back from one launch, since y holds every h (`recompute.py`).

Rows are packed, R of them for T steps of at most B sequences: see `place.py`. All tensors are contiguous unless said
otherwise. D directions, I inputs, H hidden units, P output units (H without a projection).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from tinynet_kernels import replays
from tinynet_kernels.activation_spec import IDENTITY
from tinynet_kernels.launch import Grid, Problem
from tinynet_kernels.linear import linear_forward, linear_input_gradient
from tinynet_kernels.recurrent import persistent, step
from tinynet_kernels.recurrent.recompute import previous_states, recomputed_gates
from tinynet_kernels.recurrent.spec import (
    GATES,
    BackwardBuffers,
    CellSpec,
    Gradients,
    Saved,
    Sequences,
    Wanted,
    Weights,
)
from tinynet_kernels.recurrent.tiles import recurrent_step_tile, recurrent_tile
from tinynet_kernels.recurrent.weights import recurrent_weight_gradients
from tinynet_kernels.tiles import ceil_div, current_target, every_register, matmul_precision

# Tensors by the kernels' names for them: each kernel is given those that it names.
Named = Mapping[str, Tensor | None]

# By the number of gates: RNN, GRU, LSTM.
_FORWARD = {1: persistent.rnn_forward_kernel, 3: persistent.gru_forward_kernel, 4: persistent.lstm_forward_kernel}
_BACKWARD = {1: persistent.rnn_backward_kernel, 3: persistent.gru_backward_kernel, 4: persistent.lstm_backward_kernel}
_STEP_FORWARD = {1: step.rnn_step_forward_kernel, 3: step.gru_step_forward_kernel, 4: step.lstm_step_forward_kernel}
_STEP_BACKWARD = {1: step.rnn_step_backward_kernel, 3: step.gru_step_backward_kernel, 4: step.lstm_step_backward_kernel}


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
    rows, D, H, P = x.shape[0], call.directions, call.spec.hidden, call.spec.outputs
    y = x.new_empty((rows, D * P))
    save_all = save and not recompute
    saved = Saved(
        x.new_empty((rows, D, 4 * H)) if save_all and call.spec.gates > 1 else None,
        x.new_empty((rows, D, P)) if save_all else None,
        x.new_empty((rows, D, H), dtype=torch.float32) if save and mode == "lstm" else None,
    )
    tensors = {
        **call.tensors,
        "gates_x_ptr": gates_x,
        "y_ptr": y,
        "gates_ptr": saved.gates,
        "previous_ptr": saved.previous,
        "cell_ptr": saved.cell,
    }
    if call.tile is not None:
        names = ("h0_ptr", "c0_ptr", "h_n_ptr", "c_n_ptr")
        h_n, c_n = _run_persistent(call, _FORWARD[call.spec.gates], tensors, h0, c0, names)
    else:
        h_n, c_n = _forward_steps(call, tensors, h0, c0)
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
    folded = torch.empty_like(weights.input_bias, dtype=torch.float32)
    fold = partial(_fold, directions=weights.hidden.shape[0] if mode == "gru" else None)
    return replays.fill(folded, fold, weights.input_bias, weights.hidden_bias)


def _fold(folded: Tensor, input_bias: Tensor, hidden_bias: Tensor, *, directions: int | None) -> None:
    """Writes the sum of the biases; of the last third in each of a GRU's `directions`, b_ih alone."""
    torch.add(input_bias.float(), hidden_bias, out=folded)
    if directions is not None:
        folded.view(directions, 3, -1)[:, 2] = input_bias.view(directions, 3, -1)[:, 2]


class _Call:
    """What all launches of one layer share: sizes, tile and tensors."""

    def __init__(self, mode: str, weights: Weights, sequences: Sequences, reset: Tensor | None, x: Tensor) -> None:
        self.directions, gate_rows, outputs = weights.hidden.shape
        self.steps, self.batch = sequences.steps, sequences.batch
        self.dtype, self.target = x.dtype, current_target()
        self.projected = weights.projection is not None
        precision, packed = matmul_precision(x.dtype, self.target), sequences.offsets is not None
        gates, hidden = GATES[mode], gate_rows // GATES[mode]
        self.spec = CellSpec(gates, hidden, outputs, mode == "rnn_relu", precision)
        self.tile = recurrent_tile(self.batch, packed, gates, hidden, outputs, x.dtype, precision, self.target)
        self.tensors: Named = {
            "weight_hh_ptr": weights.hidden,
            "weight_hr_ptr": weights.projection,
            "bias_hh_ptr": weights.hidden_bias,
            "reset_ptr": reset,
            "offsets_ptr": sequences.offsets,
            "lengths_ptr": sequences.lengths,
        }

    def persistent_problem(self, kernel: Any) -> Problem:
        """A kernel that walks all steps."""
        tile = self.tile
        assert tile is not None
        grid = ceil_div(self.batch, tile.block_batch), self.directions
        registers = every_register(tile.block_batch, self.spec.precision, self.target)
        return _problem(kernel, grid, self.steps, self.batch, self.spec, tile, num_stages=1, **registers)

    def step_problem(self, kernel: Any, units: int, reduction: int) -> Problem:
        """A kernel of one step that computes `units` units by products of length `reduction`."""
        tile = recurrent_step_tile(self.batch, units, reduction, self.dtype, self.target)
        grid = ceil_div(self.batch, tile.block_m), self.directions, ceil_div(units, tile.block_n)
        return _problem(kernel, grid, self.steps, self.batch, self.spec, tile, num_stages=tile.num_stages)


@lru_cache(maxsize=4096)
def _problem(kernel: Any, grid: Grid, steps: int, batch: int, spec: CellSpec, tile: Any, **options: int) -> Problem:
    return Problem(kernel, grid, steps, batch, SPEC=spec, TILE=tile, num_warps=tile.num_warps, **options)


def _launch(problem: Problem, arguments: Mapping[str, Any]) -> None:
    """Launches with those of the arguments that the kernel names, in its order, before its sizes T and B."""
    names = problem.kernel.arg_names
    problem.launch(*[arguments[name] for name in names[: names.index("T")]])


def _run_persistent(
    call: _Call, kernel: Any, tensors: Named, h: Tensor, c: Tensor | None, names: tuple[str, str, str, str]
) -> tuple[Tensor, Tensor | None]:
    """All steps in one launch: (h, c) at their end; `names` are the kernel's for h, c at the start and at the end."""
    end = torch.empty_like(h), None if c is None else torch.empty_like(c)
    _launch(call.persistent_problem(kernel), {**tensors, **dict(zip(names, (h, c, *end), strict=True))})
    return end


def _forward_steps(call: _Call, tensors: Named, h0: Tensor, c0: Tensor | None) -> tuple[Tensor, Tensor | None]:
    H, P = call.spec.hidden, call.spec.outputs
    cell = call.step_problem(_STEP_FORWARD[call.spec.gates], H, P)
    projection = call.step_problem(step.lstm_step_projection_kernel, P, H) if call.projected else None
    h, c = _States(h0), None if c0 is None else _States(c0)
    unprojected = h.before.new_empty((call.directions, call.batch, H)) if call.projected else None
    arguments: dict[str, Any] = {**tensors, "unprojected_h_ptr": unprojected}
    for s in range(call.steps):
        arguments["s"] = s
        arguments["h_in_ptr"], arguments["h_out_ptr"] = h.before, h.after
        if c is not None:
            arguments["c_in_ptr"], arguments["c_out_ptr"] = c.before, c.after
            c.advance()
        _launch(cell, arguments)
        if projection is not None:
            _launch(projection, arguments)
        h.advance()
    return h.before.to(h0.dtype), None if c is None or c0 is None else c.before.to(c0.dtype)


class _States:
    """Two fp32 buffers between launches, one to read and one to write; the first to read is the given state."""

    def __init__(self, initial: Tensor) -> None:
        self.before = initial.float()
        self._buffers = torch.empty_like(self.before), torch.empty_like(self.before)
        self.after = self._buffers[0]

    def advance(self) -> None:
        first, second = self._buffers
        self.before, self.after = self.after, second if self.after is first else first


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
        y: the forward's; None where neither an RNN's derivative nor states to be recomputed need it.
        h0: as given to the forward.
        saved: the forward's.
        sequences: as given to the forward.
        reset: as given to the forward.
        wanted: which of `Gradients` to compute.
    """
    weights = _with_dense_biases(weights)
    call = _Call(mode, weights, sequences, reset, x)
    rows, D, (gates, H, P, *_) = x.shape[0], call.directions, call.spec
    if saved.previous is None:
        assert y is not None
        previous = previous_states(y.view(rows, D, P), h0, sequences, reset)
        gates_before = recomputed_gates(mode, x, previous, weights) if gates > 1 else None
        saved = Saved(gates_before, previous, saved.cell)
    assert saved.previous is not None
    # The GRU's d_hidden has dq where d_input has dn. A step kernel reads its whole rows, not dq alone.
    hidden_gates = (H if call.tile is not None else gates * H) if mode == "gru" else 0
    buffers = BackwardBuffers(
        x.new_empty((rows, D * gates * H)),
        x.new_empty((rows, D * hidden_gates)) if hidden_gates else None,
        x.new_empty((rows, D, P)) if call.projected else None,
        x.new_empty((rows, D, H)) if call.projected else None,
    )
    tensors = {
        **call.tensors,
        "d_y_ptr": d_y,
        "y_ptr": y,
        "gates_ptr": saved.gates,
        "previous_ptr": saved.previous,
        "cell_ptr": saved.cell,
        "d_gates_ptr": buffers.gates,
        "d_hidden_ptr": buffers.gates if buffers.hidden_gates is None else buffers.hidden_gates,
        "d_output_ptr": buffers.output,
        "unprojected_ptr": buffers.unprojected,
    }
    if call.tile is not None:
        names = ("d_h_n_ptr", "d_c_n_ptr", "d_h0_ptr", "d_c0_ptr")
        d_h0, d_c0 = _run_persistent(call, _BACKWARD[gates], tensors, d_h_n, d_c_n, names)
    else:
        d_h0, d_c0 = _backward_steps(call, tensors, d_h_n, d_c_n, wanted.h0)
    d_input, d_hidden, d_projection, *d_biases = recurrent_weight_gradients(buffers, x, saved.previous, wanted)
    return Gradients(
        linear_input_gradient(buffers.gates, weights.input) if wanted.x else None,
        d_input,
        d_hidden,
        d_biases[0] if wanted.input_bias else None,
        d_biases[1] if wanted.hidden_bias else None,
        d_projection,
        d_h0 if wanted.h0 else None,
        d_c0 if wanted.c0 else None,
    )


def _backward_steps(
    call: _Call, tensors: Named, d_h_n: Tensor, d_c_n: Tensor | None, want_h0: bool
) -> tuple[Tensor | None, Tensor | None]:
    gates, H, P, *_ = call.spec
    cell = call.step_problem(_STEP_BACKWARD[call.spec.gates], H, P if call.projected else gates * H)
    state_gradient = call.step_problem(step.step_state_gradient_kernel, P, gates * H)
    dh, dc = _States(d_h_n), None if d_c_n is None else _States(d_c_n)
    arguments: dict[str, Any] = dict(tensors)
    for s in range(call.steps):
        arguments["s"] = s
        arguments["dh_in_ptr"], arguments["dh_out_ptr"] = dh.before, dh.after
        if dc is not None:
            arguments["dc_in_ptr"], arguments["dc_out_ptr"] = dc.before, dc.after
            dc.advance()
        if call.projected:
            _launch(state_gradient, arguments)
        _launch(cell, arguments)
        dh.advance()
    d_h0 = None
    if want_h0:
        d_h0 = torch.empty_like(d_h_n)
        last = {"s": call.steps, "dh_in_ptr": dh.before, "dh_out_ptr": d_h0}
        _launch(state_gradient, {**arguments, **last, "d_y_ptr": None, "d_output_ptr": None})
    return d_h0, None if dc is None or d_c_n is None else dc.before.to(d_c_n.dtype)

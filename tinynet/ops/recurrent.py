"""RNN, LSTM and GRU: whole sequences, layers and directions, dense or packed, and single cells."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.engines.dispatch import Route, route
from tinynet.ops.arguments import autocast, autocast_dtype, check_device, check_floating, needs_gradient
from tinynet.ops.autograd import once_differentiable
from tinynet_kernels.recurrent_spec import GATES, Gradients, Saved, Sequences, Wanted, Weights, packed_sequences


def recurrent_reference(
    mode: str,
    x: Tensor,
    weights: Weights,
    h0: Tensor,
    c0: Tensor | None,
    sequences: Sequences,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in plain PyTorch, a step at a time: y [R, D P], h_n [D, B, P], c_n [D, B, H] of packed rows x [R, I].

    Step t holds the first n_t sequences, in n_t rows; `reset` [R] zeroes the state before a row's step.
    """
    sizes = [sequences.batch] * sequences.steps if sequences.batch_sizes is None else sequences.batch_sizes.tolist()
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    directions, gate_rows, _ = weights.hidden.shape
    from_input = F.linear(x, weights.input, weights.input_bias).split(gate_rows, 1)
    biases = [None] * directions if weights.hidden_bias is None else weights.hidden_bias.chunk(directions)
    outputs, last_h, last_c = [], [], []
    for d in range(directions):
        h = h0[d]
        c = h0[d] if c0 is None else c0[d]
        steps: dict[int, Tensor] = {}
        for t in range(len(sizes)) if d == 0 else reversed(range(len(sizes))):
            rows = slice(starts[t], starts[t] + sizes[t])
            before = (h[: sizes[t]], c[: sizes[t]])
            if reset is not None:
                before = tuple(state.masked_fill(reset[rows, None] != 0, 0) for state in before)
            from_hidden = F.linear(before[0], weights.hidden[d], biases[d])
            new_h, new_c = _cell_reference(mode, from_input[d][rows], from_hidden, *before)
            if weights.projection is not None:
                new_h = F.linear(new_h, weights.projection[d])
            steps[t] = new_h
            h, c = torch.cat((new_h, h[sizes[t] :])), torch.cat((new_c, c[sizes[t] :]))
        outputs.append(torch.cat([steps[t] for t in range(len(sizes))]))
        last_h.append(h)
        last_c.append(c)
    return torch.cat(outputs, 1), torch.stack(last_h), None if c0 is None else torch.stack(last_c)


def _cell_reference(mode: str, from_input: Tensor, from_hidden: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(h, c) after a step, from the input's and the hidden state's shares of the gates."""
    if mode == "gru":
        r, z, n = from_input.chunk(3, 1)
        hidden_r, hidden_z, q = from_hidden.chunk(3, 1)
        z = torch.sigmoid(z + hidden_z)
        n = torch.tanh(n + torch.sigmoid(r + hidden_r) * q)
        h = n + z * (h - n)
        return h, h
    a = from_input + from_hidden
    if mode == "lstm":
        i, f, g, o = a.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    h = torch.tanh(a) if mode == "rnn_tanh" else torch.relu(a)
    return h, h


class RecurrentFunction(torch.autograd.Function):
    """One layer through the kernels; tensors as `tinynet_kernels.recurrent` lays them out."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None,
        h0: Tensor,
        c0: Tensor | None,
        mode: str,
        sequences: Sequences,
        reset: Tensor | None,
        recompute: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        from tinynet_kernels.recurrent import recurrent_forward

        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        y, h_n, c_n, saved = recurrent_forward(
            mode, x, weights, h0, c0, sequences, reset, save=True, recompute=recompute
        )
        ctx.save_for_backward(x, *weights, y, h0, *saved, reset)
        ctx.mode, ctx.sequences = mode, sequences
        return y, h_n, c_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor, d_h_n: Tensor, d_c_n: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = _gradients(ctx.mode, d_y, d_h_n, d_c_n, ctx.saved_tensors, ctx.sequences, ctx.needs_input_grad[:8])
        return (*gradients, None, None, None, None)


def _gradients(
    mode: str,
    d_y: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    kept: Sequence[Tensor | None],
    sequences: Sequences,
    wanted: Sequence[bool],
) -> Gradients:
    """The layer's gradients. `kept`: x, the five weights, y, h0, what `recurrent_forward` saved, and reset."""
    from tinynet_kernels.recurrent import recurrent_backward

    x, y, h0 = kept[0], kept[6], kept[7]
    assert x is not None and y is not None and h0 is not None and kept[1] is not None and kept[2] is not None
    weights = Weights(kept[1], kept[2], *kept[3:6])
    saved, reset = Saved(*kept[8:11]), kept[11]
    d_y, d_h_n = d_y.contiguous(), d_h_n.contiguous()
    d_c_n = d_c_n.contiguous() if mode == "lstm" and d_c_n is not None else None
    return recurrent_backward(mode, d_y, d_h_n, d_c_n, x, weights, y, h0, saved, sequences, reset, Wanted(*wanted))


def _sequences(x: Tensor, h0: Tensor, batch_sizes: Tensor | None) -> Sequences:
    """Where the rows of x [R, I] lie; h0 [D, B, P] tells B."""
    if batch_sizes is None:
        return Sequences(x.shape[0] // h0.shape[1], h0.shape[1])
    return packed_sequences(batch_sizes, x.device)


@torch.library.custom_op("tinynet::recurrent", mutates_args=())
def recurrent_operator(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    reset: Tensor | None,
    batch_sizes: Tensor | None,
    mode: str,
    save: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One layer for captured graphs: y, h_n, c_n, gates, previous, cell; those that don't exist are empty."""
    from tinynet_kernels.recurrent import recurrent_forward

    weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    sequences = _sequences(x, h0, batch_sizes)
    y, h_n, c_n, saved = recurrent_forward(mode, x, weights, h0, c0, sequences, reset, save=save, recompute=recompute)
    c_n, gates, previous, cell = (x.new_empty(0) if tensor is None else tensor for tensor in (c_n, *saved))
    return y, h_n, c_n, gates, previous, cell


@recurrent_operator.register_fake
def _(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    reset: Tensor | None,
    batch_sizes: Tensor | None,
    mode: str,
    save: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    directions, gate_rows, outputs = weight_hh.shape
    hidden = gate_rows // GATES[mode]
    keep = save and not recompute
    return (
        x.new_empty((rows, directions * outputs)),
        torch.empty_like(h0),
        x.new_empty(0) if c0 is None else torch.empty_like(c0),
        x.new_empty((rows, directions, 4 * hidden) if keep and GATES[mode] > 1 else 0),
        x.new_empty((rows, directions, outputs) if keep else 0),
        x.new_empty((rows, directions, hidden), dtype=torch.float32) if save and mode == "lstm" else x.new_empty(0),
    )


@torch.library.custom_op("tinynet::recurrent_backward", mutates_args=())
def recurrent_backward_operator(
    d_y: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor,
    kept: list[Tensor],
    batch_sizes: Tensor | None,
    mode: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Its gradients; those not wanted come back empty. `kept` is what `_gradients` takes, absent ones empty."""
    present = [tensor if tensor.numel() else None for tensor in kept]
    assert present[0] is not None and present[7] is not None
    sequences = _sequences(present[0], present[7], batch_sizes)
    gradients = _gradients(mode, d_y, d_h_n, d_c_n, present, sequences, wanted)
    # The weights' gradients are parts of one buffer; an operator's results must not be.
    x, w, v, b, bias, p, h0, c0 = (d_y.new_empty(0) if made is None else made.clone() for made in gradients)
    return x, w, v, b, bias, p, h0, c0


@recurrent_backward_operator.register_fake
def _(
    d_y: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor,
    kept: list[Tensor],
    batch_sizes: Tensor | None,
    mode: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = [*(tensor.shape for tensor in kept[:6]), d_h_n.shape, d_c_n.shape]
    x, w, v, b, bias, p, h0, c0 = (
        d_y.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True)
    )
    return x, w, v, b, bias, p, h0, c0


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, reset, batch_sizes, ctx.mode, _, _ = inputs
    y, _, c_n, gates, previous, cell = output
    ctx.save_for_backward(*tensors[:6], y, tensors[6], gates, previous, cell, reset, batch_sizes)
    absent = () if ctx.mode == "lstm" else (c_n,)
    ctx.mark_non_differentiable(*absent, gates, previous, cell)


def _backward(ctx: Any, d_y: Tensor, d_h_n: Tensor, d_c_n: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *saved, batch_sizes = ctx.saved_tensors
    kept = [d_y.new_empty(0) if tensor is None else tensor for tensor in saved]
    wanted = list(ctx.needs_input_grad[:8])
    d_c_n = d_y.new_empty(0) if d_c_n is None else d_c_n
    gradients = recurrent_backward_operator(d_y, d_h_n, d_c_n, kept, batch_sizes, ctx.mode, wanted)
    shown = (gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
    return (*shown, None, None, None, None, None)


recurrent_operator.register_autograd(_backward, setup_context=_setup_context)


def recurrent_layer(
    mode: str,
    x: Tensor,
    weights: Weights,
    h0: Tensor,
    c0: Tensor | None,
    sequences: Sequences,
    reset: Tensor | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer, both directions: (y [R, D P], h_n [D, B, P], c_n [D, B, H] or None) of packed rows.

    Args:
        mode: "rnn_tanh", "rnn_relu", "lstm" or "gru".
        x: [R, I], rows in time order.
        weights: the layer's, directions stacked.
        h0: [D, B, P].
        c0: [D, B, H] for the LSTM, else None.
        sequences: where the rows of each step lie.
        reset: uint8 [R], nonzero where the state before the row's step is zeroed, or None.
        recompute: save only y and c for backward.
    """
    way = route(x)
    if way is Route.REFERENCE:
        return recurrent_reference(mode, x, weights, h0, c0, sequences, reset)
    weights = weights._replace(
        hidden=weights.hidden.contiguous(),
        projection=None if weights.projection is None else weights.projection.contiguous(),
    )
    h0, c0 = h0.contiguous(), None if c0 is None else c0.contiguous()
    needs_grad = needs_gradient(x, *weights, h0, c0)
    if way is Route.OPERATOR:
        y, h_n, c_n, *_ = recurrent_operator(
            x, *weights, h0, c0, reset, sequences.batch_sizes, mode, needs_grad, recompute
        )
        return y, h_n, c_n if mode == "lstm" else None
    if needs_grad:
        result: Any = RecurrentFunction.apply(x, *weights, h0, c0, mode, sequences, reset, recompute)
        return result
    from tinynet_kernels.recurrent import recurrent_forward

    y, h_n, c_n, _ = recurrent_forward(mode, x, weights, h0, c0, sequences, reset, save=False, recompute=False)
    return y, h_n, c_n


def recurrent(
    mode: str,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Sequence[Sequence[Tensor]],
    *,
    bias: bool = True,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """An RNN, LSTM or GRU of L layers and D directions.

    Args:
        mode: "rnn_tanh", "rnn_relu", "lstm" or "gru".
        input: [T, B, I], float32, bfloat16, float16 (kernels) or float64 (reference); or with `batch_sizes` the data
            [R, I] of a `PackedSequence`.
        h0: [L D, B, P], or None for zeros; P is hidden_size or the LSTM's proj_size.
        c0: [L D, B, H], LSTM only, or None for zeros.
        parameters: for each layer and direction W_ih, W_hh, then with `bias` b_ih, b_hh, then a projection's W_hr.
        bias: whether they hold biases.
        bidirectional: whether each layer has a second, reversed direction.
        dropout: probability on every layer's output but the last, in training (PyTorch's generator).
        training: whether dropout acts.
        batch_sizes: a `PackedSequence`'s, int64 [T] on the CPU.
        reset: bool [T, B], or [R] for packed data: true zeroes h and c before that step. None for none.
        recompute: keep only y and c for backward; the gates are made again there.

    Returns:
        y [T, B, D P] or [R, D P], h_n [L D, B, P] and, for the LSTM, c_n [L D, B, H]; None else.

    Raises:
        ValueError: shapes or devices that don't fit together, or an unknown mode.
        TypeError: dtypes that are not floating point or differ outside autocast.

    Source: torch.rnn_tanh, rnn_relu, lstm and gru; Cho et al. 2014, Hochreiter and Schmidhuber 1997, Sak et al. 2014.
    """
    if mode not in GATES:
        raise ValueError(f"recurrent: mode must be one of {', '.join(GATES)}, got {mode!r}")
    x, h, c = autocast(input, h0, c0)
    parameters = [autocast(*group) for group in parameters]
    _check_arguments(mode, x, h, c, parameters, batch_sizes, reset)
    directions = 2 if bidirectional else 1
    batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    outputs, hidden = parameters[0][1].shape[1], parameters[0][1].shape[0] // GATES[mode]
    h = x.new_zeros((len(parameters), batch, outputs)) if h is None else h
    c = x.new_zeros((len(parameters), batch, hidden)) if c is None and mode == "lstm" else c
    _check_states(mode, (len(parameters), batch), h0=(h, outputs), c0=(c, hidden))
    way = Route.REFERENCE if x.numel() == 0 else route(x)
    if way is Route.REFERENCE and reset is None:
        return _library(mode, x, h, c, parameters, bias, bidirectional, dropout, training, batch_sizes)
    if batch_sizes is None:
        sequences = Sequences(x.shape[0], batch)
        rows = x.reshape(-1, x.shape[2])
    else:
        sequences = packed_sequences(batch_sizes, x.device)
        rows = x
    reset_rows = None if reset is None else reset.reshape(-1).to(torch.uint8)
    last_h, last_c = [], []
    for first in range(0, len(parameters), directions):
        layer = slice(first, first + directions)
        if first and dropout and training:
            rows = F.dropout(rows, dropout)
        rows, h_n, c_n = recurrent_layer(
            mode,
            rows,
            _layer_weights(parameters[layer], bias),
            h[layer],
            None if c is None else c[layer],
            sequences,
            reset_rows,
            recompute=recompute,
        )
        last_h.append(h_n)
        last_c.append(c_n)
    y = rows if batch_sizes is not None else rows.view(x.shape[0], batch, -1)
    return y, _joined(last_h), _joined(last_c) if mode == "lstm" else None


def _joined(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)


def _layer_weights(groups: Sequence[Sequence[Tensor]], bias: bool) -> Weights:
    """A layer's parameters with its directions stacked; views where there is one."""

    def joined(position: int) -> Tensor:
        return _joined([group[position] for group in groups])

    def stacked(position: int) -> Tensor:
        return groups[0][position].unsqueeze(0) if len(groups) == 1 else torch.stack([g[position] for g in groups])

    projected = len(groups[0]) % 2 == 1
    return Weights(
        joined(0),
        stacked(1),
        joined(2) if bias else None,
        joined(3) if bias else None,
        stacked(-1) if projected else None,
    )


def _library(
    mode: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    parameters: Sequence[Sequence[Tensor]],
    bias: bool,
    bidirectional: bool,
    dropout: float,
    training: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same through PyTorch's own operator."""
    function = {"rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu, "lstm": torch.lstm, "gru": torch.gru}[mode]
    flat = [parameter for group in parameters for parameter in group]
    layers = len(parameters) // (2 if bidirectional else 1)
    states: Any = h0 if c0 is None else (h0, c0)
    with nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False):
        if batch_sizes is None:
            result = function(x, states, flat, bias, layers, dropout, training, bidirectional, False)
        else:
            result = function(x, batch_sizes, states, flat, bias, layers, dropout, training, bidirectional)
    return result if mode == "lstm" else (*result, None)


def recurrent_cell(
    mode: str,
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One step of one cell: (h [B, H], c [B, H] for the LSTM, else None).

    Args:
        mode: "rnn_tanh", "rnn_relu", "lstm" or "gru".
        input: [B, I].
        h: [B, H].
        c: [B, H] for the LSTM, else None.
        weight_ih: [gates H, I].
        weight_hh: [gates H, H].
        bias_ih: [gates H] or None.
        bias_hh: [gates H] or None.

    Raises:
        ValueError, TypeError: see `recurrent`.

    Source: torch.rnn_tanh_cell, rnn_relu_cell, lstm_cell and gru_cell.
    """
    parameters = (
        [weight_ih, weight_hh] if bias_ih is None or bias_hh is None else [weight_ih, weight_hh, bias_ih, bias_hh]
    )
    states = h.unsqueeze(0), None if c is None else c.unsqueeze(0)
    y, _, c_n = recurrent(mode, input.unsqueeze(0), *states, [parameters], bias=bias_ih is not None)
    return y[0], None if c_n is None else c_n[0]


def _check_arguments(
    mode: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None,
    reset: Tensor | None,
) -> None:
    named = {f"parameters[{i}][{j}]": p for i, group in enumerate(parameters) for j, p in enumerate(group)}
    check_floating(mode, input=x, h0=h0, c0=c0, **named)
    dimensions = 3 if batch_sizes is None else 2
    if x.dim() != dimensions:
        raise ValueError(f"{mode}: input must have {dimensions} dimensions, got shape {tuple(x.shape)}")
    expected = parameters[0][0].shape[1]
    if x.shape[-1] != expected:
        raise ValueError(f"{mode}: input must have {expected} features, got shape {tuple(x.shape)}")
    if batch_sizes is None and x.shape[0] == 0:
        raise ValueError(f"{mode}: input must have at least one step, got shape {tuple(x.shape)}")
    if reset is not None:
        check_device(mode, "reset", reset, "input", x)
        if reset.shape != x.shape[:-1]:
            raise ValueError(f"{mode}: reset must be {list(x.shape[:-1])} for this input, got {list(reset.shape)}")


def _check_states(mode: str, leading: tuple[int, int], **states: tuple[Tensor | None, int]) -> None:
    for name, (state, units) in states.items():
        if state is not None and state.shape != (*leading, units):
            raise ValueError(f"{mode}: {name} must be {[*leading, units]}, got {list(state.shape)}")

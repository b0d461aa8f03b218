"""RNN, LSTM and GRU: whole sequences, layers and directions, dense or packed, and single cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.dispatch import Route, any_subclass, is_forward_mode, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import autocast, check_device, check_floating, needs_gradient, without_autocast
from tinynet.ops.autograd import EagerFunction, gradients_of, held, hold, through_kernels
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels import replays
from tinynet_kernels.recurrent import GATES, Gradients, Saved, Sequences, Wanted, Weights, packed_sequences


def recurrent_reference(
    mode: str,
    x: Tensor,
    weights: Weights,
    h0: Tensor,
    c0: Tensor | None,
    sequences: Sequences,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in plain PyTorch, one step at a time: y [R, D P], h_n [D, B, P], c_n [D, B, H] of packed rows x [R, I].

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
    """(h, c) after one step, from the input's and the hidden state's parts of the gates."""
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


def _in_pytorch(ctx: Any, *grads: Tensor | None) -> Sequence[Tensor | None]:
    x, *weights, _, h0, _, _, _, reset = ctx.saved_tensors
    (c0,) = held(ctx.c0)
    definition = partial(_definition, ctx.mode, ctx.sequences, reset)
    return gradients_of(definition, (x, *weights, h0, c0), ctx.needs_input_grad[:8], grads)


def _definition(
    mode: str, sequences: Sequences, reset: Tensor | None, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    *weights, h0, c0 = rest
    return recurrent_reference(mode, x, Weights(*weights), h0, c0, sequences, reset)


class RecurrentFunction(EagerFunction):
    """One layer through the kernels; tensors as `tinynet_kernels.recurrent.layer` lays them out."""

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
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        y, h_n, c_n, saved = kernels.recurrent.recurrent_forward(
            mode, x, weights, h0, c0, sequences, reset, save=True, recompute=recompute
        )
        ctx.save_for_backward(x, *weights, _saved_output(mode, y, recompute), h0, *saved, reset)
        ctx.c0 = hold(c0)
        ctx.mode, ctx.sequences = mode, sequences
        return y, h_n, c_n

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, d_y: Tensor, d_h_n: Tensor, d_c_n: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = _gradients(ctx.mode, d_y, d_h_n, d_c_n, ctx.saved_tensors, ctx.sequences, ctx.needs_input_grad[:8])
        return (*gradients, None, None, None, None)


def _saved_output(mode: str, y: Tensor, recompute: bool) -> Tensor | None:
    """What the backward reads of y: a copy, for the caller may change y in place, as PyTorch's layers allow."""
    if recompute:
        return y
    return y.clone() if GATES[mode] == 1 else None


def _gradients(
    mode: str,
    d_y: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    saved: Sequence[Tensor | None],
    sequences: Sequences,
    wanted: Sequence[bool],
) -> Gradients:
    """The layer's gradients. `saved`: x, the five weights, y, h0, what the forward saved, and reset."""
    x, y, h0 = saved[0], saved[6], saved[7]
    assert x is not None and h0 is not None and saved[1] is not None and saved[2] is not None
    weights = Weights(saved[1], saved[2], *saved[3:6])
    states, reset = Saved(*saved[8:11]), saved[11]
    d_y, d_h_n = d_y.contiguous(), d_h_n.contiguous()
    d_c_n = d_c_n.contiguous() if mode == "lstm" and d_c_n is not None else None
    return kernels.recurrent.recurrent_backward(
        mode, d_y, d_h_n, d_c_n, x, weights, y, h0, states, sequences, reset, Wanted(*wanted)
    )


def _sequences(x: Tensor, h0: Tensor, batch_sizes: Tensor | None) -> Sequences:
    """Where the rows of x [R, I] are; B comes from h0 [D, B, P]."""
    if batch_sizes is None:
        return Sequences(x.shape[0] // h0.shape[1], h0.shape[1])
    return packed_sequences(batch_sizes, x.device)


def _forward(
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
    recompute: bool,
    save: bool,
) -> Tensors:
    """One layer: y, h_n, c_n, gates, previous, cell."""
    weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    sequences = _sequences(x, h0, batch_sizes)
    y, h_n, c_n, saved = kernels.recurrent.recurrent_forward(
        mode, x, weights, h0, c0, sequences, reset, save=save, recompute=recompute
    )
    return y, h_n, c_n, *saved


def _fake(x: Tensor, *rest: Any) -> Tensors:
    _, weight_hh, _, _, _, h0, c0, _, _, mode, recompute, save = rest
    rows = x.shape[0]
    directions, gate_rows, outputs = weight_hh.shape
    hidden = gate_rows // GATES[mode]
    save_all = save and not recompute
    return (
        x.new_empty((rows, directions * outputs)),
        torch.empty_like(h0),
        None if c0 is None else torch.empty_like(c0),
        x.new_empty((rows, directions, 4 * hidden)) if save_all and GATES[mode] > 1 else None,
        x.new_empty((rows, directions, outputs)) if save_all else None,
        x.new_empty((rows, directions, hidden), dtype=torch.float32) if save and mode == "lstm" else None,
    )


def _saves(given: Sequence[Any], results: Sequence[Any]) -> Tensors:
    x, *weights, h0, _, reset, batch_sizes, _, _ = given
    y, _, _, *saved = results
    return x, *weights, y, h0, *saved, reset, batch_sizes


def _backward(
    grads: list[Tensor], saved: list[Any], mode: str, recompute: bool, wanted: list[bool]
) -> list[Tensor | None]:
    d_y, d_h_n, d_c_n = grads
    *tensors, batch_sizes = saved
    sequences = _sequences(tensors[0], tensors[7], batch_sizes)
    gradients = _gradients(mode, d_y, d_h_n, d_c_n, tensors, sequences, wanted[:8])
    # The weights' gradients are parts of one buffer; an operator's results must not be.
    return [*(None if gradient is None else gradient.clone() for gradient in gradients), None, None]


def _fake_backward(
    grads: list[Tensor], saved: list[Any], mode: str, recompute: bool, wanted: list[bool]
) -> list[Tensor | None]:
    _, d_h_n, d_c_n = grads
    likes = [*saved[:6], d_h_n, d_c_n]
    gradients = [
        like.new_empty(like.shape) if want and like is not None else None
        for like, want in zip(likes, wanted[:8], strict=True)
    ]
    return [*gradients, None, None]


def _reference(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    *weights, h0, c0, reset, batch_sizes, mode, _ = rest
    sequences = _sequences(x, h0, batch_sizes)
    return recurrent_reference(mode, x, Weights(*weights), h0, c0, sequences, reset)


def _flops(wanted: list[bool] | None, x: Tensor, *rest: Any) -> int:
    """A product of all rows with each weight; backward one for the states, and one for each gradient wanted."""
    weight_ih, weight_hh, _, _, weight_hr = rest[:5]
    sizes = [weight_ih.numel(), weight_hh.numel(), 0 if weight_hr is None else weight_hr.numel()]
    if wanted is None:
        return 2 * x.shape[0] * sum(sizes)
    times = wanted[0] + wanted[1], 1 + wanted[2], 1 + wanted[5]
    return 2 * x.shape[0] * sum(size * count for size, count in zip(sizes, times, strict=True))


recurrent_operator = Operator(
    "recurrent(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr, "
    "Tensor h0, Tensor? c0, Tensor? reset, Tensor? batch_sizes, str mode, bool recompute) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    saves=_saves,
    backward=_backward,
    fake_backward=_fake_backward,
    reference=_reference,
    flops=_flops,
    outputs=3,
)


def recurrent_layer(
    route: Route,
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
        route: who computes.
        mode: "rnn_tanh", "rnn_relu", "lstm" or "gru".
        x: [R, I], rows in time order.
        weights: the layer's, directions stacked.
        h0: [D, B, P].
        c0: [D, B, H] for the LSTM, else None.
        sequences: where the rows of each step are.
        reset: uint8 [R], nonzero where the state before the row's step is zeroed, or None.
        recompute: save only y and c for the backward.
    """
    if route is Route.REFERENCE:
        return recurrent_reference(mode, x, weights, h0, c0, sequences, reset)
    weights = weights._replace(
        hidden=weights.hidden.contiguous(),
        projection=None if weights.projection is None else weights.projection.contiguous(),
    )
    h0, c0 = h0.contiguous(), None if c0 is None else c0.contiguous()
    if route is Route.OPERATOR:
        y, h_n, c_n = recurrent_operator(route, x, *weights, h0, c0, reset, sequences.batch_sizes, mode, recompute)
        return y, h_n, c_n if mode == "lstm" else None
    if needs_gradient(x, *weights, h0, c0):
        result: Any = RecurrentFunction.run(x, *weights, h0, c0, mode, sequences, reset, recompute)
        return result
    y, h_n, c_n, _ = kernels.recurrent.recurrent_forward(
        mode, x, weights, h0, c0, sequences, reset, save=False, recompute=False
    )
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
        recompute: save only y and c for the backward, which computes the gates again.

    Returns:
        y [T, B, D P] or [R, D P], h_n [L D, B, P] and, for the LSTM, c_n [L D, B, H]; None else.

    Raises:
        ValueError: shapes or devices that don't fit together, or an unknown mode.
        TypeError: dtypes that are not floating point or differ outside autocast.

    Source: torch.rnn_tanh, rnn_relu, lstm and gru; Cho et al. 2014, Hochreiter and Schmidhuber 1997, Sak et al. 2014.
    """
    if mode not in GATES:
        raise ValueError(f"recurrent: mode must be one of {', '.join(GATES)}, got {mode!r}")
    if batch_sizes is not None:
        replays.constant(batch_sizes)
    x, h, c = autocast(input, h0, c0)
    parameters = [autocast(*group) for group in parameters]
    route = _route(mode, x, h, c, parameters, reset)
    _check_shapes(mode, x, parameters, batch_sizes, reset)
    directions = 2 if bidirectional else 1
    batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    outputs, hidden = parameters[0][1].shape[1], parameters[0][1].shape[0] // GATES[mode]
    h = x.new_zeros((len(parameters), batch, outputs)) if h is None else h
    c = x.new_zeros((len(parameters), batch, hidden)) if c is None and mode == "lstm" else c
    _check_states(mode, (len(parameters), batch), h0=(h, outputs), c0=(c, hidden))
    if route is Route.REFERENCE and reset is None and _library_serves(x, h, c, *chain(*parameters)):
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
            route,
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


def _library_serves(*tensors: Tensor | None) -> bool:
    """Whether PyTorch's fused operators are right for these: not for tangents, wrapper subclasses and zero tensors."""
    if is_forward_mode() or any_subclass(*tensors):
        return False
    return not any(tensor is not None and tensor._is_zerotensor() for tensor in tensors)


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
    with without_autocast(x):
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


def _route(
    mode: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Sequence[Sequence[Tensor]],
    reset: Tensor | None,
) -> Route:
    """Who computes, after a look at dtypes and devices."""
    named = {f"parameters[{i}][{j}]": p for i, group in enumerate(parameters) for j, p in enumerate(group)}
    check_floating(mode, input=x, h0=h0, c0=c0, **named)
    if reset is not None:
        check_device(mode, "reset", reset, "input", x)
    return route_of(mode, ("input", "h0", "c0", "reset", *named), x, h0, c0, reset, *named.values())


def _check_shapes(
    mode: str,
    x: Tensor,
    parameters: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None,
    reset: Tensor | None,
) -> None:
    dimensions = 3 if batch_sizes is None else 2
    if x.dim() != dimensions:
        raise ValueError(f"{mode}: input must have {dimensions} dimensions, got shape {tuple(x.shape)}")
    expected = parameters[0][0].shape[1]
    if x.shape[-1] != expected:
        raise ValueError(f"{mode}: input must have {expected} features, got shape {tuple(x.shape)}")
    if batch_sizes is None and x.shape[0] == 0:
        raise ValueError(f"{mode}: input must have at least one step, got shape {tuple(x.shape)}")
    if reset is not None and reset.shape != x.shape[:-1]:
        raise ValueError(f"{mode}: reset must be {list(x.shape[:-1])} for this input, got {list(reset.shape)}")


def _check_states(mode: str, leading: tuple[int, int], **states: tuple[Tensor | None, int]) -> None:
    for name, (state, units) in states.items():
        if state is not None and state.shape != (*leading, units):
            raise ValueError(f"{mode}: {name} must be {[*leading, units]}, got {list(state.shape)}")

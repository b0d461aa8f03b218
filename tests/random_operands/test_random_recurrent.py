"""Recurrent layers and cells on random operands, against PyTorch in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from random_checks import check, listed
from random_tensors import dtypes, sizes, tensors
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tinynet import functional, nn
from tinynet.nn import recurrent as layers

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:dropout option adds dropout")]

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 1}),
    ("LSTM", {"proj_size": 7}),
]
# A 16-bit state is rounded at every step.
RECURRENT_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 8e-3}


def weights_of(hidden: int, shape: list[int], generator: torch.Generator) -> Tensor:
    """Values of a layer's parameters, of PyTorch's size for so many hidden numbers."""
    return torch.randn(shape, generator=generator) / hidden**0.5


@given(st.data())
def test_recurrent(device: str, data: st.DataObject) -> None:
    draw, (kind, own) = data.draw, data.draw(st.sampled_from(KINDS))
    # The derivative of relu jumps where rounding changes a sign.
    dtype = torch.float32 if own.get("nonlinearity") == "relu" else draw(dtypes)
    inputs, hidden = draw(sizes(17)), draw(sizes(33, least=8 if "proj_size" in own else 1))
    options = {
        "num_layers": draw(st.integers(1, 2)),
        **{name: draw(st.booleans()) for name in ("bias", "bidirectional", "batch_first")},
        **own,
    }
    ours = getattr(layers, kind)(inputs, hidden, **options, recompute=draw(st.booleans()), device="meta")
    exact = getattr(torch.nn, kind)(inputs, hidden, **options, device="meta")
    names = [name for name, _ in exact.named_parameters()]
    parameter_shapes = [list(parameter.shape) for parameter in exact.parameters()]
    form, batch = draw(st.sampled_from(["batch", "unbatched", "packed"])), [draw(sizes(17))]
    if form == "packed":
        lengths = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=batch[0], max_size=batch[0])))
        packed = pack_padded_sequence(torch.empty(5, batch[0], 1, device=device), lengths, enforce_sorted=False)
        shape = [len(packed.data), inputs]
    else:
        packed, batch = None, batch if form == "batch" else []
        steps = [draw(sizes(5))]
        shape = [*batch, *steps, inputs] if options["batch_first"] else [*steps, *batch, inputs]
    scaled = partial(weights_of, hidden)
    states = []
    if draw(st.booleans()):
        lead = [options["num_layers"] * (1 + options["bidirectional"]), *batch]
        states.append(draw(tensors(device, [*lead, options.get("proj_size") or hidden], dtype)))
        if kind == "LSTM":
            states.append(draw(tensors(device, [*lead, hidden], dtype)))
    note(f"{kind}({inputs}, {hidden}, {options}), {form}")

    def run(layer: Any, x: Tensor, *rest: Tensor) -> list[Tensor]:
        for name, tensor in zip(names, rest[len(states) :], strict=True):
            delattr(layer, name)
            setattr(layer, name, tensor)
        hx = None if not states else rest[:2] if kind == "LSTM" else rest[0]
        y, last = layer(x if packed is None else PackedSequence(x, *packed[1:]), hx)
        return [y.data if isinstance(y, PackedSequence) else y, *listed(last)]

    check(
        draw,
        partial(run, ours),
        partial(run, exact),
        draw(tensors(device, shape, dtype)),
        *states,
        *(draw(tensors(device, size, dtype, scaled)) for size in parameter_shapes),
        error=RECURRENT_ERRORS[dtype],
    )


@given(st.data())
def test_recurrent_cell(device: str, data: st.DataObject) -> None:
    draw, (kind, own) = data.draw, data.draw(st.sampled_from(KINDS[:4]))
    dtype = torch.float32 if own else draw(dtypes)
    inputs, hidden, batch = draw(sizes(17)), draw(sizes(33)), draw(st.lists(sizes(17, least=0), max_size=1))
    options = {"bias": draw(st.booleans()), **own}
    ours, exact = (getattr(library, f"{kind}Cell")(inputs, hidden, **options) for library in (nn, torch.nn))
    names = [name for name, _ in exact.named_parameters()]
    scaled = partial(weights_of, hidden)
    states = [draw(tensors(device, [*batch, hidden], dtype)) for _ in range(2 if kind == "LSTM" else 1)]
    states = draw(st.sampled_from([states, []]))
    note(f"{kind}Cell({inputs}, {hidden}, {options})")

    def run(cell: Any, x: Tensor, *rest: Tensor) -> list[Tensor]:
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        hx = None if not states else rest[:2] if kind == "LSTM" else rest[0]
        return listed(torch.func.functional_call(cell, parameters, (x, hx)))

    check(
        draw,
        partial(run, ours),
        partial(run, exact),
        draw(tensors(device, [*batch, inputs], dtype)),
        *states,
        *(draw(tensors(device, list(each.shape), dtype, scaled)) for each in exact.parameters()),
        error=RECURRENT_ERRORS[dtype],
    )


@given(st.data())
def test_recurrent_function(device: str, data: st.DataObject) -> None:
    draw, name = data.draw, data.draw(st.sampled_from(["rnn_tanh", "rnn_relu", "gru", "lstm"]))
    dtype = torch.float32 if name == "rnn_relu" else draw(dtypes)
    inputs, hidden, num_layers = draw(sizes(9)), draw(sizes(17)), draw(st.integers(1, 2))
    bias, both_ways, batch_first = (draw(st.booleans()) for _ in range(3))
    shape = [draw(sizes(9)), draw(sizes(5)), inputs]
    kind = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}[name]
    layer = getattr(torch.nn, kind)(inputs, hidden, num_layers, bias=bias, bidirectional=both_ways, device="meta")
    scaled = partial(weights_of, hidden)
    state = [num_layers * (1 + both_ways), shape[0 if batch_first else 1], hidden]
    states = [draw(tensors(device, state, dtype)) for _ in range(2 if name == "lstm" else 1)]
    note(f"{name}, {num_layers} layers, bias {bias}, bidirectional {both_ways}, batch_first {batch_first}")

    def run(library: Any, x: Tensor, *rest: Tensor) -> list[Tensor]:
        hx, parameters = rest[: len(states)], rest[len(states) :]
        options = parameters, bias, num_layers, 0.0, True, both_ways, batch_first
        return listed(getattr(library, name)(x, hx if name == "lstm" else hx[0], *options))

    check(
        draw,
        partial(run, functional),
        partial(run, torch),
        draw(tensors(device, shape, dtype)),
        *states,
        *(draw(tensors(device, list(each.shape), dtype, scaled)) for each in layer.parameters()),
        error=RECURRENT_ERRORS[dtype],
    )

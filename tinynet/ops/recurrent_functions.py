"""`rnn_tanh`, `rnn_relu`, `gru` and `lstm` as functions, with torch's arguments: for models without modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tinynet.ops.recurrent import recurrent


def rnn_tanh(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh) over sequences, in any number of layers and directions.

    Args:
        input: [T, B, I], with `batch_first` [B, T, I]; or the data [R, I] of a `PackedSequence`.
        arguments: hx [L D, B, H], params, has_biases, num_layers, dropout, train, bidirectional and batch_first; or, of
            a `PackedSequence`, its batch_sizes and then these without batch_first. `params` holds W_ih, W_hh and, with
            biases, b_ih and b_hh of each layer and direction in turn.

    Returns:
        (output, h_n), as torch.nn.RNN does.

    Raises:
        ValueError, TypeError: as `tinynet.ops.recurrent.recurrent`; another number of arguments or parameters.

    Example:
        >>> rnn, x, h0 = torch.nn.RNN(8, 16), torch.randn(7, 3, 8), torch.zeros(1, 3, 16)
        >>> y, h = rnn_tanh(x, h0, list(rnn.parameters()), True, 1, 0.0, False, False, False)

    Source: torch.rnn_tanh.
    """
    y, h, _ = _recurrent("rnn_tanh", input, arguments)
    return y, h


def rnn_relu(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """As `rnn_tanh`, with relu in place of tanh. Source: torch.rnn_relu."""
    y, h, _ = _recurrent("rnn_relu", input, arguments)
    return y, h


def gru(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Gated recurrent units over sequences; arguments and results as of `rnn_tanh`. Source: torch.gru."""
    y, h, _ = _recurrent("gru", input, arguments)
    return y, h


def lstm(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory over sequences.

    Args:
        input, arguments: as of `rnn_tanh`, with hx a pair (h0, c0); with a projection each layer and direction of
            `params` ends with W_hr.

    Returns:
        (output, h_n, c_n).

    Source: torch.lstm.
    """
    y, h, c = _recurrent("lstm", input, arguments)
    assert c is not None
    return y, h, c


def _recurrent(mode: str, input: Tensor, arguments: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    if len(arguments) != 8:
        raise TypeError(f"{mode}: expected 9 arguments, got {1 + len(arguments)}; see its documentation")
    batch_sizes, batch_first, options = None, False, arguments
    if isinstance(arguments[2], bool):  # has_biases: a batch
        *options, batch_first = arguments
    else:
        batch_sizes, *options = arguments
    hx, params, bias, layers, dropout, training, bidirectional = options
    cells = layers * (2 if bidirectional else 1)
    each, remainder = divmod(len(params), cells)
    if remainder or not each:
        raise ValueError(f"{mode}: {len(params)} params cannot be divided among {cells} layers and directions")
    h0, c0 = hx if mode == "lstm" else (hx, None)
    y, h, c = recurrent(
        mode,
        input.transpose(0, 1) if batch_first else input,
        h0,
        c0,
        [params[i : i + each] for i in range(0, len(params), each)],
        bias=bias,
        bidirectional=bidirectional,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
    )
    return y.transpose(0, 1) if batch_first else y, h, c

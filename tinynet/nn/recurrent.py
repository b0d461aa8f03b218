"""Recurrent layers and cells: torch.nn's RNN, LSTM and GRU, computed by tinynet's kernels.

Arguments, parameters, their order and initialization, and state_dict are the same as in torch.nn. Two arguments are
new: `recompute=` of the constructors trades time for memory, and `reset=` of the layers' forward zeroes the state of
individual sequences at individual time steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from tinynet.dispatch import check_strided
from tinynet.nn.proxies import as_leaf
from tinynet.ops.recurrent import recurrent, recurrent_cell

# torch.nn.RNN, LSTM and GRU are not the base classes, because torch.compile does not trace into their subclasses.


class _RecurrentLayer(torch.nn.RNNBase):
    """The base class of RNN, LSTM and GRU: converts every form of input to [T, B, I] or packed rows, and back."""

    def __init__(self, mode: str, *arguments: Any, recompute: bool, **keywords: Any) -> None:
        super().__init__(mode, *arguments, **keywords)
        self.recompute = recompute

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read each parameter from its own memory."""

    def forward(self, input: Any, hx: Any = None, *, reset: Any = None) -> tuple[Any, Any]:
        """Returns (output, last states) as the layer of torch.nn does.

        Args:
            input: [T, B, I], with `batch_first` [B, T, I], unbatched [T, I], or a `PackedSequence`.
            hx: initial state h0 [L D, B, P], or (h0, c0) for the LSTM; without B for unbatched input; None for zeros.
            reset: bool mask with the input's shape without its last dimension; true zeroes the sequence's state before
                that time step. For packed input, the mask before packing, [T, B] or [B, T], or a `PackedSequence` like
                the input. None for no resets.

        Raises:
            ValueError, TypeError: as `tinynet.ops.recurrent.recurrent`.
        """
        if isinstance(input, Proxy):
            return as_leaf(self, input, hx, reset=reset)
        packed = isinstance(input, PackedSequence)
        check_strided(type(self).__name__, "input", input.data if packed else input)
        x: Any
        batch_sizes: Any
        x, batch_sizes, order, order_back = input if packed else (input, None, None, None)
        if not packed and x.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: input must have 2 or 3 dimensions, got shape {tuple(x.shape)}")
        unbatched = not packed and x.dim() == 2
        batch_dim = 0 if self.batch_first and not packed else 1
        h0, c0 = self._initial(hx, unbatched, order)
        if packed:
            reset = None if reset is None else self._packed_reset(reset, batch_sizes, order)
        else:
            x = x.unsqueeze(batch_dim) if unbatched else x
            reset = reset.unsqueeze(batch_dim) if unbatched and reset is not None else reset
            if self.batch_first:
                x = x.transpose(0, 1)
                reset = None if reset is None else reset.transpose(0, 1)
        y, h_n, c_n = recurrent(
            self.mode.lower(),
            x,
            h0,
            c0,
            [[getattr(self, name) for name in names] for names in self._all_weights],
            bias=self.bias,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
            reset=reset,
            recompute=self.recompute,
        )
        if packed:
            y = PackedSequence(y, batch_sizes, order, order_back)
        else:
            y = y.transpose(0, 1) if self.batch_first else y
            y = y.squeeze(batch_dim) if unbatched else y
        states = tuple(_last(state, unbatched, order_back) for state in (h_n, c_n) if state is not None)
        return y, states if self.mode == "LSTM" else states[0]

    def _initial(self, hx: Any, unbatched: bool, order: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Returns (h0, c0), each [L D, B, units], in the order of the packed sequences."""
        if hx is None:
            return None, None
        given = hx if self.mode == "LSTM" else (hx,)
        for state in given:
            check_strided(type(self).__name__, "hx", state)
        dimensions = 2 if unbatched else 3
        for state in given:
            if state.dim() != dimensions:
                shape = tuple(state.shape)
                raise ValueError(f"{type(self).__name__}: hx must have {dimensions} dimensions, got shape {shape}")
        states = [state.unsqueeze(1) if unbatched else state for state in given]
        states = states if order is None else [state.index_select(1, order) for state in states]
        return states[0], states[1] if len(states) > 1 else None

    def _packed_reset(self, reset: Any, batch_sizes: Tensor, order: Tensor | None) -> Tensor:
        """Returns the mask's values in the order of the packed rows."""
        if isinstance(reset, PackedSequence):
            return reset.data
        reset = (reset.transpose(0, 1) if self.batch_first else reset)[: len(batch_sizes)]
        expected = [len(batch_sizes), int(batch_sizes[0])]
        if list(reset.shape) != expected:
            raise ValueError(f"{type(self).__name__}: reset must be {expected} in time order, got {list(reset.shape)}")
        reset = reset if order is None else reset.index_select(1, order)
        exists = torch.arange(expected[1], device="cpu")[None, :] < batch_sizes[:, None]
        return reset.reshape(-1).index_select(0, exists.reshape(-1).nonzero()[:, 0].to(reset.device))

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return f"{text}, recompute=True" if self.recompute else text


def _last(state: Tensor, unbatched: bool, order_back: Tensor | None) -> Tensor:
    """Converts a last state [L D, B, units] to the form of the input: unbatched, or in the order before packing."""
    if unbatched:
        return state.squeeze(1)
    return state if order_back is None else state.index_select(1, order_back)


class RNN(_RecurrentLayer):
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu, over sequences, in persistent or per-step kernels.

    Args:
        input_size, hidden_size and all up to dtype: those of torch.nn.RNN.
        recompute: save only y for the backward.

    Raises:
        ValueError: an unknown nonlinearity, or an argument that torch.nn.RNN rejects.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(f"RNN_{nonlinearity.upper()}", *sizes, recompute=recompute, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity


class LSTM(_RecurrentLayer):
    """Long short-term memory over sequences, in persistent or per-step kernels.

    Args:
        input_size, hidden_size and all up to dtype: those of torch.nn.LSTM.
        recompute: save only y and c for the backward, and recompute the gates there.

    Raises:
        ValueError: an argument that torch.nn.LSTM rejects.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size
        super().__init__("LSTM", *sizes, recompute=recompute, device=device, dtype=dtype)


class GRU(_RecurrentLayer):
    """Gated recurrent unit over sequences, in persistent or per-step kernels.

    Args:
        input_size, hidden_size and all up to dtype: those of torch.nn.GRU.
        recompute: save only y for the backward, and recompute the gates there.

    Raises:
        ValueError: an argument that torch.nn.GRU rejects.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__("GRU", *sizes, recompute=recompute, device=device, dtype=dtype)


class RNNCell(torch.nn.RNNCell):
    """One step of an RNN; see `tinynet.ops.recurrent.recurrent_cell`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if isinstance(input, Proxy):
            return as_leaf(self, input, hx)
        return _cell(f"rnn_{self.nonlinearity}", self, input, hx)[0]


class LSTMCell(torch.nn.LSTMCell):
    """One step of an LSTM; see `tinynet.ops.recurrent.recurrent_cell`."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if isinstance(input, Proxy):
            return as_leaf(self, input, hx)
        h, c = (None, None) if hx is None else hx
        h, c = _cell("lstm", self, input, h, c)
        assert c is not None
        return h, c


class GRUCell(torch.nn.GRUCell):
    """One step of a GRU; see `tinynet.ops.recurrent.recurrent_cell`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if isinstance(input, Proxy):
            return as_leaf(self, input, hx)
        return _cell("gru", self, input, hx)[0]


def _cell(
    mode: str, cell: torch.nn.RNNCellBase, input: Tensor, h: Tensor | None, c: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Computes one step from an input [B, I] or [I] and states [B, H] or [H]; None for zero states."""
    for name, tensor in (("input", input), ("hx", h), ("hx", c)):
        check_strided(type(cell).__name__, name, tensor)
    if input.dim() not in (1, 2):
        raise ValueError(f"{type(cell).__name__}: input must have 1 or 2 dimensions, got shape {tuple(input.shape)}")
    for state in (h, c):
        if state is not None and state.dim() != input.dim():
            shapes = f"{tuple(state.shape)} for input {tuple(input.shape)}"
            raise ValueError(f"{type(cell).__name__}: hx must have as many dimensions as input, got {shapes}")
    unbatched = input.dim() == 1
    x, h, c = (state.unsqueeze(0) if unbatched and state is not None else state for state in (input, h, c))
    assert x is not None
    if h is None:
        h = x.new_zeros((x.shape[0], cell.hidden_size))
        c = h if mode == "lstm" else None
    h, c = recurrent_cell(mode, x, h, c, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    return (h[0], None if c is None else c[0]) if unbatched else (h, c)

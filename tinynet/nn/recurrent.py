"""Recurrent layers and cells: torch.nn's RNN, LSTM and GRU, computed by our kernels.

Arguments, parameters, their order and initialization, and state_dict are torch.nn's. Two things are added: `recompute=`
on the layers' constructors trades time for memory, and `reset=` on their forward zeroes the state of single sequences
in mid-batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from tinynet.dispatch import check_strided
from tinynet.ops.recurrent import recurrent, recurrent_cell

# torch.nn.RNN, LSTM and GRU themselves are no base: torch.compile refuses to look into them and their subclasses.


def as_leaf(module: torch.nn.Module, input: Proxy, *arguments: Any, **keywords: Any) -> Any:
    """A call of `module` in a graph of torch.fx: a forward that looks at its input's rank can't be traced through."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, *arguments), keywords)


class _RecurrentLayer(torch.nn.RNNBase):
    """What RNN, LSTM and GRU share: every form of input, brought to [T, B, I] or to packed rows and back."""

    def __init__(self, mode: str, *arguments: Any, recompute: bool, **keywords: Any) -> None:
        super().__init__(mode, *arguments, **keywords)
        self.recompute = recompute

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take each parameter where it lies."""

    def forward(self, input: Any, hx: Any = None, *, reset: Any = None) -> tuple[Any, Any]:
        """(output, last states) as torch.nn's layer gives them.

        Args:
            input: [T, B, I], with `batch_first` [B, T, I], unbatched [T, I], or a `PackedSequence`.
            hx: initial state h0 [L D, B, P], for the LSTM (h0, c0); [L D, P] for unbatched input; None for zeros.
            reset: bool mask of the input's shape without its last dimension, in its order of dimensions: true zeroes
                the sequence's state before that step. For packed input what it was before packing, [T, B] or [B, T],
                or a `PackedSequence` like the input. None for none.

        Raises:
            ValueError, TypeError: see `tinynet.ops.recurrent.recurrent`.
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
        """(h0, c0) as [L D, B, units], in the order of the packed sequences."""
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
        """The mask's values in the order of the packed rows."""
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
    """A last state [L D, B, units] as the caller's input was: without its batch, or in the caller's order."""
    if unbatched:
        return state.squeeze(1)
    return state if order_back is None else state.index_select(1, order_back)


class RNN(_RecurrentLayer):
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu, over sequences, in persistent or per-step kernels.

    Args:
        args, kwargs: torch.nn.RNN's: input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True,
            batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None.
        recompute: keep no state but y for backward.

    Raises:
        ValueError: an unknown nonlinearity, a proj_size, or what torch.nn.RNN refuses.
    """

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        _refuse_projection("RNN", kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], (*args[:3], *args[4:])
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, recompute=recompute, **kwargs)
        self.nonlinearity = nonlinearity


class LSTM(_RecurrentLayer):
    """Long short-term memory over sequences, in persistent or per-step kernels.

    Args:
        args, kwargs: torch.nn.LSTM's: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
            bidirectional=False, proj_size=0, device=None, dtype=None.
        recompute: keep only y and c for backward, not the gates; they are made again there.

    Raises:
        ValueError: what torch.nn.LSTM refuses.
    """

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, recompute=recompute, **kwargs)


class GRU(_RecurrentLayer):
    """Gated recurrent unit over sequences, in persistent or per-step kernels.

    Args:
        args, kwargs: torch.nn.GRU's: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
            bidirectional=False, device=None, dtype=None.
        recompute: keep only y for backward, not the gates; they are made again there.

    Raises:
        ValueError: a proj_size, or what torch.nn.GRU refuses.
    """

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        _refuse_projection("GRU", kwargs)
        super().__init__("GRU", *args, recompute=recompute, **kwargs)


def _refuse_projection(name: str, keywords: dict[str, Any]) -> None:
    if "proj_size" in keywords:
        raise ValueError(f"{name}: proj_size is the LSTM's alone, got {keywords['proj_size']}")


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
    """A step of input [B, I] or [I] and states [B, H] or [H], zeros where None."""
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

"""What a recurrent layer is given, saves and returns, and what its kernels are compiled for. No Triton here."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinynet_kernels import replays

# Blocks of W_hh's rows by mode.
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


class Weights(NamedTuple):
    """A layer's parameters, directions stacked.

    Attributes:
        input: W_ih [D gates H, I], any strides.
        hidden: W_hh [D, gates H, P].
        input_bias: b_ih [D gates H] or None.
        hidden_bias: b_hh [D gates H] or None.
        projection: W_hr [D, P, H] or None.
    """

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    projection: Tensor | None


class Sequences(NamedTuple):
    """Where the rows of each step lie.

    Attributes:
        steps: T.
        batch: B.
        batch_sizes: sequences at each step, int64 [T] on the CPU, falling; None where all are B.
        offsets: first row of each step, int64 [T], or None where it is t B.
        lengths: steps of each sequence, int32 [B], or None where all are T.
    """

    steps: int
    batch: int
    batch_sizes: Tensor | None = None
    offsets: Tensor | None = None
    lengths: Tensor | None = None


class Saved(NamedTuple):
    """What the forward saved for the backward, beside y.

    Attributes:
        gates: pre-activations [R, D, 4 H], or None.
        previous: h before each step [R, D, P], or None.
        cell: c before each step [R, D, H] in fp32, or None.
    """

    gates: Tensor | None
    previous: Tensor | None
    cell: Tensor | None


class BackwardBuffers(NamedTuple):
    """What the backward over time leaves for the products after it.

    Attributes:
        gates: d_input [R, D gates H], which is d_hidden too but for the GRU's.
        hidden_gates: the last columns of each direction's d_hidden where they differ: the GRU's dq [R, D H], or from
            step kernels all of its d_hidden [R, D gates H]; else None.
        output: gradient of the projected h [R, D, P], or None without a projection.
        unprojected: h before the projection [R, D, H], or None.
    """

    gates: Tensor
    hidden_gates: Tensor | None
    output: Tensor | None
    unprojected: Tensor | None


class Gradients(NamedTuple):
    """Gradients of a layer's tensors, in the order in which autograd sees them; None where not wanted."""

    x: Tensor | None
    input: Tensor | None
    hidden: Tensor | None
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    projection: Tensor | None
    h0: Tensor | None
    c0: Tensor | None


class Wanted(NamedTuple):
    """Which of `Gradients` are needed."""

    x: bool
    input: bool
    hidden: bool
    input_bias: bool
    hidden_bias: bool
    projection: bool
    h0: bool
    c0: bool


class CellSpec(NamedTuple):
    """What the kernels over time are compiled for, beside their tile.

    Attributes:
        gates: blocks of H rows in W_hh.
        hidden: H units.
        outputs: P output units, H without a projection.
        relu: whether an RNN's activation is ReLU, else tanh.
        precision: `input_precision` of the products.
    """

    gates: int
    hidden: int
    outputs: int
    relu: bool
    precision: str


def packed_sequences(batch_sizes: Tensor, device: torch.device) -> Sequences:
    """The `Sequences` of a `PackedSequence`'s batch_sizes (on the CPU), its tables on `device`."""
    batch = int(batch_sizes[0])
    offsets = batch_sizes.cumsum(0) - batch_sizes
    lengths = (batch_sizes[None, :] > torch.arange(batch, device="cpu")[:, None]).sum(1, dtype=torch.int32)
    tables = replays.placed(offsets, device), replays.placed(lengths, device)
    return Sequences(len(batch_sizes), batch, batch_sizes, *tables)

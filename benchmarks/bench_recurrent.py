"""LSTM and GRU layers, forward + backward, dense and packed, compared with PyTorch's modules.

A sample is a token without padding, so that the cost of packing is the ratio of the times per sample of two neighboring
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from tinynet import nn

from .case import OURS, Case, Setting, allowed_error

TITLE = "recurrent"
STEPS, BATCH = 128, 32
HIDDEN_SIZES = (64, 128, 256)
GATES = {"LSTM": 4, "GRU": 3}


def cases(setting: Setting) -> Iterator[Case]:
    lengths = torch.randint(STEPS // 8, STEPS + 1, (BATCH,)).sort(descending=True).values
    for name in GATES:
        for hidden_size in HIDDEN_SIZES:
            yield layer(setting, name, hidden_size, None)
            yield layer(setting, name, hidden_size, lengths)


def layer(setting: Setting, name: str, hidden_size: int, lengths: Tensor | None) -> Case:
    """One layer: y and the gradients of the input and all parameters."""
    theirs = getattr(torch.nn, name)(hidden_size, hidden_size, device=setting.device, dtype=setting.dtype)
    ours = getattr(nn, name)(hidden_size, hidden_size, device=setting.device, dtype=setting.dtype)
    ours.load_state_dict(theirs.state_dict())
    x = setting.random(STEPS, BATCH, hidden_size)
    tokens = STEPS * BATCH if lengths is None else int(lengths.sum())
    # The input and hidden matrix products, each once in the forward and twice in the backward.
    flops = 3 * 2 * tokens * 2 * GATES[name] * hidden_size**2
    return Case(
        f"{name} {'dense' if lengths is None else 'packed'}, forward + backward",
        f"T={STEPS} B={BATCH} H={hidden_size}",
        flops,
        6 * tokens * hidden_size * setting.dtype.itemsize,
        {OURS: _step(ours, x, lengths), "eager": _step(theirs, x, lengths)},
        10 * allowed_error(setting.dtype, STEPS),
        tokens,
    )


def _step(module: Any, x: Tensor, lengths: Tensor | None) -> Callable[[], tuple[Tensor, ...]]:
    x = x.detach().clone().requires_grad_()
    wanted = (x, *module.parameters())

    def step() -> tuple[Tensor, ...]:
        y = module(x)[0] if lengths is None else module(pack_padded_sequence(x, lengths))[0].data
        return torch.autograd.grad(y.square().sum(), wanted)

    return step

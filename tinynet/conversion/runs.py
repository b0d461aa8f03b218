"""Which neighbors one call computes: what `tinynet.nn.joins` decides at each call, told beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tinynet import nn
from tinynet.nn.activation import FUNCTIONS
from tinynet.nn.joins import BATCH_NORMS, CONVOLUTIONS, NORMS, Added, is_half
from tinynet.nn.sequential import flattened
from tinynet_kernels.activation_spec import Activation


def joinable_runs(steps: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The names of neighbors that run in one call, of named steps in order."""
    run: list[str] = []
    layer = last = None
    for name, what in leaves(steps):
        if type(what) is torch.nn.Identity:
            continue
        if not is_joinable(layer, last, what):
            if len(run) > 1:
                yield tuple(run)
            run, layer = [], what
        elif not _is_activation(what) and what is not Added:
            layer = what
        run, last = [*run, name], what
    if len(run) > 1:
        yield tuple(run)


def leaves(steps: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The steps with those of sequences in their place."""
    for name, what in steps:
        if isinstance(what, torch.nn.Sequential) and flattened([what]) != [what]:
            yield from leaves([(f"{name}.{key}", child) for key, child in what._modules.items()])
        else:
            yield name, what


def is_joinable(layer: Any, last: Any, following: Any) -> bool:
    """Whether the call that computes a layer, and what follows it up to `last`, takes one step more."""
    kind, next_kind = type(layer), type(following)
    if (kind is nn.Linear and next_kind is nn.Linear) or (kind is nn.Conv2d and is_half(following)):
        return True
    if last is not layer:
        return last is Added and _is_activation(following)
    if kind is nn.Conv2d and next_kind is nn.BatchNorm2d:
        return True
    if kind not in (nn.Linear, *CONVOLUTIONS, *NORMS) or layer.activation.name != "identity":
        return False
    return _is_activation(following) or (kind in BATCH_NORMS and following is Added)


def _is_activation(what: Any) -> bool:
    return isinstance(what, Activation) or type(what) in FUNCTIONS

"""A sequence of modules, some of them fused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from tinynet.nn.joins import FORWARDS_IN_TURN, is_sequence, runs_its_forward
from tinynet.nn.recorded_runs import call_in_turn


class Sequential(torch.nn.Sequential):
    """torch.nn.Sequential that fuses neighboring layers:

    - Consecutive `Linear` layers are one autograd function: the matrix product that computes a hidden layer's gradient
      also applies the derivative of its activation and sums its bias gradient.
    - A linear layer, a convolution or a normalization and an activation: one kernel, as with `activation=`.
    - `Conv2d` and `MaxPool2d(2)`: the convolution's kernel computes the maximum of each window, as with `pool=2`.
    - `Conv2d` and `BatchNorm2d`: in training they are one autograd function, and the convolution's kernel leaves
      statistics of its output, so that the normalization reads it once (on a CPU, those of 1 x 1 convolutions are
      computed by the normalization); in evaluation, without gradients, the convolution's kernel normalizes.

    Sequences within are fused with their neighbors. Layers with a hook, or whose `__call__` or `forward` was replaced,
    are called as modules. So are all layers under torch.fx and torch.compile.

    On CPUs, what layers launch is recorded at the third call with an input of one form, and later calls run the
    recording (`tinynet.nn.recorded_runs`), with the same results.
    """

    def forward(self, input: Any) -> Any:
        return in_turn(input, *self._modules.values())


def in_turn(input: Any, *modules: Any) -> Any:
    """The last module's output, neighbors being fused as in `Sequential`: for modules with names of their own."""
    if torch.compiler.is_compiling() or not isinstance(input, torch.Tensor):
        for module in modules:
            input = module(input)
        return input
    return call_in_turn(flattened(modules), input)


def flattened(steps: Iterable[Any]) -> list[Any]:
    """The steps, with those of sequences that nothing else can see in place of the sequences.

    Other modules may have a method `_steps`, as converted ones do: what they call in turn, or None if they do more.
    """
    flat = []
    for step in steps:
        if isinstance(step, torch.nn.Sequential):
            inner = step._modules.values() if is_sequence(step) else None
        else:
            find = getattr(type(step), "_steps", None)
            inner = find(step) if find is not None and runs_its_forward(step) else None
        if inner is None:
            flat.append(step)
        else:
            flat += flattened(inner)
    return flat


FORWARDS_IN_TURN.add(Sequential.forward)

"""What calling modules depends on, besides the values of tensors: noted once, compared at each call, and rebuilt.

A *node* is a module, or a step between modules (`Activation`, `Added`). Modules that call others come before what they
call. What is noted holds no module, so models can be freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import is_, itemgetter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tinynet.nn.joins import BATCH_NORMS, LAYERS, Added, is_plain, is_sequence, runs_its_forward
from tinynet_kernels.activation_spec import Activation

# Hooks and tensors, which are looked at in every call.
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module())) - {"training"}
_LISTS = torch.nn.ModuleList, torch.nn.ModuleDict


class Forward(Protocol):
    """What a converted module's forward depends on; `tinynet.conversion` implements it."""

    def is_unchanged(self, module: Any) -> bool:
        """Whether the module would do the same."""
        ...

    def give(self, module: Any) -> None:
        """Lets an empty module of the same class do it too."""
        ...


class Layer(NamedTuple):
    """A layer.

    Attributes:
        kind: its class.
        count: how many attributes it has.
        select: takes the attributes; returns the values of those that not every module has, and of `training`.
        values: these.
        names: theirs.
        parameters, buffers: their names.
    """

    kind: type
    count: int
    select: Callable[[dict[str, Any]], tuple[Any, ...]]
    values: tuple[Any, ...]
    names: list[str]
    parameters: list[str]
    buffers: list[str]


class Parent(NamedTuple):
    """A module that calls others.

    Attributes:
        kind: its class.
        training: its mode.
        children: their names.
        forward: what else it depends on; None for a sequence or a list.
        parameters, buffers: their names.
    """

    kind: type
    training: bool
    children: list[str]
    forward: Forward | None
    parameters: list[str]
    buffers: list[str]


Known = Layer | Parent | Activation | type[Added] | None


def is_parent(step: Any) -> bool:
    """Whether a step is a module whose calls of others can be noted: a converted one, or a sequence."""
    return hasattr(type(step), "_forward_of") or is_sequence(step)


def nodes_of(steps: Iterable[Any]) -> list[Any]:
    """The steps, and after each the modules in it; None for an absent one."""
    nodes: list[Any] = []
    for step in steps:
        nodes.append(step)
        if type(step) not in LAYERS and isinstance(step, torch.nn.Module):
            nodes += nodes_of(step._modules.values())
    return nodes


def tensors_of(nodes: Iterable[Any]) -> list[Tensor | None]:
    """The parameters and buffers of the nodes."""
    tensors: list[Tensor | None] = []
    for node in nodes:
        if node is not None and type(node) not in (Activation, Added):
            tensors += node._parameters.values()
            tensors += node._buffers.values()
    return tensors


def runs_only_itself(node: Any) -> bool:
    """Whether calling a node runs no hooks, and no forward that was put in its place."""
    kind = type(node)
    if kind in LAYERS:
        return is_plain(node)
    if node is None or kind in (Activation, Added):
        return True
    return runs_its_forward(node) and (kind in _LISTS or is_parent(node))


def noted(nodes: Sequence[Any]) -> list[Known] | None:
    """What calling the nodes depends on; None where one depends on what cannot be noted."""
    known = [_noted(node) for node in nodes]
    return None if any(k is None and node is not None for k, node in zip(known, nodes, strict=True)) else known


def is_same(node: Any, known: Known) -> bool:
    """Whether a node does what was noted."""
    kind = type(known)
    if kind is Layer:  # pyright doesn't narrow by a class that is compared, which is faster than isinstance
        if type(node) is not known.kind:  # pyright: ignore
            return False
        own = node.__dict__
        return len(own) == known.count and all(map(is_, known.select(own), known.values))  # pyright: ignore
    if kind is Parent:
        return (
            type(node) is known.kind  # pyright: ignore
            and node.training is known.training  # pyright: ignore
            and list(node._modules) == known.children  # pyright: ignore
            and (known.forward is None or known.forward.is_unchanged(node))  # pyright: ignore
        )
    return type(node) is Added if known is Added else node == known


def rebuilt(known: Sequence[Known], added: Iterator[Any], tensors: Iterator[Tensor | None]) -> list[Any]:
    """Steps that compute the same from other tensors, without updating statistics.

    Args:
        known: what was noted of their nodes.
        added: the tensors of additions.
        tensors: parameters and buffers.
    """
    remaining, steps = iter(known), []
    for each in remaining:
        steps.append(_rebuilt(each, remaining, added, tensors))
    return steps


def _rebuilt(known: Known, following: Iterator[Known], added: Iterator[Any], tensors: Iterator[Tensor | None]) -> Any:
    if not isinstance(known, Layer | Parent):
        return Added(next(added)) if known is Added else known
    module: Any = object.__new__(known.kind)
    torch.nn.Module.__init__(module)
    module._parameters.update((name, next(tensors)) for name in known.parameters)
    module._buffers.update((name, next(tensors)) for name in known.buffers)
    if isinstance(known, Layer):
        module.__dict__.update(zip(known.names, known.values, strict=False))
        if known.kind in BATCH_NORMS and module.training:
            module.track_running_stats = False
        return module
    module.training = known.training
    for name in known.children:
        module._modules[name] = _rebuilt(next(following), following, added, tensors)
    if known.forward is not None:
        known.forward.give(module)
    return module


def _noted(node: Any) -> Known:
    kind = type(node)
    if kind is Added:
        return Added
    if node is None or kind is Activation:
        return node
    own = node.__dict__
    parameters, buffers = list(node._parameters), list(node._buffers)
    if kind in _LISTS or is_parent(node):
        find = getattr(kind, "_forward_of", None)
        forward = None if find is None else find(node)
        if find is not None and forward is None:
            return None
        return Parent(kind, node.training, list(node._modules), forward, parameters, buffers)
    if kind not in LAYERS:
        return None
    names = [name for name in own if name not in _OF_EVERY_MODULE]
    if not all(is_constant(own[name]) or (name.startswith("_") and type(own[name]) is list) for name in names):
        return None
    select = itemgetter(*names, names[0])  # of one name alone it would return no tuple
    return Layer(kind, len(own), select, select(own), names, parameters, buffers)


def is_constant(value: Any) -> bool:
    """Whether a value can't change unless it is replaced."""
    if isinstance(value, tuple):
        return all(map(is_constant, value))
    return value is None or isinstance(value, bool | int | float | str | type | torch.dtype | Activation)

"""Finding, in the graph of a module's forward, the layers that one kernel can compute, and calling them together."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from tinynet import nn
from tinynet.conversion.runs import is_joinable, joinable_runs, leaves
from tinynet.nn.joins import BATCH_NORMS, COMPUTING_LAYERS, Added, add_and_normalize
from tinynet.nn.recorded_runs import call_in_turn
from tinynet.nn.sequential import flattened
from tinynet.ops.activation_like import as_activation
from tinynet_kernels.activation_spec import Activation

RESIDUAL = "residual"  # the name of an addition in reports
_ADDITIONS = (operator.add, torch.add, "add")
_ADDITIONS_IN_PLACE = (operator.iadd, "add_")
_WRITING = frozenset(name for name in dir(operator) if name.startswith("i") and hasattr(operator, f"__{name}__"))


class Step(NamedTuple):
    """One of a chain: the node that computes it, and what it is.

    Attributes:
        node: in the graph.
        what: a module, an activation, or `Added` for the addition of a tensor.
        name: for reports.
    """

    node: Node
    what: torch.nn.Module | Activation | type[Added]
    name: str


# Steps in order, each of which alone reads the one before it.
Chain = list[Step]


class CallInTurn:
    """A function of a graph: `call_in_turn` of steps, some of which are constants."""

    __module__ = __name__

    def __init__(self, kinds: Sequence[Any]) -> None:
        """`kinds`: an `Activation` for itself, `Added` and None for the next operand, added or called."""
        self.kinds = kinds
        self.__name__ = self.__qualname__ = "call_in_turn"

    def __call__(self, x: Any, *operands: Any) -> Any:
        given = iter(operands)
        steps = [k if type(k) is Activation else next(given) if k is None else k(next(given)) for k in self.kinds]
        return call_in_turn(flattened(steps), x)


def join(graph: Graph, module: torch.nn.Module) -> tuple[list[tuple[str, ...]], bool]:
    """Rewrites the graph of a module's forward.

    Returns:
        The names of the steps of each joined call, and whether the graph has changed.
    """
    joined = list(_join_additions_and_norms(graph, module))
    is_rewritten = bool(joined)
    for chain in _chains(graph, module):
        runs = list(joinable_runs([(step.name, step.what) for step in chain]))
        if len(chain) > 1 and (runs or sum(_has_layers(step.what) for step in chain) > 1):
            _replace(graph, chain)
            joined += runs
            is_rewritten = True
    return joined, is_rewritten


def chain_of(graph: Graph) -> tuple[Activation | str, ...] | None:
    """The steps of a graph that calls steps in turn and does nothing else: activations, and the names of modules."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    calls = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    if len(inputs) != 1 or len(calls) != 1 or not isinstance(calls[0].target, CallInTurn):
        return None
    (call,) = calls
    if Added in call.target.kinds or call.args[0] is not inputs[0] or graph.output_node().args[0] is not call:
        return None
    names = iter(str(node.target) for node in call.args[1:])
    return tuple(kind if isinstance(kind, Activation) else next(names) for kind in call.target.kinds)


def overwriting(graph: Graph, module: torch.nn.Module) -> tuple[str, ...]:
    """The names of layers with `inplace=True` whose input is read again after them."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    return tuple(
        str(node.target)
        for node in graph.nodes
        if node.op == "call_module"
        and getattr(module.get_submodule(str(node.target)), "inplace", False)
        and any(order[user] > order[node] for given in node.all_input_nodes for user in given.users)
    )


def _chains(graph: Graph, module: torch.nn.Module) -> list[Chain]:
    """The longest chains of the graph, in order of their last steps."""
    ending: dict[Node, Chain] = {}
    order = {node: position for position, node in enumerate(graph.nodes)}
    writing = [order[node] for node in graph.nodes if _writes(node, module)]

    def extendable(node: Any, by: Node) -> Chain | None:
        """The chain that ends with a node, if only `by` reads it and nothing is written in between."""
        chain = ending.get(node) if isinstance(node, Node) else None
        if chain is None or len(node.users) != 1 or any(order[node] < place < order[by] for place in writing):
            return None
        return chain

    for node in graph.nodes:
        step = _step(node, module)
        if step is None:
            continue
        chain = extendable(node.args[0], node)
        if step.what is Added:
            if not _ends_in_norm(chain) and node.target not in _ADDITIONS_IN_PLACE:
                chain = extendable(node.args[1], node)
            if not _ends_in_norm(chain) or node.args[0] is node.args[1]:
                continue
        elif _writes(node, module) and not (chain and is_joinable(chain[-1].what, chain[-1].what, step.what)):
            continue
        if chain is None:
            ending[node] = [step]
        else:
            ending[node] = [*ending.pop(chain[-1].node), step]
    return list(ending.values())


def _step(node: Node, module: torch.nn.Module) -> Step | None:
    """What a node computes of its first argument; None where it is no step."""
    if not node.args or not isinstance(node.args[0], Node):
        return None
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return Step(node, layer, str(node.target)) if len(node.args) == 1 and not node.kwargs else None
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in (*_ADDITIONS, *_ADDITIONS_IN_PLACE):
        given = len(node.args) == 2 and isinstance(node.args[1], Node) and not node.kwargs
        return Step(node, Added, RESIDUAL) if given else None
    activation = _activation(node)
    return None if activation is None else Step(node, activation, f"{activation.name}()")


def _has_layers(what: Any) -> bool:
    """Whether this is a layer that can be recorded, or a module that may consist of some."""
    is_sequence = isinstance(what, torch.nn.Sequential) or hasattr(type(what), "_joined_from")
    return is_sequence or type(what) in COMPUTING_LAYERS


def _activation(node: Node) -> Activation | None:
    """The activation that a function or method computes of its first argument."""
    function: Any = node.target
    if node.op == "call_method":
        function = getattr(torch.Tensor, function.rstrip("_"), None)
    elif getattr(function, "__name__", "").endswith("_"):
        function = getattr(F, function.__name__.rstrip("_"), None)
    try:
        return as_activation(partial(function, *node.args[1:], **node.kwargs))  # pyright: ignore
    except (TypeError, ValueError):
        return None


def _ends_in_norm(chain: Chain | None) -> bool:
    """Whether the chain's last layer is a batch normalization."""
    last = list(leaves([("", step.what) for step in chain or []]))[-1:]
    return bool(last) and type(last[0][1]) in BATCH_NORMS


def _writes(node: Node, module: torch.nn.Module) -> bool:
    """Whether a node writes to a tensor that it is given."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return bool(getattr(layer, "inplace", False)) and not type(layer).__module__.startswith("tinynet.")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    is_operator = getattr(operator, name, None) is node.target and name in _WRITING
    return bool(is_operator or name.endswith("_") or name == "setitem" or {"inplace", "out"} & set(node.kwargs))


def _replace(graph: Graph, chain: Chain) -> None:
    """Puts one call in place of a chain."""
    last = chain[-1].node
    kinds: list[Any] = []
    operands: list[Any] = []
    before: Any = None
    with graph.inserting_before(last):
        for step in chain:
            if isinstance(step.what, Activation):
                kinds.append(step.what)
            elif step.what is Added:
                kinds.append(Added)
                operands += [x for x in step.node.args if x is not before]
            else:
                kinds.append(None)
                operands.append(graph.get_attr(str(step.node.target)))
            before = step.node
        call = graph.call_function(CallInTurn(kinds), (chain[0].node.args[0], *operands))
    last.replace_all_uses_with(call)
    for step in reversed(chain):
        graph.erase_node(step.node)


def _join_additions_and_norms(graph: Graph, module: torch.nn.Module) -> Iterator[tuple[str, ...]]:
    """Has layer norms compute the sums that they read."""
    for node in list(graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
            continue
        if type(module.get_submodule(str(node.target))) not in (nn.LayerNorm, nn.RMSNorm):
            continue
        total = node.args[0]
        step = _step(total, module)
        if step is None or step.what is not Added or total.target in _ADDITIONS_IN_PLACE:
            continue
        if _written_between(graph, total, node, module):
            continue
        with graph.inserting_after(total):
            norm = graph.get_attr(str(node.target))
        with graph.inserting_after(norm):
            both = graph.call_function(add_and_normalize, (norm, *total.args))
        with graph.inserting_after(both):
            normalized = graph.call_function(operator.getitem, (both, 0))
        with graph.inserting_after(normalized):
            added = graph.call_function(operator.getitem, (both, 1))
        node.replace_all_uses_with(normalized)
        graph.erase_node(node)
        total.replace_all_uses_with(added)
        graph.erase_node(total)
        yield RESIDUAL, str(node.target)


def _written_between(graph: Graph, first: Node, last: Node, module: torch.nn.Module) -> bool:
    nodes = list(graph.nodes)
    return any(_writes(node, module) for node in nodes[nodes.index(first) + 1 : nodes.index(last)])

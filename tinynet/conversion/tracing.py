"""What the forward of one module does, as a graph of calls of its children and of functions, by torch.fx."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Proxy, Tracer
from torch.fx.proxy import TraceError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_unflatten

from tinynet.nn.dependencies import is_constant

_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))


class Trace(NamedTuple):
    """A graph, and what it depends on besides the arguments.

    Attributes:
        graph: calls of the module's children, of functions and of methods of tensors.
        attributes: (the name of a module within, "" for itself; an attribute of it that was read; its value, a tuple
            for a list of constants).
    """

    graph: Graph
    attributes: list[tuple[str, str, Any]]


class Slot:
    """The place of a tensor in the arguments of a call."""


SLOT = Slot()


def trace(module: torch.nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> Trace:
    """Runs the module's forward on proxies.

    Args:
        module: whose children are not looked into.
        leaves: what the arguments are made of: SLOT for each tensor, and constants.
        spec: how they make up (args, kwargs).

    Raises:
        Exception: the forward asks for something that no proxy knows, computes with tensors of its own, draws random
            numbers or sets attributes.
    """
    tracer, before = _Tracer(leaves, spec), random.getstate()
    try:
        with _watched(module) as attributes, _NoTensors():
            graph = tracer.trace(module)
    finally:
        tracer.__dict__.pop("root", None)  # proxies and tracer form a circle, which would keep the module
    if random.getstate() != before:
        random.setstate(before)
        raise TraceError("its forward draws random numbers")
    return Trace(graph, [(path, name, _as_constant(value)) for (path, name), value in attributes.items()])


def _as_constant(value: Any) -> Any:
    return tuple(value) if type(value) is list and is_constant(tuple(value)) else value


class _TensorProxy(Proxy):
    """A proxy that passes for a tensor where its class is asked for."""

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.Tensor


class _Tracer(Tracer):
    """Calls every child as one node; its arguments are made of given leaves."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: Sequence[Any], spec: TreeSpec) -> None:
        super().__init__()
        self.leaves, self.spec = leaves, spec

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        leaves = [
            self.create_proxy("placeholder", f"x{position}", (), {}) if leaf is SLOT else leaf
            for position, leaf in enumerate(self.leaves)
        ]
        args, kwargs = tree_unflatten(leaves, self.spec)

        def forward(root: Any) -> Any:
            return root_fn(root, *args, **kwargs)

        return forward, [self.root]

    def proxy(self, node: Any) -> Proxy:
        return _TensorProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _TensorProxy else super().create_arg(a)


class _NoTensors(TorchDispatchMode):
    """Refuses every operator on tensors, whose results a graph would hold as constants."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: that would import PyTorch's compiler at the first operator.

        The compiler would take torch.fx's wrappers, which are in the module `math` while it traces, for the functions
        themselves, and could compile no call of those for the rest of the process.
        """
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TraceError(f"its forward computes {func} from no argument")


@contextmanager
def _watched(module: torch.nn.Module) -> Iterator[dict[tuple[str, str], Any]]:
    """Notes which attributes of the module, and of those in it, are read; none can be set."""
    attributes: dict[tuple[str, str], Any] = {}
    classes = [
        (path, inner, type(inner))
        for path, inner in module.named_modules()
        if inner is module or not isinstance(inner, torch.jit.ScriptModule)
    ]
    try:
        for path, inner, kind in classes:
            inner.__class__ = _watching(getattr(kind, "_joined_from", kind), path, attributes)
        yield attributes
    finally:
        for _, inner, kind in classes:
            object.__setattr__(inner, "__class__", kind)


def _watching(kind: Any, path: str, attributes: dict[tuple[str, str], Any]) -> type:
    """The class of a module whose attributes are noted when read, and cannot be set."""

    def read(self: Any, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        is_noted = name not in _OF_EVERY_MODULE or (name == "training" and path)  # its own mode is known anyway
        if is_noted and name in kind.__getattribute__(self, "__dict__"):
            attributes[path, name] = value
        return value

    def write(self: Any, name: str, value: Any) -> None:
        raise TraceError(f"its forward sets the attribute {name}")

    return type(kind.__name__, (kind,), {"__getattribute__": read, "__setattr__": write})

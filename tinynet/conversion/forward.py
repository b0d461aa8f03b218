"""The forward of a module whose layers run joined."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import TreeSpec, tree_flatten

from tinynet.conversion.joins import chain_of, join, overwriting
from tinynet.conversion.tracing import SLOT, trace
from tinynet.nn.dependencies import is_constant
from tinynet.nn.recorded_runs import call_module
from tinynet_kernels.activation_spec import Activation

_TENSORS = (torch.Tensor, torch.nn.Parameter)
_CONSTANTS = (type(None), bool, int, float, str)
_MOST_PROGRAMS = 32  # of one module: a forward given other constants at every call is not traced again and again


class Program(NamedTuple):
    """What a traced forward computes, for arguments of one structure.

    Attributes:
        run: takes the module and the tensors among its arguments; None where joining was not possible.
        attributes: those that it depends on, as in `Trace`.
        children: how many children the module had.
        absent: the names of those that were None.
        joined: the layers of each joined call, by name.
        chain: where there is nothing but one call of layers in turn: for each an activation or its name.
        overwriting: the layers whose input is read again, which they must write to if they have `inplace=True`.
        reason: why it could not be traced, or None.
    """

    run: Callable[..., Any] | None
    attributes: tuple[tuple[str, str, Any], ...] = ()
    children: int = 0
    absent: tuple[str, ...] = ()
    joined: tuple[tuple[str, ...], ...] = ()
    chain: tuple[Activation | str, ...] | None = None
    overwriting: tuple[str, ...] = ()
    reason: str | None = None

    def fits(self, module: torch.nn.Module) -> bool:
        """Whether the module is still what it was when it was traced."""
        children = module._modules
        return (
            len(children) == self.children
            and (not self.attributes or all(_has(module, *each) for each in self.attributes))
            and (not self.absent or all(children.get(name) is None for name in self.absent))
        )


def _has(module: torch.nn.Module, path: str, name: str, value: Any) -> bool:
    found = (module.get_submodule(path) if path else module).__dict__.get(name)
    return found is value or (type(found) is list and type(value) is tuple and tuple(found) == value)


@functools.cache
def joined_class(kind: Any) -> type:
    """A class like `kind` whose forward runs joined: it is traced once for each structure of its arguments.

    What cannot be traced, other arguments than tensors and constants, and torch.compile run the forward of `kind`.
    """

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return kind.forward(self, *args, **kwargs)
        given = None if kwargs else _tensors_alone(args, self.training)
        tensors, key = _split(args, kwargs, self.training) if given is None else given
        programs = self.__dict__.get(_PROGRAMS)
        program = None if programs is None else programs.get(key)
        if program is None or not program.fits(self):
            program = _prepare(self, key, args, kwargs)
        if program.run is None:
            return kind.forward(self, *args, **kwargs)
        recorded = call_module(self, program.run, key, tensors)
        return program.run(self, *tensors) if recorded is None else recorded

    body = {"__module__": kind.__module__, "forward": forward, "__reduce_ex__": _reduce, "_joined_from": kind}
    body |= {"_steps": _steps, "_forward_of": _forward_of}
    return type(kind.__name__, (kind,), body)


class _Forward(NamedTuple):
    """What a module with a joined forward depends on besides its children, as `tinynet.nn.dependencies` takes it.

    Attributes:
        programs: by the structure of the arguments.
        attributes: (the name of a module within, "" for itself; an attribute that they depend on; its value).
    """

    programs: dict[Any, Program]
    attributes: list[tuple[str, str, Any]]

    def is_unchanged(self, module: torch.nn.Module) -> bool:
        return all(program.fits(module) for program in self.programs.values())

    def give(self, module: torch.nn.Module) -> None:
        for path, name, value in self.attributes:
            module.get_submodule(path).__dict__[name] = value
        module.__dict__[_PROGRAMS] = dict(self.programs)


def _forward_of(module: Any) -> _Forward | None:
    """What the module's forward depends on; None where that can change without being replaced."""
    programs = {key: each for key, each in module.__dict__.get(_PROGRAMS, {}).items() if each.fits(module)}
    if any(program.run is None for program in programs.values()):
        return None
    read = [each for program in programs.values() for each in program.attributes]
    if not all(is_constant(value) for _, _, value in read):
        return None
    return _Forward(programs, read)


def _steps(module: Any) -> list[Any] | None:
    """What a module calls in turn where it is given one tensor; None where that is not all, or not known yet."""
    programs = module.__dict__.get(_PROGRAMS)
    program = None if programs is None else programs.get((module.training, None))
    if program is None or program.chain is None or not program.fits(module):
        return None
    return [module.get_submodule(step) if type(step) is str else step for step in program.chain]


def separate(module: torch.nn.Module) -> None:
    """Gives a module with a joined forward its own class back."""
    module.__class__ = getattr(type(module), "_joined_from", type(module))
    module.__dict__.pop(_PROGRAMS, None)


_PROGRAMS = "_programs"  # the attribute that holds a module's programs


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    """How such a module is copied and pickled: its class is derived again, and its forward traced again."""
    state: Any
    _, _, state, *rest = object.__reduce_ex__(module, protocol)
    return _new, (type(module)._joined_from,), {k: v for k, v in state.items() if k != _PROGRAMS}, *rest


def _new(kind: type) -> Any:
    return object.__new__(joined_class(kind))


def _prepare(module: torch.nn.Module, key: Any, args: Any, kwargs: Any) -> Program:
    """The program for arguments like these."""
    programs = module.__dict__.setdefault(_PROGRAMS, {})
    if key is None or len(programs) >= _MOST_PROGRAMS:
        return Program(None)
    program = programs[key] = _program(module, *tree_flatten((args, kwargs)))
    return program


def program_for_tensors(module: torch.nn.Module) -> Program:
    """The program of a call with one tensor for each argument that has no default."""
    own = signature(type(module).forward.__get__(module)).parameters.values()
    count = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in own)
    return _program(module, *tree_flatten(((SLOT,) * count, {})))


def _tensors_alone(args: Any, training: bool) -> tuple[list[Any], Any] | None:
    """What `_split` finds, in less time, for tensors and for lists and tuples of them; None for other arguments."""
    tensors: list[Any] = []
    structure: list[Any] = [training]
    for arg in args:
        kind = type(arg)
        if kind in _TENSORS:
            tensors.append(arg)
            structure.append(None)
        elif (kind is list or kind is tuple) and all(type(x) in _TENSORS for x in arg):
            tensors += arg
            structure.append((kind, len(arg)))
        else:
            return None
    return tensors, tuple(structure)


def _split(args: Any, kwargs: Any, training: bool) -> tuple[list[Any], Any]:
    """The tensors of a call, and a key of all else; None for the key where there is something that cannot be traced."""
    leaves, spec = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if type(leaf) in _TENSORS]
    others = [leaf for leaf in leaves if type(leaf) not in _TENSORS]
    if any(type(other) not in _CONSTANTS for other in others):
        return tensors, None
    kinds = tuple(SLOT if type(leaf) in _TENSORS else (type(leaf), leaf) for leaf in leaves)
    return tensors, (training, kinds, spec)


def _program(module: torch.nn.Module, leaves: list[Any], spec: TreeSpec) -> Program:
    places = [SLOT if type(leaf) in _TENSORS else leaf for leaf in leaves]
    children = module._modules
    absent = tuple(name for name, child in children.items() if child is None)
    try:
        graph, attributes = trace(module, places, spec)
        again = overwriting(graph, module)
        joined, is_rewritten = join(graph, module)
        run = _compiled(graph) if is_rewritten or only_computes(module) else None
        return Program(run, tuple(attributes), len(children), absent, tuple(joined), chain_of(graph), again)
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}: {text[:150]}"
        return Program(None, (), len(children), absent, reason=reason)


def only_computes(module: torch.nn.Module) -> bool:
    """Whether the module is of a package whose forwards have no effects that tracing would lose, such as printing."""
    return type(module).__module__.startswith(("torchvision.", "timm."))


def _compiled(graph: Any) -> Callable[..., Any]:
    """The function that torch.fx writes for a graph."""
    graph.lint()
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(code.src, scope)
    return scope["forward"]

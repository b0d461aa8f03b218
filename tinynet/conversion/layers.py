"""Replacing layers: a layer becomes its twin by changing its class, which keeps everything else as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized

from tinynet import nn
from tinynet.conversion.wrappers import wrapper_of
from tinynet_kernels.activation_spec import IDENTITY

# torch.nn's layers and tinynet's of the same name. Sequences are replaced only to join their layers.
_NAMES = [n for n in nn.__all__ if getattr(getattr(nn, n), "__module__", "").startswith("tinynet.nn.")]
TWINS: dict[type, type] = {getattr(torch.nn, n): getattr(nn, n) for n in _NAMES if n != "Sequential"}
_ORIGINALS = {twin: original for original, twin in TWINS.items()} | {nn.Sequential: torch.nn.Sequential}
_SHARED = {getattr(nn, n) for n in nn.__all__ if isinstance(getattr(nn, n), type)} - set(_ORIGINALS)
# What tinynet's layers have beyond torch.nn's, with the value that changes nothing.
_ADDED: dict[str, Any] = {"activation": IDENTITY, "pool": 1, "recompute": False}
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONVOLUTIONS = (*(torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Conv3d, torch.nn.ConvTranspose3d),)

Subclasses = bool | Sequence[type[torch.nn.Module]]


def replaceable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The model and its modules by name, without those within a module that reads their weights itself."""
    within: list[str] = []
    for name, module in model.named_modules():
        if not any(name.startswith(prefix) for prefix in within):
            yield name, module
            if isinstance(module, torch.nn.MultiheadAttention | torch.jit.ScriptModule):
                within.append(f"{name}." if name else "")


def replace(module: torch.nn.Module, subclasses: Subclasses) -> str | None:
    """Gives the module the class of its twin, if it has one; returns why not if it is a layer and stays as it is."""
    kind = class_of(module)
    twin, attributes = TWINS.get(kind), {}
    if twin is None:
        wrapper = wrapper_of(module)
        if wrapper is not None:
            twin, attributes = wrapper
            module.__dict__["_replaced_class"] = kind
        else:
            twin = _adopted_for(kind, subclasses)
    if twin is None:
        return _reason_of_class(kind)
    reason = _reason_to_leave(module)
    if reason is not None:
        module.__dict__.pop("_replaced_class", None)
        return reason
    parameters = signature(twin).parameters
    added = {name: value for name, value in _ADDED.items() if name in parameters}
    module.__dict__.update(added | attributes)
    become(module, twin)
    return None


def restore(module: Any) -> str | None:
    """Gives a layer of tinynet torch.nn's class; returns why not if it stays as it is."""
    kind = class_of(module)
    own = module.__dict__
    original = own.get("_replaced_class") or getattr(kind, "_adopted_from", (None,))[0] or _ORIGINALS.get(kind)
    if original is None:
        return None
    if "_replaced_class" not in own and any(own.get(name, value) != value for name, value in _ADDED.items()):
        given = ", ".join(f"{name}={own[name]}" for name, value in _ADDED.items() if own.get(name, value) != value)
        return f"torch.nn has no counterpart of {given}"
    for name in (*_ADDED, "_replaced_class"):
        own.pop(name, None)
    become(module, original)
    if own.pop("_reordered", False):
        module.weight.data = _in_format(module.weight.data, torch.contiguous_format)
    return None


def class_of(module: torch.nn.Module) -> type:
    """The module's class, or for a parametrized one the class that was parametrized."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def become(module: torch.nn.Module, kind: type) -> None:
    """Changes the module's class; the properties that a parametrization has put into the old one are kept."""
    if is_parametrized(module):
        properties = {
            name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")
        }
        kind = type(type(module).__name__, (kind,), properties)
    module.__class__ = kind


def reorder(module: torch.nn.Module) -> None:
    """Puts a convolution's weight into channels_last memory, where it is an ordinary tensor of its own.

    A weight of one tap or of one input channel has both orders in memory. Its strides say which one outputs get.
    """
    weight = module._parameters.get("weight")
    if not isinstance(module, _CONVOLUTIONS) or type(weight) is not torch.nn.Parameter or weight.is_shared():
        return
    if weight.layout is torch.strided and weight.dim() in _FORMATS:
        ordered = _in_format(weight.data, _FORMATS[weight.dim()])
        if ordered.stride() != weight.stride():
            weight.data = ordered
            module.__dict__["_reordered"] = True


def _in_format(x: torch.Tensor, memory: torch.memory_format) -> torch.Tensor:
    """x in this order of memory, a copy if need be, with the strides that a new tensor in it would have."""
    strides = torch.empty(x.shape, device="meta", memory_format=memory).stride()
    return x.contiguous(memory_format=memory).as_strided(x.shape, strides)


def _reason_of_class(kind: type) -> str | None:
    """Why a module of this class has no twin; None for tinynet's own layers and modules that are no layers."""
    if kind in _ORIGINALS or kind in _SHARED or hasattr(kind, "_adopted_from") or issubclass(kind, torch.nn.Sequential):
        return None
    for base in kind.__mro__[1:]:
        if base in TWINS:
            return f"{kind.__name__} is a subclass of {base.__name__}; `subclasses=` replaces those"
    if kind.__module__.startswith(("torch.nn.modules.", "torch.ao.nn.", "torch.jit.")):
        return f"tinynet.nn has no {kind.__name__}"
    return None


def _reason_to_leave(module: Any) -> str | None:
    """Why tinynet's layer of this class cannot do what this one does."""
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if getattr(module, "sparse", False):
        return "sparse gradients"
    if any(tensor.is_complex() for tensor in module.parameters(recurse=False)):
        return "complex parameters"
    return None


def _adopted_for(kind: type, subclasses: Subclasses) -> type | None:
    """For a subclass of torch.nn's layer that is asked for, the same subclass of tinynet's; else None."""
    asked = subclasses is True or (not isinstance(subclasses, bool) and issubclass(kind, tuple(subclasses)))
    twin = next((TWINS[base] for base in kind.__mro__[1:] if base in TWINS), None)
    if not asked or twin is None or kind in _ORIGINALS or hasattr(kind, "_adopted_from"):
        return None
    return _adopted(kind, twin) if issubclass(twin, _ORIGINALS[twin]) else None


@cache
def _adopted(kind: type, twin: type) -> type:
    """`kind` with `twin` between it and its base, so that its `super()` calls reach tinynet's layer."""
    body = {"__module__": kind.__module__, "__reduce_ex__": _reduce, "_adopted_from": (kind, twin)}
    return type(kind.__name__, (kind, twin), body)


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    """How such a layer is copied and pickled: its class cannot be imported, but derived again."""
    return _new, type(module)._adopted_from, *object.__reduce_ex__(module, protocol)[2:]


def _new(kind: type, twin: type) -> Any:
    return object.__new__(_adopted(kind, twin))


def is_sequence(module: torch.nn.Module) -> bool:
    """Whether the module is a torch.nn.Sequential, or of a subclass that has no forward of its own."""
    return (
        isinstance(module, torch.nn.Sequential)
        and type(module).forward is torch.nn.Sequential.forward
        and "forward" not in module.__dict__
    )


def join_sequence(module: torch.nn.Module) -> None:
    """Lets a sequence fuse its layers, as `nn.Sequential` does."""
    if type(module) is torch.nn.Sequential:
        module.__class__ = nn.Sequential
    else:
        module.__class__ = _adopted(type(module), nn.Sequential)

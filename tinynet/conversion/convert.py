"""From torch.nn to tinynet.nn and back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import FunctionType
from typing import TypeVar

import torch

from tinynet.conversion.forward import Program, joined_class, only_computes, program_for_tensors, separate
from tinynet.conversion.joins import RESIDUAL
from tinynet.conversion.layers import (
    Subclasses,
    class_of,
    is_sequence,
    join_sequence,
    reorder,
    replace,
    replaceable,
    restore,
)
from tinynet.conversion.report import Report
from tinynet.conversion.runs import joinable_runs

M = TypeVar("M", bound=torch.nn.Module)


def convert(
    model: M,
    fuse: bool = True,
    channels_last: bool = True,
    verbose: bool = True,
    *,
    inplace: bool = True,
    subclasses: Subclasses = False,
) -> M:
    """Has tinynet compute a model written in torch.nn.

    Every layer of torch.nn that tinynet.nn has too changes its class, and nothing else: parameters, buffers, hooks,
    names, devices, dtypes, training flags, shared weights and parametrizations are the same objects as before, so an
    optimizer made before goes on working and state_dict loads in both directions. A layer with `inplace=True` no longer
    writes to its input, except where the model's own code is seen to read that input again.

    Args:
        model: any module. Models of tinynet.nn may be parts of it.
        fuse: whether to join neighboring layers into one kernel: a linear layer or convolution and an activation, a
            convolution and batch normalization, a normalization and an activation, an addition and a normalization.
            The forward of each module that has children, and of each module of torchvision and timm, is traced by
            torch.fx for this, for training and evaluation separately; where that fails, its layers are called one by
            one. Modules keep their own hooks. On CPUs, traced modules are recorded, and run without Python in between.
        channels_last: whether to put the weights of convolutions into channels_last memory, the fastest for
            convolutions; the outputs are then channels_last too.
        verbose: whether to print the report.
        inplace: whether to convert the model itself, or else a deep copy.
        subclasses: whether to replace layers of classes derived from torch.nn's too, or a sequence of such classes.
            What they override stays, and calls tinynet's layer in `super()`. Wrappers in torchvision and timm that only
            add an activation or permute dimensions are always replaced.

    Returns:
        The model; its attribute `conversion` is a `Report` of what was replaced, left (and why) and joined.

    Raises:
        TypeError: model is no module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> model = tinynet.convert(model)
        replaced 2 layers: 1 Linear, 1 ReLU
        joined the layers of 1 calls, such as 0 + 1
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    model = model if inplace else copy.deepcopy(model)
    report = Report()
    for name, module in replaceable(model):
        before = class_of(module)
        reason = replace(module, subclasses)
        if reason is not None:
            report.left[name] = reason
        elif class_of(module) is not before:
            report.replaced[name] = before.__name__
            if channels_last:
                reorder(module)
    if fuse:
        _join(model, report)
    model.__dict__["conversion"] = report
    if verbose:
        print(report)
    return model


def revert(model: M, verbose: bool = True, *, inplace: bool = True) -> M:
    """Gives torch.nn's model back: undoes `convert`, and replaces layers of tinynet.nn by torch.nn's.

    Args:
        model: a module with layers of tinynet.nn. Those with `activation=`, `pool=` or `recompute=` of their own stay.
        verbose: whether to print the report.
        inplace: whether to change the model itself, or else a deep copy.

    Returns:
        The model, with the same parameters; its attribute `conversion` is a `Report`.

    Raises:
        TypeError: model is no module.

    Example:
        >>> model = tinynet.revert(tinynet.nn.Sequential(tinynet.nn.Linear(3, 4)))
        replaced 2 layers: 1 Sequential, 1 Linear
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"revert: model must be a torch.nn.Module, got {type(model).__name__}")
    model = model if inplace else copy.deepcopy(model)
    report = Report()
    for name, module in model.named_modules():
        separate(module)
        before = class_of(module)
        reason = restore(module)
        if reason is not None:
            report.left[name] = reason
        elif class_of(module) is not before:
            report.replaced[name] = before.__name__
    model.__dict__["conversion"] = report
    if verbose:
        print(report)
    return model


def _join(model: torch.nn.Module, report: Report) -> None:
    """Joins the layers of every module of a model."""
    modules = dict(replaceable(model))
    for module in modules.values():
        separate(module)
        if is_sequence(module):
            join_sequence(module)
    for name, module in reversed(modules.items()):  # what a module calls comes first
        if type(module).forward is torch.nn.Sequential.forward or isinstance(module, torch.nn.Sequential):
            continue
        if _is_traceable(module):
            _join_forward(name, module, report)
    report.not_traced = dict(reversed(report.not_traced.items()))
    for name, module in modules.items():
        inside = isinstance(modules.get(name.rpartition(".")[0]), torch.nn.Sequential) and name
        if isinstance(module, torch.nn.Sequential) and not inside:
            children = [(key, child) for key, child in module.named_children()]
            report.joined += [_qualified(name, run) for run in joinable_runs(children)]
    report.joined = _longest(report.joined)


def _is_traceable(module: torch.nn.Module) -> bool:
    """Whether a module has a forward of its own that calls children, or may be part of a recording of what calls it."""
    forward = type(module).forward
    return (
        isinstance(forward, FunctionType)
        and forward is not torch.nn.Module.forward
        and (any(child is not None for child in module._modules.values()) or only_computes(module))
        and not type(module).__module__.startswith(("torch.", "tinynet."))
        and "forward" not in module.__dict__
        and not isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule)
    )


def _join_forward(name: str, module: torch.nn.Module, report: Report) -> None:
    """Gives a module a joined forward, if there is something to join in training or evaluation."""
    programs = list(_programs(module))
    named = {f"{name}.{layer}" if name else layer: layer for program in programs for layer in program.overwriting}
    overwriting = named.keys() & report.replaced.keys()
    for layer in overwriting:
        restore(module.get_submodule(named[layer]))
        del report.replaced[layer]
        report.left[layer] = "it writes to an input that is read again"
    if overwriting:
        programs = list(_programs(module))
    reasons = [program.reason for program in programs if program.reason is not None]
    if len(reasons) == len(programs) and module._modules:
        report.not_traced[name] = reasons[0]
    joined = max((program.joined for program in programs), key=len)
    if any(program.run is not None for program in programs):
        module.__class__ = joined_class(type(module))
        report.joined[:0] = [_qualified(name, run) for run in joined]


def _programs(module: torch.nn.Module) -> Iterator[Program]:
    """What the module's forward computes in training and in evaluation."""
    before = module.training
    for training in (True, False):
        module.training = training
        try:
            yield program_for_tensors(module)
        finally:
            module.training = before


def _qualified(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of layers within the model, of names within one of its modules."""
    return tuple(f"{prefix}.{n}" if prefix and n != RESIDUAL and not n.endswith("()") else n for n in names)


def _longest(runs: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those that are no part of another: a sequence may be part of a longer one."""
    found: list[tuple[str, ...]] = []
    for run in sorted(runs, key=len, reverse=True):
        if not any(set(run) <= set(other) for other in found):
            found.append(run)
    return found

"""Runs of layers whose launches are recorded on a CPU, and then run without Python between them.

For small layers, the work of the host takes longer than the kernels. The third call of layers in a row with inputs of
the same shapes, strides and dtypes records what they launch, forward and backward (`tinynet.graphs.recorded`). Later
calls run the recording, unless something has changed that the layers depend on. In all other cases, and while something
watches launches or operators, the layers are called one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_, itemgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tinynet.dispatch import KERNEL_DTYPES, Route, is_plain_eager, route_of_plain
from tinynet.graphs.errors import GraphError
from tinynet.nn.joins import BATCH_NORMS, COMPUTING_LAYERS, CONVOLUTIONS, LAYERS, Added, Step, call_joined, is_plain
from tinynet.ops.arguments import autocast_dtype
from tinynet_engines import offline
from tinynet_kernels.activation_spec import Activation

_FIRST_CALLS = 2  # of one form are not recorded: they compile the kernels
_MOST_CONVOLUTIONS = 4  # of one run: the backward frees what the forward left when it has computed all gradients
_MOST_ELEMENTS = 1 << 22  # of an input; with more the kernels take so long that the host's time does not count
_MOST_FORMS = 16  # of the inputs of one run, and how often one of them is recorded
_TENSORS = (Tensor, torch.nn.Parameter)
# Hooks and tensors, which are looked at in every call.
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module())) - {"training"}


class _Layer(NamedTuple):
    """What the call of a layer depends on, besides the values and forms of its tensors.

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


class _Run(NamedTuple):
    """A recorded run of layers.

    Attributes:
        steps: for each a `_Layer`, an activation, or `Added`.
        operands: what each tensor is like.
        recorded: takes them.
    """

    steps: list[Any]
    operands: list[Any]
    recorded: Any


class _Form:
    """What is known of the calls of a run with an input of one form."""

    def __init__(self) -> None:
        self.calls = 0
        self.recordings_left = _MOST_FORMS
        self.run: _Run | None = None


# By the first layer of a run, and what the inputs are like.
_forms: WeakKeyDictionary[Any, dict[tuple[Any, ...], _Form]] = WeakKeyDictionary()


def call_in_turn(steps: Sequence[Step], x: Any) -> Any:
    """The last step's output, the first step's input being x; see `call_joined`, which computes the same.

    Args:
        steps: modules, activations and additions.
        x: the first step's input.
    """
    if not _may_record(x):
        return call_joined(steps, x)
    position = 0
    while position < len(steps):
        end = _end_of_run(steps, position)
        run = steps[position:end]
        y = _call_recorded(run, x) if _is_worth_recording(run) and type(x) in _TENSORS else None
        x, position = call_joined(run, x) if y is None else y, end
    return x


def _may_record(x: Any) -> bool:
    """Whether launches on x can be recorded, and nothing watches them or the operators around them."""
    if type(x) not in _TENSORS or not x.is_cpu or x.dtype not in KERNEL_DTYPES or x.numel() > _MOST_ELEMENTS:
        return False
    if torch.compiler.is_compiling() or offline.is_inspecting():
        return False
    if not is_plain_eager(x) or autocast_dtype(x) is not None or route_of_plain(x) is not Route.KERNELS:
        return False
    from tinynet.graphs.recorded import is_recordable  # not at import: it needs Triton

    return is_recordable()


def _end_of_run(steps: Sequence[Step], start: int) -> int:
    """The position after the layers from `start` on that one recording may hold, or after one step that none holds."""
    convolutions, position = 0, start
    while position < len(steps) and (type(steps[position]) in LAYERS or type(steps[position]) in (Activation, Added)):
        if type(steps[position]) in CONVOLUTIONS:
            convolutions += 1
            if convolutions > _MOST_CONVOLUTIONS:
                break
        position += 1
    return max(position, start + 1)


def _is_worth_recording(run: Sequence[Step]) -> bool:
    """Whether a run begins with a layer and computes two steps or more."""
    computing = sum(type(step) in COMPUTING_LAYERS or type(step) in (Activation, Added) for step in run)
    return computing > 1 and type(run[0]) in LAYERS


def _call_recorded(steps: Sequence[Any], x: Tensor) -> Tensor | None:
    """The last step's output, by a recording; None where there is none."""
    from tinynet.graphs.recorded import settings  # not at import, as above

    key = (
        *(len(steps), x.shape, x.stride(), x.dtype, x.requires_grad, torch.is_grad_enabled(), steps[0].training),
        *settings(),
    )
    forms = _forms.setdefault(steps[0], {})
    form = forms.get(key)
    if form is None:
        if len(forms) == _MOST_FORMS:
            return None
        form = forms[key] = _Form()
    form.calls += 1
    if form.calls <= _FIRST_CALLS or not form.recordings_left or not all(map(_runs_only_itself, steps)):
        return None
    inputs, others = _operands(steps, x)
    operands = inputs + others
    if not is_plain_eager(*operands):
        return None
    run = form.run
    if run is None or not _is_unchanged(run, steps, operands):
        run = form.run = _recorded(steps, inputs, others)
        form.recordings_left = 0 if run is None else form.recordings_left - 1
    return None if run is None else run.recorded(operands)


def _runs_only_itself(step: Any) -> bool:
    return type(step) is Activation or type(step) is Added or is_plain(step)


def _operands(steps: Sequence[Any], x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
    """The inputs of steps, and the layers' own tensors."""
    inputs: list[Tensor] = [x]
    others: list[Tensor | None] = []
    for step in steps:
        if type(step) is Added:
            inputs.append(step.tensor)
        elif type(step) is not Activation:
            others += step._parameters.values()
            others += step._buffers.values()
    return inputs, others


def _is_unchanged(run: _Run, steps: Sequence[Any], operands: Sequence[Tensor | None]) -> bool:
    """Whether the layers do what they did, on tensors like the recorded ones."""
    return all(map(_is_same, steps, run.steps)) and list(map(_like, operands)) == run.operands


def _is_same(step: Any, known: Any) -> bool:
    if type(known) is not _Layer:
        return type(step) is Added if known is Added else step == known
    if type(step) is not known.kind:
        return False
    own = step.__dict__
    return len(own) == known.count and all(map(is_, known.select(own), known.values))


def _like(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, tensor.is_cpu


def _recorded(steps: Sequence[Any], inputs: list[Tensor], others: list[Tensor | None]) -> _Run | None:
    """The steps recorded; None where they do something that a recording would miss."""
    from tinynet.graphs.recorded import record

    known = [_described(step) for step in steps]
    if None in known:
        return None

    def run(x: Tensor, *added: Tensor) -> Tensor:
        remaining = iter(added)
        return call_joined([Added(next(remaining)) if type(step) is Added else step for step in steps], x)

    try:
        recorded = record(run, inputs, others, partial(_reference, known))
    except (GraphError, RuntimeError):  # such as an operator of PyTorch's, or a kernel without a plan
        return None
    return _Run(known, [_like(each) for each in (*inputs, *others)], recorded)


def _described(step: Any) -> Any:
    """What a recording remembers of a step; None where it has attributes that can change without being replaced."""
    if type(step) is Activation:
        return step
    if type(step) is Added:
        return Added
    own = step.__dict__
    names = [name for name in own if name not in _OF_EVERY_MODULE]
    if not all(_is_constant(own[name]) or (name.startswith("_") and type(own[name]) is list) for name in names):
        return None
    select = itemgetter(*names, names[0])  # of one name alone it would return no tuple
    return _Layer(type(step), len(own), select, select(own), names, list(step._parameters), list(step._buffers))


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, bool | int | float | str | type | torch.dtype | Activation)


def _reference(known: Sequence[Any], x: Tensor, *operands: Tensor | None) -> Tensor:
    """The same steps as a function of all operands, which can be differentiated twice. No statistics are updated."""
    count = sum(each is Added for each in known)
    added, others = iter(operands[:count]), iter(operands[count:])
    steps: list[Any] = []
    for each in known:
        if type(each) is not _Layer:
            steps.append(Added(next(added)) if each is Added else each)  # pyright: ignore[reportArgumentType]
            continue
        layer: Any = object.__new__(each.kind)
        torch.nn.Module.__init__(layer)
        layer._parameters.update((name, next(others)) for name in each.parameters)
        layer._buffers.update((name, next(others)) for name in each.buffers)
        layer.__dict__.update(zip(each.names, each.values, strict=False))
        if each.kind in BATCH_NORMS and layer.training:
            layer.track_running_stats = False
        steps.append(layer)
    return call_joined(steps, x)

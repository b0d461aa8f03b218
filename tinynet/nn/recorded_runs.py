"""Modules whose launches are recorded on a CPU, and then run without Python between them.

For small layers, the work of the host takes longer than the kernels. The third call of layers in a row, or of a
converted module, with inputs of the same shapes, strides and dtypes records what it launches, forward and backward
(`tinynet.graphs.recorded`). Later calls run the recording, unless something has changed that the modules depend on
(`tinynet.nn.dependencies`). In all other cases, and while something watches launches or operators, the modules are
called as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tinynet.dispatch import KERNEL_DTYPES, Route, is_plain_eager, route_of_plain
from tinynet.graphs.errors import TooLargeError
from tinynet.nn.dependencies import Known, is_parent, is_same, nodes_of, noted, rebuilt, runs_only_itself, tensors_of
from tinynet.nn.joins import COMPUTING_LAYERS, CONVOLUTIONS, LAYERS, Added, Step, call_joined
from tinynet.nn.linear import Linear
from tinynet.ops.arguments import autocast_dtype
from tinynet_engines import offline
from tinynet_kernels.activation_spec import Activation

_FIRST_CALLS = 2  # of one form are not recorded: they compile the kernels
_MOST_ELEMENTS = 1 << 22  # of an input; with more the kernels take so long that the host's time does not count
# Bytes that a forward leaves to its backward, which frees them when it has computed all gradients. The C library's
# allocator takes larger blocks from the system, and gives them back, each time.
_MOST_SAVED = 1 << 25
_MOST_ALLOCATED = 8 * _MOST_SAVED  # by a forward: recording holds all of it
_MOST_FORMS = 16  # of the inputs of one run, and how often one of them is recorded
_MOST_RUNS = 4  # of one form: a model whose parameters are frozen in every other step has two
_ANY_NUMBER = 1 << 30
_TENSORS = (Tensor, torch.nn.Parameter)


class _Run(NamedTuple):
    """A recorded run.

    Attributes:
        steps: how many there are.
        nodes: what they depend on.
        operands: what each tensor is like.
        recorded: takes them.
    """

    steps: int
    nodes: list[Known]
    operands: list[Any]
    recorded: Any


class _Form:
    """What is known of the calls that begin with one module and an input of one form.

    Attributes:
        calls: how many there were.
        recordings_left: how often a call may still be recorded.
        most_steps: of a recorded run; with more, the forward leaves too much.
        takes_modules: whether a recorded run may have steps that are no layers.
        runs: recordings, the last used first.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.recordings_left = _MOST_FORMS
        self.most_steps = _ANY_NUMBER
        self.takes_modules = True
        self.runs: list[_Run] = []

    def is_shortened(self) -> bool:
        return self.most_steps < _ANY_NUMBER

    def is_ready(self) -> bool:
        """Whether a recording may serve this call, which is counted."""
        self.calls += 1
        return self.calls > _FIRST_CALLS and self.recordings_left > 0


# By the first module of a run, and what the inputs are like.
_forms: WeakKeyDictionary[Any, dict[tuple[Any, ...], _Form]] = WeakKeyDictionary()


def call_in_turn(steps: Sequence[Step], x: Any) -> Any:
    """The last step's output, the first step's input being x; see `call_joined`, which computes the same.

    Args:
        steps: modules, activations and additions.
        x: the first step's input.
    """
    if not _may_record(x):
        return call_joined(steps, x)
    position = calls = 0
    while position < len(steps):
        first: Any = steps[position]
        form = None
        if type(x) in _TENSORS and (type(first) in LAYERS or is_parent(first)):
            form = _form_of(first, (None, first.training), (x,))
        y, end = None, position + 1
        if form is not None:
            form.calls = max(form.calls, calls)
            y, end = _call_part(steps, position, form, x)
        x, position = call_joined(steps[position:end], x) if y is None else y, end
        # What follows a run that was shortened was a part of it, and called as often.
        calls = form.calls - 1 if form is not None and form.is_shortened() else 0
    return x


def _call_part(steps: Sequence[Step], start: int, form: _Form, x: Tensor) -> tuple[Tensor | None, int]:
    """The output of the steps from `start` on that one recording may hold, and the position after them.

    The output is None where there is no recording.
    """
    is_ready = form.is_ready()
    while True:
        end = start + form.runs[0].steps if form.runs else _end_of_run(steps, start, form)
        run = steps[start:end]
        if not is_ready or not (form.runs or _is_worth_recording(run)):
            return None, end
        y = _call_recorded(form, run, x)
        is_too_long = len(run) > form.most_steps and form.recordings_left > 0
        if y is not None or not is_too_long:
            return y, end


def call_module(module: Any, run: Callable[..., Any], structure: Any, inputs: Sequence[Any]) -> Tensor | None:
    """A converted module's output, by a recording; None where there is none.

    Args:
        module: whose forward this is.
        run: takes a module like it and the inputs, and computes the output.
        structure: of the arguments that the inputs are part of.
        inputs: all tensors among them.
    """
    if not inputs or not all(map(_may_record, inputs)):
        return None
    form = _form_of(module, structure, inputs)
    if form is None or not form.is_ready():
        return None
    nodes = nodes_of((module,))
    if not all(map(runs_only_itself, nodes[1:])):  # hooks of the module itself are called around its forward
        return None
    if not form.runs and sum(map(_computes, nodes)) < 2:
        form.recordings_left = 0
        return None
    reference = partial(_module_from_tensors, run, len(inputs))
    return _run_recorded(form, (module,), nodes, list(inputs), partial(run, module), reference)


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


def _form_of(first: Any, structure: Any, inputs: Sequence[Tensor]) -> _Form | None:
    """What is known of such calls; None where there are too many others."""
    from tinynet.graphs.recorded import settings  # not at import, as above

    like = [(x.shape, x.stride(), x.dtype, x.requires_grad) for x in inputs]
    key = structure, *like, torch.is_grad_enabled(), *settings()
    forms = _forms.setdefault(first, {})
    form = forms.get(key)
    if form is None and len(forms) < _MOST_FORMS:
        form = forms[key] = _Form()
    return form


def _end_of_run(steps: Sequence[Any], start: int, form: _Form) -> int:
    """The position after the steps from `start` on that one recording may hold, or after one step that none holds."""
    end = start
    while end < len(steps) and _may_be_part(steps[end], form):
        end += 1
    if end - start > form.most_steps:
        end = start + form.most_steps
        while end > start + 1 and not _begins(steps[end]):
            end -= 1
    return max(end, start + 1)


def _may_be_part(step: Any, form: _Form) -> bool:
    kind = type(step)
    return kind in LAYERS or kind in (Activation, Added) or (form.takes_modules and is_parent(step))


def _begins(step: Any) -> bool:
    """Whether no call joins a step with the ones before it."""
    return type(step) in (Linear, *CONVOLUTIONS) or is_parent(step)


def _is_worth_recording(run: Sequence[Step]) -> bool:
    """Whether a run computes two steps or more."""
    return len(run) > 1 and sum(_computes(step) or is_parent(step) for step in run) > 1


def _computes(node: Any) -> bool:
    return type(node) in COMPUTING_LAYERS or type(node) in (Activation, Added)


def _call_recorded(form: _Form, steps: Sequence[Any], x: Tensor) -> Tensor | None:
    """The last step's output, by a recording; None where there is none."""
    nodes = nodes_of(steps)
    if not all(map(runs_only_itself, nodes)):
        return None
    inputs = [x, *[step.tensor for step in steps if type(step) is Added]]

    def run(x: Tensor, *added: Tensor) -> Tensor:
        remaining = iter(added)
        return call_joined([Added(next(remaining)) if type(step) is Added else step for step in steps], x)

    reference = partial(_steps_from_tensors, len(inputs))
    return _run_recorded(form, steps, nodes, inputs, run, reference)


def _run_recorded(
    form: _Form,
    steps: Sequence[Any],
    nodes: Sequence[Any],
    inputs: list[Tensor],
    function: Callable[..., Any],
    reference: Callable[..., Tensor],
) -> Tensor | None:
    """The function's output, by a recording, which is made if need be; None where there is none.

    Args:
        form: of the call.
        steps: what the function calls in turn, or the one module that it is the forward of.
        nodes: these and what they call.
        inputs: what it takes.
        function: what is recorded.
        reference: the same, of what was noted of the nodes, the inputs and the nodes' tensors.
    """
    operands = inputs + tensors_of(nodes)
    if not is_plain_eager(*operands):
        return None
    run = next((run for run in form.runs if _is_unchanged(run, nodes, operands)), None)
    if run is None:
        form.recordings_left -= 1
        try:
            run = _recorded(len(steps), nodes, inputs, operands, function, reference)
        except TooLargeError:
            run, excess = None, 2.0
        else:
            excess = 1.0 if run is None else run.recorded.size_of_saved() / _MOST_SAVED
        if run is None or excess > 1:
            form.runs = []
            _shorten(form, steps, excess)
            return None
    if not form.runs or run is not form.runs[0]:
        form.runs = [run, *(each for each in form.runs if each is not run)][:_MOST_RUNS]
    return run.recorded(operands)


def _is_unchanged(run: _Run, nodes: Sequence[Any], operands: Sequence[Tensor | None]) -> bool:
    """Whether the nodes do what they did, on tensors like the recorded ones."""
    return (
        len(nodes) == len(run.nodes)
        and all(map(is_same, nodes, run.nodes))
        and list(map(_like, operands)) == run.operands
    )


def _like(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, tensor.is_cpu


def _recorded(
    steps: int,
    nodes: Sequence[Any],
    inputs: list[Tensor],
    operands: list[Any],
    function: Callable[..., Any],
    reference: Callable[..., Tensor],
) -> _Run | None:
    """The function recorded; None where it does something that a recording would miss.

    Raises:
        TooLargeError: it allocates too much memory.
    """
    from tinynet.graphs.recorded import record

    known = noted(nodes)
    if known is None:
        return None
    try:
        recorded = record(function, inputs, operands[len(inputs) :], partial(reference, known), _MOST_ALLOCATED)
    except TooLargeError:
        raise
    except Exception:  # an operator that can't be recorded, a kernel without a plan, or an error of the function itself
        return None
    return _Run(steps, known, list(map(_like, operands)), recorded)


def _shorten(form: _Form, steps: Sequence[Any], excess: float) -> None:
    """Lets later runs have fewer steps, or none.

    Args:
        form: of the calls.
        steps: of the run that could not be recorded.
        excess: how many times more it leaves or allocates than a run may; 1 if that is not the reason.
    """
    if len(steps) == 1:
        form.recordings_left = 0
    elif excess > 1:
        form.most_steps = min(int(len(steps) / excess), len(steps) - 1)
    elif any(map(is_parent, steps)):
        form.takes_modules = False
    else:
        form.recordings_left = 0


def _steps_from_tensors(count: int, known: Sequence[Known], x: Tensor, *operands: Tensor | None) -> Tensor:
    """Steps as a function of all their tensors, which can be differentiated twice: `count` inputs, and the others."""
    return call_joined(rebuilt(known, iter(operands[: count - 1]), iter(operands[count - 1 :])), x)


def _module_from_tensors(
    run: Callable[..., Any], count: int, known: Sequence[Known], *operands: Tensor | None
) -> Tensor:
    """A converted module's forward as such a function."""
    (module,) = rebuilt(known, iter(()), iter(operands[count:]))
    return run(module, *operands[:count])

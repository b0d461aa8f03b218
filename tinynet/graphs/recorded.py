"""A function of tensors, recorded once with its gradients, and run again on other tensors without Python in between.

Unlike a graph (`tinynet.graphed`), which owns its memory, a recorded function allocates memory in every call, as the
calls that it stands for do: results and gradients belong to the caller, and several forwards may precede a backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.random import fork_rng
from torch.utils._python_dispatch import _disable_current_modes
from triton import knobs

from tinynet.dispatch import own_mode
from tinynet.graphs.errors import GraphError
from tinynet.graphs.memory import Lifetime, arranged
from tinynet.graphs.tensors import address_of
from tinynet.graphs.watch import Watch
from tinynet.ops.arguments import is_dense
from tinynet.ops.autograd import EagerFunction, gradients_of, held, hold, through_kernels
from tinynet_engines.cpu.memory import LARGE, memory_span, prefer_huge_pages
from tinynet_engines.cpu.recording import LaunchRecorder, RecordedLaunch
from tinynet_engines.cpu.relocation import (
    Call,
    LocatedLaunch,
    LocatedTensor,
    Location,
    Program,
    empty_strided,
)
from tinynet_kernels import launch, replays
from tinynet_kernels.conv.winograd.tiles import asks_for_full_precision

_top_saved_tensors_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore
Operands = Sequence[Tensor | None]
Memories = Sequence[Tensor | None]
# The numbers of a program's memories. Behind the operands a backward has the upstream gradient, and one for each
# memory that holds gradients.
_SAVED, _SCRATCH, _RESULT, _OPERANDS = range(4)


class Form(NamedTuple):
    """What a tensor without values is like."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    is_large: bool

    @staticmethod
    def of(tensor: Tensor) -> Form:
        return Form(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.nbytes >= LARGE)

    @staticmethod
    def of_bytes(size: int) -> Form | None:
        """A tensor of so many bytes, or a few more; None for none."""
        return Form((-(-size // 4),), (1,), torch.float32, size >= LARGE) if size else None

    def empty(self) -> Tensor:
        tensor = empty_strided(self.shape, self.stride, self.dtype)
        if self.is_large:
            prefer_huge_pages((0,), (tensor,))
        return tensor


def is_recordable() -> bool:
    """Whether launches can be recorded now, and nothing watches them or what autograd saves."""
    if launch.planner is None or launch.observers or launch.recorders or profiler._is_profiler_enabled:
        return False
    runtime: Any = knobs.runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    if runtime.debug or any(getattr(hook, "calls", hook) for hook in hooks):
        return False
    return _top_saved_tensors_hooks(False) is None


def settings() -> tuple[int, bool]:
    """What launchers decide by, besides their operands: the number of threads, and whether precision counts most."""
    return torch.get_num_threads(), asks_for_full_precision()


class Recorded:
    """A function of tensors, and its gradients, as programs of the CPU engine.

    Attributes:
        reference: the same function in operators that can be differentiated twice.
        forward: its program.
        saved: the memory that the backward reads besides results and operands; None if it reads none.
        scratch: the memory that only the forward uses.
        result: what it returns.
        written: the positions of operands that it writes to.
        fills: (position of an operand, what changes it after each forward).
        draws: whether the forward draws random numbers.
        backward: None where no operand requires a gradient.
    """

    def __init__(self, recording: _Recording, reference: Callable[..., Tensor]) -> None:
        self.reference = reference
        self.result = Form.of(recording.result)
        self.written = recording.written_operands()
        self.fills = recording.fills
        self.draws = recording.draws or recording.watch.draws
        middle = recording.middle
        later = recording.lifetimes(range(middle, len(recording.items)))
        now = recording.lifetimes(range(middle))
        result = address_of(recording.result)
        saved = {memory: life for memory, life in now.items() if memory in later and memory != result}
        scratch = {memory: life for memory, life in now.items() if memory not in later and memory != result}
        where = {result: Location(_RESULT, 0)}
        self.saved = _place(where, _SAVED, {memory: Lifetime(life.size, 0, 0) for memory, life in saved.items()})
        before = dict(where)
        self.scratch = _place(where, _SCRATCH, scratch)
        self.forward = recording.program(range(middle), where)
        self.backward = _Backward(recording, before, later) if recording.wanted else None
        self.shared = recording.shared()

    def size_of_saved(self) -> int:
        """The bytes that the forward leaves to the backward, besides its result."""
        return 0 if self.saved is None else 4 * self.saved.shape[0]

    def __call__(self, operands: Operands) -> Tensor:
        """The function's result, with its history where gradients are needed."""
        if self.backward is not None:
            return _RecordedFunction.run(self, *operands)
        return self.run(operands)[0]

    def run(self, operands: Operands) -> tuple[Tensor, Tensor | None]:
        """The result, and the memory that the backward reads."""
        saved, scratch, result = _empty(self.saved), _empty(self.scratch), self.result.empty()
        self.forward.run((saved, scratch, result, *operands))
        for position, fill in self.fills:
            fill(operands[position])
        if self.written:
            torch.autograd.graph.increment_version([operands[n] for n in self.written])  # pyright: ignore
        return result, saved


class _Backward:
    """The gradients of a recorded function.

    Attributes:
        program: of the backward.
        scratch: the memory that only it uses.
        upstream: what the upstream gradient is like.
        reads_result: whether it reads the forward's result.
        reads: the positions of the operands that it reads.
        gradients: one for each operand: None, where it lies, or the number of the memory that it is.
        memories: those that hold gradients.
    """

    def __init__(self, recording: _Recording, where: dict[int, Location], lifetimes: dict[int, Lifetime]) -> None:
        count = len(recording.operands)
        self.count = count
        where = where | {address_of(recording.upstream): Location(_OPERANDS + count, 0)}
        self.upstream = Form.of(recording.upstream)
        self.memories: list[Form | None] = []
        for gradient in recording.gradients.values():
            memory = address_of(gradient)
            if memory in where and where[memory].base < _OPERANDS:
                raise GraphError("recorded: a gradient is a part of what the forward computed")
            if memory not in where:
                if not recording.is_own(memory):
                    raise GraphError("recorded: a gradient lies in memory that the backward did not allocate")
                where[memory] = Location(_OPERANDS + count + 1 + len(self.memories), 0)
                form, size = Form.of(gradient), gradient.untyped_storage().nbytes()
                is_whole = gradient.nbytes == size and is_dense(gradient)
                self.memories.append(form if is_whole else Form.of_bytes(size))
        own = {memory: life for memory, life in lifetimes.items() if memory not in where}
        self.scratch = _place(where, _SCRATCH, own)
        self.program = recording.program(range(recording.middle, len(recording.items)), where)
        found = recording.gradients
        self.gradients = [self._place_of(found[n], recording, where) if n in found else None for n in range(count)]
        used = self.program.bases
        self.reads_result = _RESULT in used
        self.reads = [n for n in range(count) if _OPERANDS + n in used]

    def run(self, saved: Tensor | None, result: Tensor | None, read: Operands, upstream: Tensor) -> list[Tensor | None]:
        """One gradient for each operand; None where it requires none."""
        if upstream.stride() != self.upstream.stride:
            upstream = self.upstream.empty().copy_(upstream)
        operands: list[Tensor | None] = [None] * self.count
        for position, tensor in zip(self.reads, read, strict=True):
            operands[position] = tensor
        own = map(_empty, self.memories)
        memories = saved, _empty(self.scratch), result, *operands, upstream, *own
        self.program.run(memories)
        return [
            each.of(memories) if isinstance(each, LocatedTensor) else None if each is None else memories[each]
            for each in self.gradients
        ]

    def _place_of(self, gradient: Tensor, recording: _Recording, where: dict[int, Location]) -> LocatedTensor | int:
        located = recording.located(gradient, where)
        base, offset = located.location
        first = _OPERANDS + self.count
        whole = self.upstream if base == first else self.memories[base - first - 1]
        return base if offset == 0 and Form.of(gradient) == whole else located


def _in_pytorch(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:
    reference = ctx.recorded.reference
    if ctx.random_state is not None:
        reference = partial(_with_the_same_numbers, ctx.random_state, reference)
    return None, *gradients_of(reference, held(ctx.given), ctx.needs_input_grad[1:], (grad,))


def _with_the_same_numbers(state: Tensor, function: Callable[..., Tensor], *operands: Tensor | None) -> Tensor:
    """The function's result with random numbers drawn from this state.

    It is computed in a thread of its own: in this one, vmap may refuse to draw numbers.
    """
    with fork_rng(devices=[]), ThreadPoolExecutor(1) as thread:
        torch.set_rng_state(state)
        return thread.submit(function, *operands).result()


class _RecordedFunction(EagerFunction):
    @staticmethod
    def forward(ctx: Any, recorded: Recorded, *operands: Tensor | None) -> Tensor:
        ctx.random_state = torch.get_rng_state() if recorded.draws else None  # for derivatives of the same numbers
        result, saved = recorded.run(operands)
        backward = recorded.backward
        assert backward is not None
        kept = result if backward.reads_result else None
        ctx.save_for_backward(saved, kept, *[operands[n] for n in backward.reads])
        ctx.given = hold(*[None if n in recorded.written else each for n, each in enumerate(operands)])
        ctx.recorded = recorded
        return result

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, result, *read = ctx.saved_tensors
        return None, *ctx.recorded.backward.run(saved, result, read, grad)


def record(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    parameters: Operands,
    reference: Callable[..., Tensor],
    most_bytes: float = math.inf,
) -> Recorded:
    """Records a function of tensors on the CPU, and its gradients where autograd records. No kernel runs.

    Args:
        function: takes tensors like the inputs; returns one tensor.
        inputs: whose values are not read.
        parameters: other tensors that it may read or write, which no two share memory; None for absent ones.
        reference: takes tensors like the inputs and the parameters; returns the same as `function`.
        most_bytes: that the function may allocate.

    Returns:
        What takes the inputs and the parameters, or others like them, and returns what `function` would.

    Raises:
        TooLargeError: it allocates more.
        GraphError: the function does something that a run of the recording would miss.
    """
    return Recorded(_Recording(function, inputs, parameters, most_bytes), reference)


class _Call(NamedTuple):
    """A call of a function between launches, where the numbers, if there are some, are not all zero."""

    function: Callable[..., object]
    operands: list[Any]
    unless_zero: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [each for each in (self.unless_zero, *self.operands) if isinstance(each, Tensor)]


class _Recording:
    """Records one call of a function and of its backward; it is what `replays` calls the recorder.

    Attributes:
        operands: the inputs, with memory of their own, and the parameters.
        items: launches and calls in order; those from `middle` on are the backward's.
        result: what the function returned.
        wanted: the positions of operands that require a gradient.
        upstream: the result's gradient.
        gradients: by position.
        fills: as in `Recorded`.
        draws: whether kernels are given random numbers.
        watch: knows what was allocated.
    """

    def __init__(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor], parameters: Operands, most_bytes: float
    ) -> None:
        given = [Form.of(each).empty().requires_grad_(each.requires_grad) for each in inputs]
        self.operands: list[Tensor | None] = [*given, *parameters]
        self.spans = [None if each is None else memory_span(each) for each in self.operands]
        _refuse_shared_memory(self.spans)
        self.items: list[RecordedLaunch | _Call] = []
        self.fills: list[tuple[int, Callable[..., object]]] = []
        self.draws = False
        self.written: set[int] = set()
        self.launches = LaunchRecorder(self._watch_launch)
        self.watch = Watch(self.on_host, self._place, computes=True)
        self.gradients: dict[int, Tensor] = {}
        with self._active():
            self.watch.bytes_left = most_bytes
            self.result = function(*given)
            self.watch.bytes_left = math.inf
            self._take_launches()
            self.middle = len(self.items)
            self._check_result()
            if any(position < len(given) for position in self.written_operands()):
                raise GraphError("recorded: the function writes to an input")
            numbered = enumerate(self.operands if torch.is_grad_enabled() and self.result.requires_grad else ())
            self.wanted = [n for n, each in numbered if each is not None and each.requires_grad]
            if self.wanted:
                self._record_backward()
        self.result = self.result.detach()

    def _record_backward(self) -> None:
        with _disable_current_modes():
            self.upstream = Form.of(self.result).empty()
        wanted: Any = [self.operands[n] for n in self.wanted]
        gradients = torch.autograd.grad(self.result, wanted, self.upstream, allow_unused=True)
        self._take_launches()
        self.gradients = {n: each for n, each in zip(self.wanted, gradients, strict=True) if each is not None}

    @contextmanager
    def _active(self) -> Iterator[None]:
        with self.launches.active(), replays.recording(self), own_mode(self.watch), fork_rng(devices=[]):
            yield

    def _take_launches(self) -> None:
        """Moves the launches recorded so far to `items`."""
        for item in self.launches.items:
            assert isinstance(item, RecordedLaunch)
            self.items.append(item)
        self.launches.items.clear()

    def _watch_launch(self, tensors: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.watch.hold(tensor)
        self.watch.written(written)
        self.written.update(tensor.data_ptr() for tensor in written)

    def on_host(self, action: Callable[..., object], *operands: Any) -> None:
        self._take_launches()
        self.items.append(_Call(action, _detached(operands)))

    def fill(self, tensor: Tensor, fill: Callable[..., object], *operands: Tensor | None) -> None:
        position = next((n for n, each in enumerate(self.operands) if each is tensor), None)
        if position is None or operands:
            self.draws = True
            self.watch.written((tensor,))
            self.on_host(fill, tensor, *operands)
        else:
            self.fills.append((position, fill))

    def unless_zero(self, numbers: Tensor, again: Callable[..., object], *operands: Tensor | None) -> None:
        self._take_launches()
        self.items.append(_Call(again, _detached(operands), numbers.detach()))

    def upload(self, tensor: Tensor, values: Tensor) -> None:
        raise AssertionError("values for the CPU need no upload")

    def constant(self, tensor: Tensor) -> None:
        self.watch.constant(tensor)

    def _place(self) -> Callable[..., None]:
        return _refuse

    def _check_result(self) -> None:
        result: Any = self.result
        if type(result) is not Tensor or not is_dense(result):
            raise GraphError("recorded: the function returns no dense tensor")
        if not self.is_own(address_of(result)) or result.nbytes != result.untyped_storage().nbytes():
            raise GraphError("recorded: the result is a part of other memory")

    def is_own(self, memory: int) -> bool:
        """Whether each run has memory of its own in this one's place."""
        return memory in self.watch.allocated and not self.watch.is_constant(memory)

    def written_operands(self) -> list[int]:
        """The positions of operands that launches write to."""
        spans = enumerate(self.spans)
        return [n for n, span in spans if span and any(span[0] <= address < span[1] for address in self.written)]

    def shared(self) -> list[torch.UntypedStorage]:
        """The memory that all runs use, which must be kept alive."""
        own = {address_of(each) for each in self.operands if each is not None}
        others = [storage for address, storage in self.watch.others.items() if address not in own]
        return [*others, *(each for address, each in self.watch.allocated.items() if self.watch.is_constant(address))]

    def lifetimes(self, places: Iterable[int]) -> dict[int, Lifetime]:
        """How long each memory that was allocated is used by the items at these places."""
        found: dict[int, Lifetime] = {}
        for place in places:
            for memory in self._memories_of(self.items[place]):
                if self.is_own(memory):
                    first = found[memory].first if memory in found else place
                    found[memory] = Lifetime(self.watch.allocated[memory].nbytes(), first, place)
        return found

    def _memories_of(self, item: RecordedLaunch | _Call) -> list[int]:
        if isinstance(item, RecordedLaunch):
            return [pointer.memory for pointer in item.pointers]
        return [address_of(each) for each in item.tensors()]

    def program(self, places: Iterable[int], where: dict[int, Location]) -> Program:
        """The items at these places, given where each memory lies."""
        steps: list[LocatedLaunch | Call] = []
        for place in places:
            item = self.items[place]
            if isinstance(item, RecordedLaunch):
                locations = [self._location(pointer.address, pointer.memory, where) for pointer in item.pointers]
                steps.append(LocatedLaunch(item, locations))
            else:
                steps.append(self._call(item, where))
        return Program(steps)

    def _call(self, call: _Call, where: dict[int, Location]) -> Call:
        operands = [self._located_or_same(each, where) if isinstance(each, Tensor) else each for each in call.operands]
        numbers = None if call.unless_zero is None else self.located(call.unless_zero, where)
        return Call(call.function, operands, numbers)

    def _located_or_same(self, tensor: Tensor, where: dict[int, Location]) -> LocatedTensor | Tensor:
        location = self._location(tensor.data_ptr(), address_of(tensor), where)
        if location is None:
            return tensor
        return LocatedTensor(location, tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def located(self, tensor: Tensor, where: dict[int, Location]) -> LocatedTensor:
        """Where a tensor lies that the function or its backward has computed."""
        located = self._located_or_same(tensor, where)
        assert isinstance(located, LocatedTensor)
        return located

    def _location(self, address: int, memory: int, where: dict[int, Location]) -> Location | None:
        """Where an address lies; None for constants and for memory that each run shares."""
        if memory in where:
            return Location(where[memory].base, where[memory].offset + address - memory)
        for position, span in enumerate(self.spans):
            if span is not None and span[0] <= address < span[1]:
                return Location(_OPERANDS + position, address - span[0])
        return None


def _detached(operands: Sequence[Any]) -> list[Any]:
    return [each.detach() if isinstance(each, Tensor) else each for each in operands]


def _refuse(*_: Any) -> None:
    raise GraphError("recorded: the function writes to a constant")


def _refuse_shared_memory(spans: Sequence[tuple[int, int] | None]) -> None:
    ordered = sorted(span for span in spans if span is not None)
    if any(start < end for (_, end), (start, _) in pairwise(ordered)):
        raise GraphError("recorded: two operands share memory")


def _place(where: dict[int, Location], base: int, lifetimes: dict[int, Lifetime]) -> Form | None:
    """Gives each memory its place in the one with this number, which it returns; None if there is none."""
    offsets, size = arranged(list(lifetimes.values()))
    where |= {memory: Location(base, offset) for memory, offset in zip(lifetimes, offsets, strict=True)}
    return Form.of_bytes(size)


def _empty(form: Form | None) -> Tensor | None:
    return None if form is None else form.empty()

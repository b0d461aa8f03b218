"""Steps recorded on the CPU engine: a list of launches that calls of C replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinynet.dispatch import own_mode
from tinynet.graphs.errors import GraphError
from tinynet.graphs.tensors import address_of, detached, flattened, gradients
from tinynet.graphs.watch import Watch
from tinynet_engines.cpu.recording import LaunchRecorder
from tinynet_kernels import replays

_references: Callable[[int], int] = torch._C._storage_Use_Count  # pyright: ignore[reportAttributeAccessIssue]


class CPURecorder:
    """See `tinynet_kernels.replays.Recorder`."""

    def __init__(self) -> None:
        self.launches = LaunchRecorder(self._watch_launch)
        self.watch = Watch(self.on_host, self.place)
        self.operands: list[Tensor] = []  # of actions of the host

    def on_host(self, action: Callable[..., object], *operands: Any) -> None:
        self.place()(action, *operands)

    def place(self) -> Callable[..., None]:
        """Keeps a place among the launches; the function returned puts an action of the host there."""
        place = self.launches.place()

        def put(action: Callable[..., object], *operands: Any) -> None:
            held = [each.detach() if isinstance(each, Tensor) else each for each in operands]  # not what computed them
            self.operands += [each for each in held if isinstance(each, Tensor)]
            place.function = partial(action, *held)

        return put

    def fill(self, tensor: Tensor, fill: Callable[..., object], *operands: Tensor | None) -> None:
        self.watch.written((tensor,))
        self.on_host(fill, tensor, *operands)

    def unless_zero(self, numbers: Tensor, again: Callable[..., object], *operands: Tensor | None) -> None:
        self.on_host(partial(replays.call_unless_zero, again), numbers, *operands)

    def upload(self, tensor: Tensor, values: Tensor) -> None:
        raise AssertionError("values for the CPU need no upload")

    def constant(self, tensor: Tensor) -> None:
        self.watch.constant(tensor)

    def _watch_launch(self, tensors: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.watch.hold(tensor)
        self.watch.written(written)


class CPUGraph:
    """A recorded step.

    Args:
        step: the step, a function without arguments.

    Attributes:
        outputs: what the step returned, detached; each replay writes to its tensors.

    Raises:
        GraphError: the step does something that a replay would miss.
    """

    def __init__(self, step: Callable[[], Any]) -> None:
        recorder = CPURecorder()
        with recorder.launches.active(), replays.recording(recorder), own_mode(recorder.watch):
            self.outputs = detached(step())
        self._memory = recorder.watch
        self._recording = recorder.launches.recording()
        self._gradients = [(leaf, grad) for leaf, grad in gradients() if address_of(grad) in self._memory.allocated]
        self._check_memory(recorder.operands)

    def replay(self) -> None:
        """Runs the step again."""
        for leaf, gradient in self._gradients:  # another step may have replaced them
            leaf.grad = gradient
        self._recording.replay()

    def _check_memory(self, operands: Iterable[Tensor]) -> None:
        """Refuses a step that keeps tensors of its own from one call to the next."""
        kept = [gradient for _, gradient in self._gradients]
        allowed = {address_of(tensor) for tensor in (*flattened(self.outputs)[0], *kept) if isinstance(tensor, Tensor)}
        ours = Counter(address_of(operand) for operand in operands)
        for address, storage in self._memory.allocated.items():
            references = _references(storage._cdata) - 1 - ours[address]
            if references > 0 and address not in allowed and not self._memory.is_constant(address):
                raise GraphError(
                    f"graphed: the step keeps a tensor of {storage.nbytes()} bytes that it computed, which a replay "
                    "would not replace: return it from the step instead"
                )

"""Steps recorded on a GPU: CUDA graphs, with the host's work between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinynet.graphs.tensors import detached, gradients
from tinynet_kernels import replays


class CUDARecorder:
    """See `tinynet_kernels.replays.Recorder`. Each action of the host ends a graph and begins the next one.

    Args:
        pool: the memory that all graphs share.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.steps: list[Callable[[], object]] = []
        self.uploads: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Begins a graph."""
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self.pool)

    def end(self) -> None:
        """Ends the graph."""
        self._graph.capture_end()
        self.steps.append(self._graph.replay)

    def on_host(self, action: Callable[..., object], *operands: Tensor | None) -> None:
        self.end()
        self.steps.append(partial(action, *operands))
        self.begin()

    def fill(self, tensor: Tensor, fill: Callable[..., object], *operands: Tensor | None) -> None:
        fill(tensor, *operands)  # a graph holds PyTorch's kernels too, and draws new random numbers in each replay

    def unless_zero(self, numbers: Tensor, again: Callable[..., object], *operands: Tensor | None) -> None:
        self.on_host(partial(replays.call_unless_zero, again), numbers, *operands)

    def upload(self, tensor: Tensor, values: Tensor) -> None:
        self.uploads.append((tensor, values))

    def constant(self, tensor: Tensor) -> None:
        pass  # the host reads what it likes on the CPU


class CUDAGraph:
    """A recorded step, as `tinynet.graphs.cpu.CPUGraph`.

    Args:
        step: the step, a function without arguments.
        warm: the stream that the step has run on before.
    """

    def __init__(self, step: Callable[[], Any], warm: torch.cuda.Stream) -> None:
        recorder = CUDARecorder(torch.cuda.graph_pool_handle())
        before = {id(leaf): gradient for leaf, gradient in gradients()}
        torch.cuda.synchronize()
        with torch.cuda.stream(warm), replays.recording(recorder, every_thread=True):
            recorder.begin()
            try:
                self.outputs = detached(step())
            finally:
                recorder.end()
        torch.cuda.current_stream().wait_stream(warm)
        for tensor, values in recorder.uploads:
            tensor.copy_(values)
        self._steps = recorder.steps
        self._gradients = [(leaf, gradient) for leaf, gradient in gradients() if before.get(id(leaf)) is not gradient]

    def replay(self) -> None:
        """Runs the step again."""
        for leaf, gradient in self._gradients:  # another step may have replaced them
            leaf.grad = gradient
        for step in self._steps:
            step()

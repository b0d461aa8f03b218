"""`tinynet.graphed`: a whole step, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinynet.dispatch import unavailable_reason
from tinynet.graphs.errors import GraphError
from tinynet.graphs.tensors import flattened, unflattened

if TYPE_CHECKING:
    from tinynet.graphs.cpu import CPUGraph
    from tinynet.graphs.cuda import CUDAGraph


class Graphed:
    """A recorded step; see `graphed`.

    Attributes:
        inputs: the tensors that the step reads, in the structure of its arguments. A call copies its arguments to them;
            it skips the copy of a tensor that is the same one.
        outputs: what each call returns.
    """

    def __init__(self, step: Callable[..., Any], *example_inputs: Any, warmup: int = 3) -> None:
        leaves, self._structure = flattened(example_inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors:
            raise ValueError(
                "graphed: example_inputs hold no tensor; expected the tensors that the step is called with"
            )
        device = tensors[0].device
        if any(tensor.device != device for tensor in tensors):
            raise ValueError("graphed: example_inputs are on several devices; expected one")
        reason = unavailable_reason(device.type) or _reason_against_recording(device)
        if reason is not None:
            raise GraphError(f"graphed: no kernel can be recorded: {reason}")
        if any(tensor.requires_grad and not tensor.is_leaf for tensor in tensors):
            raise ValueError("graphed: an example input is part of an autograd graph; expected detached tensors")
        self._leaves = [_own(leaf) for leaf in leaves]
        self.inputs = unflattened(self._leaves, self._structure)
        self._graph = _record(lambda: step(*self.inputs), device, warmup)
        self.outputs = self._graph.outputs

    def __call__(self, *inputs: Any) -> Any:
        """Runs the step on other inputs of the same shapes and dtypes, and returns its outputs.

        The tensors returned are the same each time, overwritten by the next call.

        Raises:
            GraphError: an input is not what was recorded.
        """
        leaves, structure = flattened(inputs)
        if structure != self._structure:
            raise GraphError(f"graphed: got inputs of structure {structure}; expected {self._structure} as recorded")
        for index, (own, given) in enumerate(zip(self._leaves, leaves, strict=True)):
            _check(index, own, given)
        with torch.no_grad():
            for own, given in zip(self._leaves, leaves, strict=True):
                if own is not given and isinstance(own, Tensor):
                    own.copy_(given)
        self._graph.replay()
        return self.outputs


def graphed(step: Callable[..., Any], *example_inputs: Any, warmup: int = 3) -> Graphed:
    """Records a step once and returns a function that replays it, without Python between its launches.

    A step is whatever launches the same kernels each time: an inference, or a forward, a backward and the optimizer's
    update. On a GPU it becomes CUDA graphs; on the CPU engine a list of launches that C runs. Inputs are copied to
    tensors of the graph, outputs are its tensors.

    The optimizers of `tinynet.optim` run on the host in each replay, at their place, so that learning rates, schedules
    and counts of steps are what they are without a graph. Dropout draws new elements. Everything else in Python happens
    once, while recording: call schedulers, and count and print, outside of the step.

    Args:
        step: called with tensors of the shapes of `example_inputs`.
        example_inputs: tensors and packed sequences, or lists, tuples and dicts of them, all on one device. Other
            values, and the lengths of packed sequences, must be the same in each call.
        warmup: how many times the step runs before it is recorded, for kernels to be compiled. These are ordinary
            steps: an optimizer moves the parameters. 0 where the caller has taken some.

    Returns:
        A function of inputs like `example_inputs`, which returns what the step returns.

    Raises:
        GraphError: no kernel can run on the device, or the step does what a replay would miss. On the CPU: a
            computation of PyTorch's own between the launches, a value read on the host, a tensor kept for the next
            step. Recording runs no kernel, so nothing was changed.
        ValueError: the inputs hold no tensor, or tensors on several devices.

    Source: torch.cuda.make_graphed_callables; Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs".

    Example:
        >>> model = tinynet.nn.Linear(8, 2)
        >>> optimizer = tinynet.optim.SGD(model.parameters(), lr=0.1)
        >>> def step(x, labels):
        ...     optimizer.zero_grad()
        ...     loss = tinynet.functional.cross_entropy(model(x), labels)
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> fast = tinynet.graphed(step, torch.randn(4, 8), torch.tensor([0, 1, 1, 0]))
        >>> loss = fast(torch.randn(4, 8), torch.tensor([1, 1, 0, 0]))
    """
    return Graphed(step, *example_inputs, warmup=warmup)


def _reason_against_recording(device: torch.device) -> str | None:
    from tinynet_kernels.launch import INTERPRETED

    if INTERPRETED:
        return "Triton's interpreter is active"
    return None if device.type in ("cpu", "cuda") else f"the tensors are on {device.type!r}; expected cpu or cuda"


def _own(leaf: Any) -> Any:
    """A tensor of the graph's own, like an input."""
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _check(index: int, own: Any, given: Any) -> None:
    if not isinstance(own, Tensor):
        if type(own) is not type(given) or own != given:
            raise GraphError(f"graphed: input {index}: got {given!r}; expected {own!r} as recorded")
    elif not isinstance(given, Tensor):
        raise GraphError(f"graphed: input {index}: got {type(given).__name__}; expected a tensor")
    elif (own.shape, own.dtype) != (given.shape, given.dtype):
        raise GraphError(
            f"graphed: input {index}: got {given.dtype} of shape {tuple(given.shape)}; expected {own.dtype} of shape "
            f"{tuple(own.shape)} as recorded"
        )


def _record(step: Callable[[], Any], device: torch.device, warmup: int) -> CPUGraph | CUDAGraph:
    if device.type != "cuda":
        from tinynet.graphs.cpu import CPUGraph

        for _ in range(warmup):
            step()
        return CPUGraph(step)
    from tinynet.graphs.cuda import CUDAGraph

    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warmup):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        return CUDAGraph(step, stream)

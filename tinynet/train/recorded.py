"""Training steps that are recorded and replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tinynet.graphs import Graphed, graphed

STEPS_BEFORE = 2  # of a shape, until its steps are recorded: kernels are compiled and states created
MOST_SHAPES = 4


class RecordedSteps:
    """A training step, recorded for each shape of a batch that comes again (`tinynet.graphed`).

    Batches of a rare shape, and packed sequences, are trained on without a recording.

    Args:
        step: takes inputs and targets, and returns tensors.
    """

    def __init__(self, step: Callable[[Any, Tensor], Any]) -> None:
        self.step = step
        self._seen: Counter[Any] = Counter()
        self._recorded: dict[Any, Graphed] = {}

    def __call__(self, inputs: Any, targets: Tensor) -> Any:
        if not isinstance(inputs, Tensor):
            return self.step(inputs, targets)
        shape = inputs.shape, inputs.dtype, targets.shape, targets.dtype
        recorded = self._recorded.get(shape)
        if recorded is None:
            self._seen[shape] += 1
            if self._seen[shape] <= STEPS_BEFORE or len(self._recorded) == MOST_SHAPES:
                return self.step(inputs, targets)
            recorded = self._recorded[shape] = graphed(self.step, inputs, targets, warmup=0)
        return recorded(inputs, targets)

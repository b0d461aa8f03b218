"""What grows with a problem's sizes is the first axis of a grid: on NVIDIA GPUs the others hold 65,535 programs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from tinynet_kernels import activation, dropout, elementwise, embedding, embedding_bag, layout, linear, prelu, upsample
from tinynet_kernels.activation_spec import IDENTITY
from tinynet_kernels.launch import Problem
from tinynet_kernels.recurrent import layer, step
from tinynet_kernels.tiles import Target

GPU = Target("cuda", 90, 132, 227 << 10)
FAR = 1 << 30
MOST = 65_535


def recurrent_step(batch: int) -> Problem:
    call: Any = SimpleNamespace(batch=batch, directions=2, dtype=torch.float32, target=GPU, steps=3, spec=None)
    return layer._Call.step_problem(call, step.gru_step_forward_kernel, 512, 512)


# Of rows and columns.
PROBLEMS: dict[str, Callable[[int, int], Any]] = {
    "activation_backward": lambda rows, columns: activation._backward_problem(
        rows, columns, columns, IDENTITY, True, GPU
    ),
    "elementwise": lambda rows, columns: elementwise._problem(None, rows, columns, (columns,) * 5, GPU),
    "prelu": lambda rows, columns: prelu._problem((1, rows, columns), GPU),
    "channel_dropout": lambda rows, columns: dropout._channel_problem(1, rows, columns, False, dropout.Scale(1.0), GPU),
    "embedding_forward": lambda rows, columns: embedding._forward_problem(rows, columns, columns, GPU),
    "embedding_backward": lambda rows, columns: embedding._backward_problem(rows, columns, rows, None, False),
    "embedding_bag_forward": lambda rows, columns: embedding_bag._forward_problem(rows, columns, columns, None, GPU),
    "embedding_bag_factor_gradient": lambda rows, columns: embedding_bag._gradient_problem(
        rows, columns, rows, columns, None, GPU
    ),
    "upsample": lambda rows, columns: upsample._problem(
        True, 1, 1, (rows, columns), (rows, columns), (), False, False, GPU
    ),
    "transpose": lambda rows, columns: layout._transpose_problem(1, rows, columns, GPU),
    "linear_forward": lambda rows, columns: linear.linear_forward_problem(
        (rows, columns, 64), (64, 1), (64, 1), torch.bfloat16, "ieee", IDENTITY, GPU
    ),
    "recurrent_step": lambda rows, columns: recurrent_step(rows),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("rows", "columns"), [(FAR, 3), (3, FAR)])
def test_only_the_first_axis_grows(name: str, rows: int, columns: int) -> None:
    first, *others = PROBLEMS[name](rows, columns).grid
    assert first < 1 << 31
    assert all(programs <= MOST for programs in others), (first, *others)

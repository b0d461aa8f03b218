"""torch.profiler shows every kernel by its name, with the shapes of its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import counted_launches
from torch.profiler import ProfilerActivity, profile

from tinynet import nn

pytestmark = pytest.mark.kernels


def test_kernels_by_name_and_shape(device: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, activation="relu"), nn.Flatten(), nn.Linear(45, 7)).to(device)
    x = torch.randn(9, 3, 5, 5, device=device)
    model(x).sum().backward()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled, counted_launches() as launches:
        model(x).sum().backward()
    events: list[Any] = [event for event in profiled.events() or [] if event.name.endswith("_kernel")]
    assert [event.name for event in events] == launches
    assert not {"linear_weight_gradient_kernel", "linear_backward_kernel"}.isdisjoint(launches)
    forward = next(event for event in events if event.name == "linear_forward_kernel")
    assert forward.cpu_time > 0
    assert [shape for shape in forward.input_shapes if shape][:2] == [[9, 45], [7, 45]]

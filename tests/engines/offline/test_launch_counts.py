"""How many launches a GPU's training steps take."""

from __future__ import annotations

import pytest
import torch

import tinynet
import tinynet.functional as F
from tinynet import nn, optim


def launches(model: nn.Module, x: torch.Tensor, target: str) -> list[str]:
    """The kernels of the second step: the first one creates the optimizer's states."""
    optimizer = optim.Adam(model.parameters())
    labels = torch.zeros(len(x), dtype=torch.long)
    with tinynet.inspect(target) as report:
        for _ in range(2):
            first = len(report.launches)
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
    return [launch.name for launch in report.launches[first:]]


@pytest.mark.parametrize("batch", [128, 512])
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_convolutional_network_takes_18(target: str, batch: int) -> None:
    model = (
        nn.Sequential(
            *(
                nn.Conv2d(1, 32, 3, padding=1, activation="relu", pool=2),
                nn.Conv2d(32, 64, 3, padding=1, activation="relu"),
            ),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 128, activation="relu"), nn.Linear(128, 10)),
        )
        .bfloat16()
        .to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    )
    names = launches(model, torch.zeros(batch, 1, 28, 28, dtype=torch.bfloat16), target)
    assert names == [
        *("single_channel_forward_kernel", "convolution_forward_kernel"),
        *("split_product_kernel", "finish_product_kernel", "linear_forward_kernel"),
        *("cross_entropy_forward_kernel", "cross_entropy_backward_kernel"),
        *("linear_backward_kernel", "linear_backward_kernel", "transpose_kernel"),
        *("pooled_gradient_kernel", "convolution_input_gradient_kernel"),
        *("convolution_weight_gradient_boxes_kernel", "sum_two_kernel"),
        *("pooled_gradient_kernel", "convolution_weight_gradient_boxes_kernel", "sum_two_kernel"),
        "adam_kernel",
    ]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_an_mlp_takes_one_launch_for_each_layer_and_direction(target: str) -> None:
    model = nn.Sequential(
        nn.Linear(784, 256, activation="relu"), nn.Linear(256, 128, activation="relu"), nn.Linear(128, 10)
    ).to(torch.bfloat16)
    names = launches(model, torch.zeros(128, 784, dtype=torch.bfloat16), target)
    assert names == [
        *["linear_forward_kernel"] * 3,
        *("cross_entropy_forward_kernel", "cross_entropy_backward_kernel"),
        *["linear_backward_kernel"] * 3,
        "adam_kernel",
    ]

"""Reruns on one machine, with the same versions and number of threads, give the same bits: here and in a new process.

This does not hold between different tiles, numbers of threads or processors: they add in other orders.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import counted_launches
from torch import Tensor

import tinynet
from tinynet import nn

ROOT = Path(__file__).resolve().parent.parent


def pictures(channels: int) -> Tensor:
    return torch.randn(4, channels, 12, 11)


def sequences() -> Tensor:
    return torch.randn(4, 3, 7)


# A function that builds a layer and its inputs, and the kernel that adds partial sums in its backward, or in a loss.
CASES: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], Any], str]] = {
    "linear": (lambda: nn.Linear(20, 9, activation="relu"), lambda: torch.randn(61_030, 20), "sum_partials_kernel"),
    "small linear": (lambda: nn.Linear(20, 9), lambda: torch.randn(300, 20), "linear_"),
    "chain of linear": (
        lambda: nn.Sequential(nn.Linear(20, 24, activation="gelu"), nn.Linear(24, 9, activation="relu")),
        lambda: torch.randn(61_030, 20),
        "sum_partials_kernel",
    ),
    "convolution": (lambda: nn.Conv2d(16, 9, 3, 1, 1, activation="relu"), lambda: pictures(16), "sum_partials_kernel"),
    "of 3 channels": (lambda: nn.Conv2d(3, 9, 3, 1, 1, activation="relu"), lambda: pictures(3), "sum_partials_kernel"),
    "of 1 channel": (lambda: nn.Conv2d(1, 9, 3, 1, 1, activation="relu"), lambda: pictures(1), "sum_partials_kernel"),
    "depthwise": (lambda: nn.Conv2d(17, 17, 3, 1, 1, groups=17), lambda: pictures(17), "sum_partials_kernel"),
    "pooling": (
        lambda: nn.Conv2d(16, 20, 3, 1, 1, activation="relu", pool=2),
        lambda: pictures(16),
        "convolution_weight_gradient",  # of boxes or of runs
    ),
    "batch norm": (lambda: nn.BatchNorm2d(5, activation="gelu"), lambda: pictures(5), "norm_input_gradient_kernel"),
    "instance norm": (
        lambda: nn.InstanceNorm2d(5, affine=True),
        lambda: pictures(5),
        "norm_parameter_gradients_kernel",
    ),
    "max_pool2d": (lambda: nn.MaxPool2d(3, 1, 1), lambda: torch.randn(2, 3, 20, 20), "max_pool_backward_kernel"),
    "avg_pool2d": (lambda: nn.AvgPool2d(3, 1, 1), lambda: torch.randn(2, 3, 20, 20), "mean_pool_backward_kernel"),
    "adaptive_max_pool3d": (
        lambda: nn.AdaptiveMaxPool3d(3),
        lambda: torch.randn(2, 3, 5, 7, 8),
        "max_pool_backward_kernel",
    ),
    "lp_pool2d": (lambda: nn.LPPool2d(2, 3, 1), lambda: torch.randn(2, 3, 20, 20), "mean_pool_backward_kernel"),
    "cross_entropy": (
        lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda: (torch.randn(70_000, 3), torch.randint(3, (70_000,))),
        "reduce_losses_kernel",
    ),
    "nll_loss": (
        nn.NLLLoss,
        lambda: (torch.randn(70_000, 3), torch.randint(3, (70_000,))),
        "reduce_losses_kernel",
    ),
    "multi_margin_loss": (
        nn.MultiMarginLoss,
        lambda: (torch.randn(9_000, 3), torch.randint(3, (9_000,))),
        "reduce_losses_kernel",
    ),
    "multilabel_margin_loss": (
        nn.MultiLabelMarginLoss,
        lambda: (torch.randn(400, 7), torch.randint(-1, 7, (400, 7))),
        "reduce_losses_kernel",
    ),
    "cosine_embedding_loss": (
        nn.CosineEmbeddingLoss,
        lambda: (torch.randn(9_000, 3), torch.randn(9_000, 3), 2 * torch.randint(2, (9_000,)) - 1),
        "reduce_losses_kernel",
    ),
    "triplet_margin_loss": (
        nn.TripletMarginLoss,
        lambda: tuple(torch.randn(9_000, 3) for _ in range(3)),
        "reduce_losses_kernel",
    ),
    "ctc_loss": (
        lambda: nn.CTCLoss(zero_infinity=True),
        lambda: (torch.randn(20, 4, 9).log_softmax(2), *(torch.randint(1, 5, size) for size in ((4, 5), (4,), (4,)))),
        "ctc_loss_gradient_kernel",
    ),
    "mse_loss": (nn.MSELoss, lambda: (torch.randn(70_001), torch.randn(70_001)), "reduce_losses_kernel"),
    "bce_with_logits": (
        lambda: nn.BCEWithLogitsLoss(pos_weight=torch.linspace(0.5, 2, 7)),
        lambda: (torch.randn(10_001, 7), torch.rand(10_001, 7)),
        "reduce_losses_kernel",
    ),
    "LayerNorm": (lambda: nn.LayerNorm(20, activation="gelu"), lambda: torch.randn(9030, 20), "sum_partials_kernel"),
    "GroupNorm": (lambda: nn.GroupNorm(2, 16), lambda: pictures(16), "sum_partials_kernel"),
    "softmax": (lambda: nn.Softmax(1), lambda: torch.randn(70, 3000), "softmax_backward_kernel"),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(5, 0.5), lambda: pictures(16), "local_response_norm_kernel"),
    "embedding": (lambda: nn.Embedding(3, 33), lambda: torch.randint(3, (400,)), "embedding_backward_kernel"),
    "embedding_bag": (lambda: nn.EmbeddingBag(3, 33), lambda: torch.randint(3, (40, 10)), "embedding_backward_kernel"),
    "upsample": (
        lambda: nn.Upsample(scale_factor=3, mode="bilinear"),
        lambda: torch.randn(2, 3, 9, 8),
        "upsample_backward_kernel",
    ),
    "RNN": (lambda: nn.RNN(7, 12, bidirectional=True), sequences, "recurrent_weight_gradient_kernel"),
    "LSTM": (lambda: nn.LSTM(7, 12, bidirectional=True), sequences, "recurrent_weight_gradient_kernel"),
    "GRU": (lambda: nn.GRU(7, 12, bidirectional=True), sequences, "recurrent_weight_gradient_kernel"),
}
RUNS = [
    *((case, "float32") for case in CASES),
    ("linear", "bfloat16"),
    ("convolution", "bfloat16"),
    ("GRU", "bfloat16"),
]


def run(case: str, dtype: str, device: str) -> list[Tensor]:
    """A layer's output and all gradients, from the same numbers each time."""
    torch.manual_seed(0)
    make_layer, make_inputs, _ = CASES[case]
    layer, inputs = make_layer().to(device, getattr(torch, dtype)), make_inputs()
    inputs = [x.to(device) for x in (inputs if isinstance(inputs, tuple) else (inputs,))]
    inputs = [x.to(getattr(torch, dtype)).requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = layer(*inputs)
    y = outputs[0] if isinstance(outputs, tuple) else outputs
    leaves = [tensor for tensor in (*inputs, *layer.parameters()) if tensor.requires_grad]
    return [y, *torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y))]


def digests(device: str) -> dict[str, str]:
    """A checksum of each run's bits."""
    found = {}
    for case, dtype in RUNS:
        digest = hashlib.sha256()
        for tensor in run(case, dtype, device):
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        found[f"{case}, {dtype}"] = digest.hexdigest()
    return found


@pytest.mark.kernels
@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_a_rerun_gives_the_same_bits(case: str, dtype: str, device: str) -> None:
    with counted_launches() as launches:
        first = run(case, dtype, device)
    assert any(name.startswith(CASES[case][2]) for name in launches)
    for one, other in zip(first, run(case, dtype, device), strict=True):
        assert torch.equal(one, other)


@pytest.mark.kernels
def test_another_process_gives_the_same_bits(device: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, device, str(torch.get_num_threads())]
    answer = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == digests(device)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    with tinynet.engine("kernels"):
        print(json.dumps(digests(sys.argv[1])))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_neighbors_in_memory_change_no_bit_of_an_optimizer(name: str, device: torch.device) -> None:
    n = 300
    weight, gradients = torch.randn(n), torch.randn(3, n)
    results = []
    for gap in (0, 4096):
        memory = torch.zeros(2 * n + gap, device=device)
        parameter = torch.nn.Parameter(memory[:n].copy_(weight))
        parameter.grad = memory[n + gap :]
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(tinynet.optim, name)([parameter], lr=0.01, **options)
        for gradient in gradients:
            parameter.grad.copy_(gradient)
            optimizer.step()
        results.append(parameter.detach().clone())
    assert torch.equal(*results)

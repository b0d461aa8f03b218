"""Networks from `tinynet.nn` beside the same from `torch.nn`: outputs, every gradient, and 20 steps of training.

Deep networks of few channels magnify rounding: an error is allowed that PyTorch's own fp32 has, against its float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from helpers import counted_launches
from networks import NETWORKS
from torch import Tensor

from tinynet import nn, optim

pytestmark = pytest.mark.kernels

BATCH = 8


def batch(name: str, device: str) -> tuple[Tensor, Tensor]:
    side = NETWORKS[name][1]
    images = torch.randn(BATCH, 3, side, side)
    labels = torch.randint(0, 10, (BATCH, side, side) if name == "U-Net" else (BATCH,))
    return images.to(device), labels.to(device)


def build(name: str, device: str) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Ours, PyTorch's, and PyTorch's in float64, with the same parameters."""
    models = [NETWORKS[name][0](namespace).to(device) for namespace in (nn, torch.nn, torch.nn)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict(), strict=True)
    return models[0], models[1], models[2].double()


def assert_as_good(tensors: Sequence[Tensor], least: float, what: str) -> None:
    """Of ours, PyTorch's and the exact tensor: our error is at most three times PyTorch's, or `least` of the largest.

    Where all should be 0, the largest counts as 0.001.
    """
    ours, theirs, exact = tensors
    error, their_error = ((x.double() - exact).abs().max().item() for x in (ours, theirs))
    scale = max(exact.abs().max().item(), 1e-3)
    assert error <= max(3 * their_error, least * scale), f"{what}: {error:.2e}, PyTorch's {their_error:.2e}"


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients(name: str, device: str) -> None:
    torch.manual_seed(2)  # no input of a ReLU is so near 0 that rounding changes its sign
    models = build(name, device)
    images, labels = batch(name, device)
    inputs = [x.requires_grad_() for x in (images.clone(), images.clone(), images.double())]
    with counted_launches() as launches:
        outputs = [model(x) for model, x in zip(models, inputs, strict=True)]
        nn.CrossEntropyLoss()(outputs[0], labels).backward()
    assert len(launches) > 20
    for output in outputs[1:]:
        F.cross_entropy(output, labels).backward()
    assert_as_good(outputs, 1e-4, "logits")
    results = [
        [x, *(p for p in model.parameters() if p.requires_grad)] for x, model in zip(inputs, models, strict=True)
    ]
    names = ["images", *(key for key, value in models[0].named_parameters() if value.requires_grad)]
    largest = max(x.grad.abs().max().item() for x in results[2] if x.grad is not None)
    for key, *tensors in zip(names, *results, strict=True):
        gradients = [x.grad for x in tensors if x.grad is not None]
        assert len(gradients) == 3, key
        # Some gradients are sums that cancel almost entirely, as of a weight that a normalization follows.
        least = max(1e-3, 1e-5 * largest / max(gradients[2].abs().max().item(), 1e-30))
        assert_as_good(gradients, least, f"gradient of {key}")
    for key, *buffers in zip(dict(models[0].named_buffers()), *(model.buffers() for model in models), strict=True):
        assert_as_good(buffers, 1e-4, key)
    with torch.no_grad():  # statistics are no longer the initial ones
        evaluated = [model.eval()(x) for model, x in zip(models, inputs, strict=True)]
    assert_as_good(evaluated, 1e-4, "logits in evaluation")


@pytest.mark.parametrize("name", NETWORKS)
def test_training_follows_pytorchs(name: str, device: str) -> None:
    torch.manual_seed(1)
    models = build(name, device)
    images, labels = batch(name, device)
    losses = []
    for position, model in enumerate(models):
        library = optim if position == 0 else torch.optim
        criterion = nn.CrossEntropyLoss() if position == 0 else F.cross_entropy
        optimizer = library.SGD(model.parameters(), lr=0.001)  # one ReLU of other sign must not decide
        x = images.double() if position == 2 else images
        values = []
        for _ in range(20):
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        losses.append(torch.tensor(values, dtype=torch.float64))
    assert_as_good(losses, 1e-3, "losses")
    assert losses[0][-1] < losses[0][0]

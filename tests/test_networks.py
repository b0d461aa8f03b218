"""Networks from `tinynet.nn` beside the same from `torch.nn`: outputs, every gradient, and 20 steps of training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, counted_launches
from networks import NETWORKS

from tinynet import nn, optim

pytestmark = pytest.mark.kernels

# Relative to the largest value: a hundred layers of fp32, against float64.
ERROR = 2e-3
BATCH = 8


def batch(name: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    side = NETWORKS[name][1]
    images = torch.randn(BATCH, 3, side, side)
    labels = torch.randint(0, 10, (BATCH, side, side) if name == "U-Net" else (BATCH,))
    return images.to(device), labels.to(device)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients(name: str, device: str) -> None:
    torch.manual_seed(0)
    build = NETWORKS[name][0]
    ours, theirs = build(nn).to(device), build(torch.nn).to(device)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.double()
    images, labels = batch(name, device)
    with counted_launches() as launches:
        x, exact = images.clone().requires_grad_(), images.double().requires_grad_()
        actual, expected = ours(x), theirs(exact)
        nn.CrossEntropyLoss()(actual, labels).backward()
    F.cross_entropy(expected, labels).backward()
    assert len(launches) > 20
    assert_close(actual, expected, ERROR, "logits")
    assert x.grad is not None and exact.grad is not None
    assert_close(x.grad, exact.grad, ERROR, "gradient of the images")
    exact_gradients = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    largest = max(gradient.abs().max().item() for gradient in exact_gradients.values())
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, key
        # Some gradients are sums that cancel almost entirely, as of a weight that a normalization follows.
        scale = max(exact_gradients[key].abs().max().item(), 0.01 * largest)
        assert (parameter.grad - exact_gradients[key]).abs().max().item() <= ERROR * scale, key
    for (key, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert_close(buffer, other, ERROR, key)
    with torch.no_grad():  # statistics are no longer the initial ones
        assert_close(ours.eval()(images), theirs.eval()(images.double()), ERROR, "logits in evaluation")


@pytest.mark.parametrize("name", NETWORKS)
def test_training_follows_pytorchs(name: str, device: str) -> None:
    torch.manual_seed(1)
    build = NETWORKS[name][0]
    ours, theirs = build(nn).to(device), build(torch.nn).to(device)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    steps = [
        (ours, optim.SGD(ours.parameters(), lr=0.01), nn.CrossEntropyLoss()),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.01), torch.nn.CrossEntropyLoss()),
    ]
    images, labels = batch(name, device)
    losses = []
    for model, optimizer, criterion in steps:
        losses.append([])
        for _ in range(20):
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-3)
    assert losses[0][-1] < losses[0][0]

"""Whole models under capture and mixed precision: torch.compile, torch.export, meta and fake tensors, autocast."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import counted_launches
from torch import Tensor

from tinynet import nn, optim

pytestmark = pytest.mark.kernels


def perceptron() -> torch.nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24, activation="gelu"), nn.Linear(24, 10))


def convolutional() -> torch.nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, activation="relu"),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1, activation="silu"),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


MODELS = [perceptron, convolutional]


def batch(device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 1, 8, 8, device=device), torch.randint(0, 10, (6,), device=device)


def built(make: object, device: str) -> torch.nn.Module:
    torch.manual_seed(1)
    return make().to(device)  # pyright: ignore[reportCallIssue]


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("make", MODELS)
def test_compiled_training_step(make: object, device: str) -> None:
    model, criterion, (x, y) = built(make, device), nn.CrossEntropyLoss(), batch(device)
    expected = criterion(model(x), y)
    expected_gradients = gradients(model, expected)

    compiled = torch.compile(lambda x, y: criterion(model(x), y), fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        loss = compiled(x, y)
        actual_gradients = gradients(model, loss)
    assert not {"linear_forward_kernel", "linear_few_rows_kernel"}.isdisjoint(launches)
    assert not {"linear_weight_gradient_kernel", "linear_backward_kernel"}.isdisjoint(launches)
    torch.testing.assert_close(loss, expected)
    for actual, wanted in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_compiled_by_inductor(device: str) -> None:
    model, (x, _) = built(perceptron, device), batch(device)
    expected = model(x)
    actual = torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()


@pytest.mark.parametrize("make", MODELS)
def test_exported(make: object, device: str) -> None:
    model, (x, _) = built(make, device).eval(), batch(device)
    program = torch.export.export(model, (x,))
    with counted_launches() as launches:
        actual = program.module()(x)
    assert launches
    torch.testing.assert_close(actual, model(x))


@pytest.mark.parametrize("make", MODELS)
def test_exported_with_a_dynamic_batch(make: object, device: str) -> None:
    model, (x, _) = built(make, device).eval(), batch(device)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    for size in (2, 5):
        torch.testing.assert_close(program.module()(x[:size]), model(x[:size]))


@pytest.mark.parametrize("make", MODELS)
def test_meta_and_fake_tensors(make: object, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    import tinynet

    with tinynet.engine("auto"):
        y = built(make, device).to("meta")(torch.empty(6, 1, 8, 8, device="meta"))
    assert y.shape == (6, 10) and y.is_meta
    model = built(make, device)
    with FakeTensorMode(allow_non_fake_inputs=True), counted_launches() as launches:
        y = model(torch.empty(6, 1, 8, 8, device=device))
    assert y.shape == (6, 10) and not launches


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_grad_scaler(make: object, dtype: torch.dtype, device: str) -> None:
    model, criterion, (x, y) = built(make, device), nn.CrossEntropyLoss(), batch(device)
    exact = criterion(model(x), y)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    before = copy.deepcopy(model.state_dict())
    with torch.autocast(device, dtype=dtype):
        logits = model(x)
        loss = criterion(logits, y)
    assert logits.dtype is dtype and loss.dtype is torch.float32
    torch.testing.assert_close(loss, exact, atol=3e-2, rtol=3e-2)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("make", MODELS)
def test_copies_compute_the_same(make: object, device: str) -> None:
    model, (x, _) = built(make, device), batch(device)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("make", MODELS)
def test_functional_transforms_take_the_reference(make: object, device: str) -> None:
    model, (x, _) = built(make, device), batch(device)
    per_sample = torch.func.vmap(lambda image: model(image.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(per_sample, model(x), atol=1e-5, rtol=1e-5)

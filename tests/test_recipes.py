"""Recipes of the image classifier: Airbench's losses beside the same training in torch.nn."""

from __future__ import annotations

import pytest
import torch
from networks import zoo

from tinynet import nn, optim
from tinynet.models import Airbench
from tinynet.train.optimizers import OPTIMIZERS, build_optimizer
from tinynet.train.recipes import AIRBENCH_MOMENTUM, airbench_groups, optimizer_and_schedule, recipe_of, triangle


@pytest.mark.kernels
def test_airbench_learns_as_the_same_recipe_in_torch(device: str) -> None:
    """Shrunk, on synthetic images: the classes differ by the color of a square."""
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (32,))
    images = 0.3 * torch.randn(32, 3, 12, 12)
    images[:, :, 3:9, 3:9] += torch.randn(4, 3)[labels][:, :, None, None]
    images, labels = images.to(device), labels.to(device)
    build = zoo(Airbench, (3, 12, 12), 4, widths=(8, 16))
    models = [build(namespace).to(device) for namespace in (nn, torch.nn)]
    models[0].whiten(images)
    models[1].load_state_dict(models[0].state_dict())
    schedules = []
    for model, library in zip(models, (optim, torch.optim), strict=True):
        groups = airbench_groups(model, 32, 11.5, 0.0153)
        optimizer = library.SGD(groups, momentum=AIRBENCH_MOMENTUM, nesterov=True)
        schedules.append((optimizer, triangle(optimizer, 12)))
    smoothing = recipe_of("airbench").label_smoothing
    criteria = nn.CrossEntropyLoss(label_smoothing=smoothing), torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    losses: list[list[float]] = [[], []]
    for _ in range(12):
        for index, (model, criterion, (optimizer, schedule)) in enumerate(
            zip(models, criteria, schedules, strict=True)
        ):
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses[index].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0][-1] < 0.95 * losses[0][0]
    assert torch.equal(models[0].state_dict()["whitening.weight"], models[1].state_dict()["whitening.weight"])


def test_airbench_groups_are_the_papers() -> None:
    model = Airbench(widths=(8, 8))
    optimizer, schedule = optimizer_and_schedule("airbench", model, None, 0.0153, 1024, 100)
    biases, others = optimizer.param_groups
    assert len(biases["params"]) == 4 and len(others["params"]) == 6
    assert others["initial_lr"] == pytest.approx(1.5) and biases["initial_lr"] == pytest.approx(96)
    assert others["weight_decay"] * others["initial_lr"] == pytest.approx(0.0153 * 1024 / 7850, rel=1e-3)
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[1] / 1.5)
        optimizer.step()
        schedule.step()
    assert (rates[0], rates[23], rates[100]) == pytest.approx((0.2, 1.0, 0.07))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_by_name_decay_weights_alone(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = build_optimizer(name, model, None, 0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert build_optimizer(name, model, 0.5, 0.0).param_groups[0]["lr"] == 0.5

"""Whole training steps, batch 128: forward, loss, backward, AdamW; PyTorch in both layouts with fused AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import tinynet

from .case import OURS, Case, Setting

TITLE = "training step"
BATCH = 128


def mlp(nn: Any, fused: bool) -> torch.nn.Module:
    """784-256-128-10."""
    if fused:
        layers = [nn.Linear(784, 256, activation="relu"), nn.Linear(256, 128, activation="relu")]
    else:
        layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(128, 10))


def cnn(nn: Any, fused: bool) -> torch.nn.Module:
    """conv 1-32, pool, conv 32-64, pool, 3136-128-10."""
    if fused:
        layers = [
            nn.Conv2d(1, 32, 3, padding=1, activation="relu"),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, activation="relu"),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 128, activation="relu"),
        ]
    else:
        layers = [
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 128),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def pooling_cnn(nn: Any, fused: bool) -> torch.nn.Module:
    """The same network; tinynet's pools in the convolutions' kernels."""
    if not fused:
        return cnn(nn, fused)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, activation="relu", pool=2),
        nn.Conv2d(32, 64, 3, padding=1, activation="relu", pool=2),
        nn.Flatten(),
        nn.Linear(3136, 128, activation="relu"),
        nn.Linear(128, 10),
    )


# Multiply-adds of one forward pass of one image, and parameters.
MLP_WORK = (784 * 256 + 256 * 128 + 1280, 235_146)
CNN_WORK = (784 * 288 + 196 * 18_432 + 402_688, 421_642)
LAYOUTS = {"": torch.contiguous_format, " channels_last": torch.channels_last}


def cases(setting: Setting) -> Iterator[Case]:
    images = torch.randn(BATCH, 1, 28, 28, device=setting.device)
    labels = torch.randint(0, 10, (BATCH,), device=setting.device)
    for name, build, (multiply_adds, parameters) in (
        ("mlp", mlp, MLP_WORK),
        ("cnn", cnn, CNN_WORK),
        ("cnn with pool=2", pooling_cnn, CNN_WORK),
    ):
        last = torch.channels_last
        ours = build(tinynet.nn, True).to(memory_format=last)  # pyright: ignore[reportCallIssue]
        x = images.to(memory_format=last)
        contenders = {OURS: _step(setting, ours, tinynet.nn, tinynet.optim.AdamW, {}, x, labels)}
        for suffix, layout in LAYOUTS.items():
            model = build(torch.nn, False).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
            x = images.to(memory_format=layout)
            contenders["eager" + suffix] = _step(
                setting, model, torch.nn, torch.optim.AdamW, {"fused": True}, x, labels
            )
        if setting.compile:
            model = torch.compile(build(torch.nn, False), mode="max-autotune" if images.is_cuda else None)
            contenders["compile"] = _step(setting, model, torch.nn, torch.optim.AdamW, {"fused": True}, images, labels)
        yield Case(
            f"training step, {name}",
            f"batch {BATCH}",
            6 * multiply_adds * BATCH,
            4 * 10 * parameters,
            contenders,
            None,
            BATCH,
            least_flops=6 * multiply_adds * BATCH // (4 if "cnn" in name else 1),  # by Winograd's algorithm
        )


def _step(
    setting: Setting,
    model: Any,
    nn: Any,
    optimizer: Callable[..., Any],
    arguments: dict[str, Any],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Callable[[], torch.Tensor]:
    """One step in fp32, or under autocast in a 16-bit dtype."""
    model = model.to(setting.device)
    update = optimizer(model.parameters(), lr=1e-3, **arguments)
    criterion = nn.CrossEntropyLoss()
    mixed = setting.dtype is not torch.float32

    def step() -> torch.Tensor:
        update.zero_grad()
        with torch.autocast(setting.device.type, dtype=setting.dtype, enabled=mixed):
            loss = criterion(model(images), labels)
        loss.backward()
        update.step()
        return loss

    return step

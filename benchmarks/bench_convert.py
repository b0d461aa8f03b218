"""Models of torchvision and timm with random weights, before and after `tinynet.convert`: training steps and inference.

PyTorch trains in both layouts with its fused SGD, and infers in both layouts with its norms folded into convolutions.
Models of packages that are absent are left out.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.optimization import fuse
from torch.utils.flop_counter import FlopCounterMode

import tinynet

from .case import OURS, Case, Setting, allowed_error

TITLE = "converted models"
BATCH = 4
SIDES = 64, 96
WINOGRAD = 4  # its algorithm computes 3 x 3 convolutions, which are most of some models, with so many times fewer
MODELS = (
    *("resnet18", "resnet50", "vgg11_bn", "mobilenet_v3_small", "alexnet", "convnext_tiny", "densenet121"),
    *("googlenet", "squeezenet1_0", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("timm.resnet10t", "timm.mobilenetv4_conv_small", "timm.vit_tiny_patch16_224"),
)
SGD: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9}
LAYOUTS = {"eager": torch.contiguous_format, "eager channels_last": torch.channels_last}


def built(name: str, side: int) -> torch.nn.Module | None:
    """A model of torchvision, or of timm; None where its package cannot be imported."""
    try:
        if name.startswith("timm."):
            options = {"img_size": side} if "vit" in name else {}
            return importlib.import_module("timm").create_model(name.removeprefix("timm."), **options)
        options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        return getattr(importlib.import_module("torchvision.models"), name)(**options)
    except (ImportError, RuntimeError):  # torchvision says so where it was built for another PyTorch
        return None


def cases(setting: Setting) -> Iterator[Case]:
    for name in MODELS:
        for side in SIDES:
            if name == "alexnet" and side < 96:  # its pools leave nothing of 64 pixels
                continue
            model = built(name, side)
            if model is None:
                continue
            model = model.to(setting.device)
            images = torch.randn(BATCH, 3, side, side, device=setting.device)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(images)
            flops, parameters = counter.get_total_flops(), sum(p.numel() for p in model.parameters())
            short = name.removeprefix("timm.")
            yield Case(
                f"training step, {short}",
                f"{BATCH} of {side} pixels",
                3 * flops,
                4 * 8 * parameters,
                _training(setting, model, images),
                None,
                BATCH,
                least_flops=3 * flops // WINOGRAD,
            )
            yield Case(
                f"inference, {short}",
                f"{BATCH} of {side} pixels",
                flops,
                4 * parameters,
                _inference(setting, model, images),
                10 * allowed_error(setting.dtype, 4096),
                BATCH,
                least_flops=flops // WINOGRAD,
            )


def _training(setting: Setting, model: torch.nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    labels = torch.randint(0, 1000, (BATCH,), device=setting.device)
    ours = tinynet.convert(model, verbose=False, inplace=False)
    last = images.to(memory_format=torch.channels_last)
    contenders = {OURS: _step(setting, ours, tinynet.nn, tinynet.optim.SGD(ours.parameters(), **SGD), last, labels)}
    for layout, memory in LAYOUTS.items():
        theirs = copy.deepcopy(model).to(memory_format=memory)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.SGD(theirs.parameters(), **SGD, fused=True)
        contenders[layout] = _step(setting, theirs, torch.nn, optimizer, images.to(memory_format=memory), labels)
    return contenders


def _step(
    setting: Setting, model: torch.nn.Module, nn: Any, optimizer: Any, images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    model.train()
    criterion = nn.CrossEntropyLoss()
    mixed = setting.dtype is not torch.float32

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(setting.device.type, dtype=setting.dtype, enabled=mixed):
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _inference(setting: Setting, model: torch.nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    images = images.to(setting.dtype)
    model = copy.deepcopy(model).to(setting.dtype).eval()
    ours = tinynet.convert(model, verbose=False, inplace=False)
    contenders = {OURS: _call(ours, images.to(memory_format=torch.channels_last))}
    for layout, memory in LAYOUTS.items():
        folded = fuse(copy.deepcopy(model)).to(memory_format=memory)  # pyright: ignore[reportCallIssue]
        contenders[layout] = _call(folded, images.to(memory_format=memory))
    return contenders


def _call(model: torch.nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return model(images)

    return call

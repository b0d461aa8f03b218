"""Models of torchvision and timm, with random weights, converted. Skipped where the packages are absent."""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any

import pytest
import torch
from helpers import counted_launches
from torch import Tensor

import tinynet

pytestmark = pytest.mark.kernels

TORCHVISION = (
    *("resnet18", "resnet50", "vgg11_bn", "mobilenet_v3_small", "alexnet", "convnext_tiny", "densenet121"),
    *("googlenet", "squeezenet1_0", "shufflenet_v2_x1_0", "efficientnet_b0"),
)
TIMM = ("resnet10t", "mobilenetv4_conv_small", "vit_tiny_patch16_224")


def imported(name: str) -> Any:
    """A package, or a skip where it is absent or was built for another PyTorch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        return pytest.skip(f"{name}: {error}")


def built(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name in TIMM:
        return imported("timm").create_model(name, **({"img_size": 96} if "vit" in name else {}))
    options = {"init_weights": False} if name == "googlenet" else {}
    return getattr(imported("torchvision").models, name)(**options)


def smoothed(model: torch.nn.Module) -> torch.nn.Module:
    """The model without what is random, and without kinks, where a rounding error changes a gradient."""
    module: Any
    for module in model.modules():
        if isinstance(getattr(module, "p", None), float):
            module.p = 0.0
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU | torch.nn.ReLU6):
                setattr(module, name, torch.nn.SiLU())
    return model


def first(y: Any) -> Tensor:
    return y if isinstance(y, Tensor) else y[0]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The length of the difference, relative to that of `expected`."""
    difference = sum(float(((a.double() - b) ** 2).sum()) for a, b in zip(found, expected, strict=True))
    return math.sqrt(difference / sum(float((b**2).sum()) for b in expected))


def gradients(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    y = first(model(x))
    upstream = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
    found = torch.autograd.grad(y, list(model.parameters()), upstream, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_converted(name: str, device: str) -> None:
    theirs, x = built(name).to(device).eval(), torch.randn(2, 3, 96, 96, device=device)
    ours: Any = tinynet.convert(theirs, verbose=False, inplace=False)
    leaves = [module for module in ours.modules() if not list(module.children())]
    left = {type(module).__name__ for module in leaves if type(module).__module__.startswith("torch.nn.")}
    assert left <= {"Identity", "Flatten"} and not ours.conversion.left
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad(), counted_launches() as launches:
        y, exact = ours(x), copy.deepcopy(theirs).double()(x.double())
    assert launches
    assert (y - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_gradients(name: str, device: str) -> None:
    if name == "googlenet":
        pytest.skip("its activations are functions, which have kinks")
    theirs, x = smoothed(built(name)).to(device).train(), torch.randn(4, 3, 96, 96, device=device)
    exact = gradients(copy.deepcopy(theirs).double(), x.double())
    ours = gradients(tinynet.convert(theirs, verbose=False, inplace=False), x)
    assert distance(ours, exact) <= 4 * distance(gradients(theirs, x), exact) + 1e-6

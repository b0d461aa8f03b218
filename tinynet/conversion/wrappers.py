"""Thin wrappers of torch.nn's layers in torchvision and timm, by qualified name: neither package is imported."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinynet import nn
from tinynet.nn.joins import has_hooks
from tinynet.ops.activation_like import as_activation
from tinynet_kernels.activation_spec import IDENTITY, Activation


class LayerNorm2d(nn.LayerNorm):
    """`nn.LayerNorm` over the channels of x [N, C, H, W]; x's memory format is read without a copy in channels_last."""

    def forward(self, input: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.normalize(input.permute(0, 2, 3, 1), self.activation).permute(0, 3, 1, 2)


class Wrapper(NamedTuple):
    """The class that takes the wrapper's place, and the attributes that it has and the wrapper lacks."""

    twin: type[torch.nn.Module]
    attributes: dict[str, Any] = {}  # noqa: RUF012 - never changed


_WRAPPERS = {
    "torchvision.models.convnext.LayerNorm2d": Wrapper(LayerNorm2d),
    "timm.layers.norm.LayerNorm2d": Wrapper(LayerNorm2d),
    "timm.layers.norm.LayerNorm": Wrapper(nn.LayerNorm),
    "timm.layers.norm.GroupNorm": Wrapper(nn.GroupNorm),
    "timm.layers.norm.GroupNorm1": Wrapper(nn.GroupNorm),
    "timm.layers.linear.Linear": Wrapper(nn.Linear),
    "timm.layers.norm_act.BatchNormAct2d": Wrapper(nn.BatchNorm2d),
    "timm.layers.norm_act.GroupNormAct": Wrapper(nn.GroupNorm),
    "timm.layers.norm_act.GroupNorm1Act": Wrapper(nn.GroupNorm),
    "timm.layers.norm_act.LayerNormAct": Wrapper(nn.LayerNorm),
    "timm.layers.norm_act.LayerNormAct2d": Wrapper(LayerNorm2d),
    "timm.layers.activations.Swish": Wrapper(nn.SiLU),
    "timm.layers.activations.Mish": Wrapper(nn.Mish),
    "timm.layers.activations.Sigmoid": Wrapper(nn.Sigmoid),
    "timm.layers.activations.Tanh": Wrapper(nn.Tanh),
    "timm.layers.activations.HardSwish": Wrapper(nn.Hardswish),
    "timm.layers.activations.HardSigmoid": Wrapper(nn.Hardsigmoid),
    "timm.layers.activations.PReLU": Wrapper(nn.PReLU),
    "timm.layers.activations.GELU": Wrapper(nn.GELU, {"approximate": "none"}),
    "timm.layers.activations.GELUTanh": Wrapper(nn.GELU, {"approximate": "tanh"}),
}


def wrapper_of(module: torch.nn.Module) -> Wrapper | None:
    """What takes the module's place, if its class is a wrapper that is known and used in a way that is."""
    kind = type(module)
    wrapper = _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}")
    if wrapper is None:
        return None
    if ".norm_act." not in kind.__module__ + ".":
        return wrapper
    activation = _activation_within(module)
    return None if activation is None else wrapper._replace(attributes={"activation": activation})


def _activation_within(module: Any) -> Activation | None:
    """The activation that a normalization of timm applies with a module of its own; None where it does more."""
    drop, act = module.drop, module.act
    if type(drop) is not torch.nn.Identity or has_hooks(drop) or has_hooks(act):
        return None
    if type(act) is torch.nn.Identity:
        return IDENTITY
    try:
        return as_activation(act)
    except TypeError:
        inner = wrapper_of(act)
        return None if inner is None else as_activation(inner.twin(**inner.attributes))

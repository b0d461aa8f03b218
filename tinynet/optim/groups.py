"""Which parameters decay."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

_NORMS = (_NormBase, torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A model's parameters in two groups for an optimizer: with weight decay, and without.

    Normalizations, biases, and all other parameters of fewer than two axes don't decay. Parameters that need no
    gradient are in neither group.

    Args:
        model: any module.
        weight_decay: of the first group; the second one has 0.

    Returns:
        The groups that have parameters, each a dict of "params" and "weight_decay".

    Example:
        >>> model = tinynet.nn.Sequential(tinynet.nn.Conv2d(3, 8, 3), tinynet.nn.BatchNorm2d(8))
        >>> groups = tinynet.optim.parameter_groups(model, weight_decay=5e-4)
        >>> [len(group["params"]) for group in groups]
        [1, 3]
        >>> optimizer = tinynet.optim.SGD(groups, lr=0.1, momentum=0.9)
    """
    of_norms = {
        parameter
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    decaying, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_weight = parameter.dim() > 1 and parameter not in of_norms and not name.endswith("bias")
        (decaying if is_weight else others).append(parameter)
    groups = {"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}
    return [group for group in groups if group["params"]]

"""Muon, for matrices and filters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tinynet.ops.muon import muon
from tinynet.optim.optimizer import FusedOptimizer, check_options


class Muon(FusedOptimizer):
    """Steps along the orthogonalized average gradient of each matrix, by the products of `tinynet`'s kernels.

    A filter or any other parameter [out, ...] is a matrix [out, the rest]; torch.optim.Muon takes matrices alone.
    Parameters of one shape are orthogonalized together, in bfloat16 as in PyTorch.

    Args:
        params: parameters of two axes or more, named parameters, or dicts of parameter groups. Give biases, norms and
            usually embeddings and the last layer to another optimizer.
        lr: learning rate.
        weight_decay: each step multiplies the parameter by 1 - lr weight_decay.
        momentum: decay of the average gradient.
        nesterov: whether to step along gradient and average.
        ns_coefficients: a, b, c of the iteration; see `tinynet.ops.muon.orthogonalize`.
        eps: what the norm of a matrix counts as at least.
        ns_steps: of the iteration, below 100.
        adjust_lr_fn: "original" (None) multiplies lr by sqrt(max(1, rows / columns)), "match_rms_adamw" by
            0.2 sqrt(max(rows, columns)), so that learning rates of AdamW fit.

    Raises:
        ValueError: a scalar or vector among the parameters; a hyperparameter is out of range or not finite.

    State: `momentum_buffer`, in the parameter's dtype and layout. Source: torch.optim.Muon; Jordan et al. 2024, "Muon:
    An optimizer for hidden layers in neural networks".

    Example:
        >>> model = tinynet.nn.Sequential(tinynet.nn.Conv2d(3, 8, 3), tinynet.nn.Flatten(), tinynet.nn.Linear(8, 10))
        >>> muon = tinynet.optim.Muon([weight for weight in model.parameters() if weight.dim() > 1], lr=0.02)
        >>> others = tinynet.optim.AdamW([weight for weight in model.parameters() if weight.dim() < 2], lr=1e-3)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dim() < 2:
                self.param_groups.pop()
                raise ValueError(
                    f"params: got a parameter of shape {tuple(parameter.shape)}, but Muon orthogonalizes matrices and "
                    "filters; give scalars and vectors to another optimizer, such as AdamW"
                )

    def _complete(self, group: dict[str, Any]) -> None:
        """PyTorch has saved all options from the first version on."""

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, at_least_0=("lr", "weight_decay", "momentum", "eps"))
        coefficients: Any = group.get("ns_coefficients")
        steps, adjust = group.get("ns_steps"), group.get("adjust_lr_fn")
        are_three = isinstance(coefficients, (tuple, list)) and len(coefficients) == 3
        if not are_three or not all(map(math.isfinite, coefficients)):
            raise ValueError(f"ns_coefficients: got {coefficients!r}, expected three finite numbers")
        if not isinstance(steps, int) or not 0 <= steps < 100:
            raise ValueError(f"ns_steps: got {steps!r}, expected an integer from 0 to 99")
        if adjust not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn: got {adjust!r}, expected 'original', 'match_rms_adamw' or None")

    def _step_group(self, group: dict[str, Any], tables: list[Any], found_inf: Tensor | None) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None and parameter.numel()]
        for parameter in params:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        muon(
            params,
            [parameter.grad for parameter in params],
            [self.state[parameter]["momentum_buffer"] for parameter in params],
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            momentum=float(group["momentum"]),
            nesterov=group["nesterov"],
            ns_coefficients=group["ns_coefficients"],
            eps=float(group["eps"]),
            ns_steps=group["ns_steps"],
            adjust_lr_fn=group["adjust_lr_fn"],
        )

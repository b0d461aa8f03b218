"""Lookahead, a wrapper of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinynet_kernels import replays


class Lookahead(torch.optim.Optimizer):
    """Slow weights that move every `k` steps a part of the way to an optimizer's weights, which start again from there.

    Schedulers, GradScaler and hooks take it in the optimizer's place. It has the optimizer's groups; its state_dict is
    the optimizer's and one more entry, "lookahead".

    Args:
        optimizer: any optimizer of torch.optim's interface. It must not be stepped on its own.
        k: steps of the optimizer between two of the slow weights.
        alpha: the part of the way, in (0, 1].

    Raises:
        ValueError: k below 1, or alpha outside of (0, 1].

    Source: Zhang et al. 2019, "Lookahead optimizer: k steps forward, 1 step back", algorithm 1; the optimizer's own
    states go on.

    Example:
        >>> model = tinynet.nn.Linear(3, 4)
        >>> optimizer = tinynet.optim.Lookahead(tinynet.optim.AdamW(model.parameters()), k=5)
        >>> schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k: got {k!r}, expected an integer of at least 1")
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha: got {alpha}, expected a number above 0 and at most 1")
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self.count = 0
        self.slow = _copies(optimizer.param_groups)
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()

    def _share(self) -> None:
        """The optimizer's own groups and states, which it replaces when it loads others."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the optimizer; its slow weights are the present ones."""
        if self.param_groups is not self.optimizer.param_groups:  # called by the constructor
            super().add_param_group(param_group)
            return
        self.optimizer.add_param_group(param_group)
        self.slow += _copies(self.param_groups[-1:])

    def __getstate__(self) -> dict[str, Any]:
        names = "optimizer", "k", "alpha", "count", "slow"
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A step of the optimizer and, every k-th time, one of the slow weights."""
        loss = self.optimizer.step(closure)
        replays.on_host(self._step_slow_weights)
        return loss

    @torch.no_grad()
    def _step_slow_weights(self) -> None:
        self.count += 1
        if self.count % self.k == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                torch._foreach_lerp_(slow, group["params"], self.alpha)  # pyright: ignore[reportPrivateImportUsage]
                torch._foreach_copy_(group["params"], slow)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state_dict, with the slow weights and the count of steps in "lookahead"."""
        return {**self.optimizer.state_dict(), "lookahead": {"count": self.count, "slow": self.slow}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimizer's states and the slow weights.

        Raises:
            ValueError: groups of other sizes, or a state_dict of no Lookahead.
        """
        if "lookahead" not in state_dict:
            raise ValueError("state_dict: got one without 'lookahead'; load it into the wrapped optimizer")
        own = state_dict["lookahead"]
        shapes = [[weight.shape for weight in group] for group in own["slow"]]
        if shapes != [[weight.shape for weight in group] for group in self.slow]:
            raise ValueError("state_dict: the slow weights have other shapes than this optimizer's parameters")
        rest = {name: value for name, value in state_dict.items() if name != "lookahead"}
        self.optimizer.load_state_dict(rest)
        self._share()
        self.count = own["count"]
        for group, saved in zip(self.slow, own["slow"], strict=True):
            for weight, other in zip(group, saved, strict=True):
                weight.copy_(other)


def _copies(groups: list[dict[str, Any]]) -> list[list[Tensor]]:
    return [[parameter.detach().clone() for parameter in group["params"]] for group in groups]

"""Which elementwise loss, and its parameters. No Triton here."""

from __future__ import annotations

from typing import NamedTuple


class Loss(NamedTuple):
    """An elementwise loss: what its kernels are compiled for. Parameters that a loss does not have stay as they are.

    Attributes:
        name: a key of `loss_functions.FUNCTIONS`.
        limit: where a loss changes its branch: smooth_l1's beta, huber's delta, a margin.
        eps: the least variance, or what is added to an argument of a logarithm.
        log_space: whether the input (poisson_nll) or the target (kl_div) is a logarithm.
        full: whether terms are added that don't depend on the input.
    """

    name: str
    limit: float = 0.0
    eps: float = 0.0
    log_space: bool = False
    full: bool = False

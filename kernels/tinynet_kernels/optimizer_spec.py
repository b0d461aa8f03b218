"""What an optimizer's step is compiled for. No Triton here."""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """What `rule_kernel` is compiled for, beside its tile.

    Attributes:
        name: of the rule.
        states: how many states a parameter has.
        has_weight_decay: whether g has a term of the parameter.
        maximize: whether the gradient's sign changes.
        centered, has_momentum: of rmsprop.
    """

    name: str
    states: int
    has_weight_decay: bool = False
    maximize: bool = False
    centered: bool = False
    has_momentum: bool = False

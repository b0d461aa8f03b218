"""The options of a guard."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tinynet_engines.interpreter.poison import POISONS

Poison = Literal["nan", "inf", "-inf", "scattered"]
Order = Literal["shuffle", "forward", "reverse"]
Extent = Literal["view", "storage"]


@dataclasses.dataclass(frozen=True)
class GuardOptions:
    """The arguments of `guard`, checked.

    Raises:
        ValueError: an unknown poison, order or extent.
    """

    poison: Poison | None = "nan"
    order: Order = "shuffle"
    seed: int = 0
    bounds: bool = True
    races: bool = True
    barriers: bool = False
    overflow: bool = True
    extent: Extent = "view"
    strict: bool = True

    def __post_init__(self) -> None:
        for name, choices in (
            ("poison", (None, *POISONS)),
            ("order", ("shuffle", "forward", "reverse")),
            ("extent", ("view", "storage")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}: got {value!r}, expected one of {choices}")

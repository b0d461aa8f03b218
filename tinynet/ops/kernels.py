"""The modules of `tinynet_kernels`, each imported when it is first asked for: Triton may be absent, and imports slowly.

`kernels.linear.linear_forward(...)` calls a launcher; where `route` answers anything but Route.KERNELS none is called.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinynet_kernels import (
        activation,
        conv,
        conv_backward,
        dropout,
        embedding,
        layout,
        linear,
        loss,
        optimizer,
        pool,
        recurrent,
    )

__all__ = [
    "activation",
    "conv",
    "conv_backward",
    "dropout",
    "embedding",
    "layout",
    "linear",
    "loss",
    "optimizer",
    "pool",
    "recurrent",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = globals()[name] = import_module(f"tinynet_kernels.{name}")
    return module

"""tinynet: a deep-learning mini-framework on hand-written Triton kernels.

`tinynet.nn` mirrors `torch.nn` (names, arguments, state_dict) and adds `activation=`; `tinynet.optim` mirrors
`torch.optim`; `tinynet.functional` mirrors `torch.nn.functional`. Kernels run if Triton's active driver serves the
tensors' device, otherwise plain PyTorch runs; `tinynet.engine` overrides the choice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from tinynet import functional as functional
    from tinynet import nn as nn
    from tinynet import optim as optim
    from tinynet.conversion import convert as convert
    from tinynet.conversion import export as export
    from tinynet.conversion import revert as revert
    from tinynet.dispatch import describe as describe
    from tinynet.dispatch import engine as engine
    from tinynet.graphs import Graphed as Graphed
    from tinynet.graphs import GraphError as GraphError
    from tinynet.graphs import graphed as graphed
    from tinynet_engines.interpreter import guard as guard
    from tinynet_engines.offline import inspect as inspect
    from tinynet_kernels.activation_spec import Activation as Activation

__all__ = [
    "Activation",
    "GraphError",
    "Graphed",
    "convert",
    "describe",
    "engine",
    "export",
    "functional",
    "graphed",
    "guard",
    "inspect",
    "nn",
    "optim",
    "revert",
]

# Imported on first use, so that `import tinynet` is fast and imports neither PyTorch nor Triton.
_LAZY = {
    "Activation": ("tinynet_kernels.activation_spec", "Activation"),
    "convert": ("tinynet.conversion", "convert"),
    "export": ("tinynet.conversion", "export"),
    "revert": ("tinynet.conversion", "revert"),
    "describe": ("tinynet.dispatch", "describe"),
    "engine": ("tinynet.dispatch", "engine"),
    "functional": ("tinynet.functional", None),
    "GraphError": ("tinynet.graphs", "GraphError"),
    "Graphed": ("tinynet.graphs", "Graphed"),
    "graphed": ("tinynet.graphs", "graphed"),
    "nn": ("tinynet.nn", None),
    "__version__": ("tinynet.version", "VERSION"),
    "optim": ("tinynet.optim", None),
    "guard": ("tinynet_engines.interpreter", "guard"),
    "inspect": ("tinynet_engines.offline", "inspect"),
}


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module 'tinynet' has no attribute {name!r}")
        module_name, attribute = _LAZY[name]
        module = importlib.import_module(module_name)
        value = module if attribute is None else getattr(module, attribute)
        globals()[name] = value
        return value

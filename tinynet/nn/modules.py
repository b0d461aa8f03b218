"""The classes of `tinynet.nn`, for `from tinynet.nn.modules import Linear`.

Its modules, such as `modules.batchnorm`, are PyTorch's: they hold the base classes of tinynet's layers.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch.nn.modules

from tinynet.absent import absent
from tinynet.nn import *  # noqa: F403

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        found = getattr(torch.nn.modules, name, None)
        if isinstance(found, ModuleType):
            return found
        raise absent("tinynet.nn.modules", torch.nn.modules, name)

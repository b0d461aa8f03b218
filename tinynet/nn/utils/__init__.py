"""PyTorch's own utilities, torch.nn.utils: they work with every model."""

from typing import TYPE_CHECKING, Any

import torch.nn.utils
from torch.nn.utils import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

from tinynet.nn.utils import parametrizations, parametrize, prune, rnn, stateless

__all__ = [*torch.nn.utils.__all__, "parametrizations", "parametrize", "prune", "rnn", "stateless"]  # pyright: ignore


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        return getattr(torch.nn.utils, name)

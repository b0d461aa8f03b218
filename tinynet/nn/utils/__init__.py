"""PyTorch's own utilities, torch.nn.utils, which work with every model; clipping gradients is ours."""

from typing import TYPE_CHECKING, Any

import torch.nn.utils
from torch.nn.utils import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

from tinynet.nn.utils import clip_grad, parametrizations, parametrize, prune, rnn, stateless
from tinynet.nn.utils.clip_grad import clip_grad_norm_, clip_grad_value_

__all__ = [
    *torch.nn.utils.__all__,  # pyright: ignore[reportUnsupportedDunderAll]
    "clip_grad",
    "clip_grad_norm_",
    "clip_grad_value_",
    "parametrizations",
    "parametrize",
    "prune",
    "rnn",
    "stateless",
]


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        return getattr(torch.nn.utils, name)

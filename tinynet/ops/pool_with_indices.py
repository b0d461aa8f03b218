"""Maximum pools that return (maxima, indices), by the names that torch.nn.functional has for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from tinynet.ops import max_pool


def _with_indices(pool: Callable[..., Any]) -> Callable[..., Any]:
    """`pool` with `return_indices=True`; its own value of that argument has no effect, as in PyTorch."""
    signature = inspect.signature(pool)

    @wraps(pool)
    def pool_with_indices(*arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(*arguments, **keywords)
        bound.arguments["return_indices"] = True
        return pool(*bound.args, **bound.kwargs)

    return pool_with_indices


max_pool1d_with_indices = _with_indices(max_pool.max_pool1d)
max_pool2d_with_indices = _with_indices(max_pool.max_pool2d)
max_pool3d_with_indices = _with_indices(max_pool.max_pool3d)
adaptive_max_pool1d_with_indices = _with_indices(max_pool.adaptive_max_pool1d)
adaptive_max_pool2d_with_indices = _with_indices(max_pool.adaptive_max_pool2d)
adaptive_max_pool3d_with_indices = _with_indices(max_pool.adaptive_max_pool3d)
fractional_max_pool2d_with_indices = _with_indices(max_pool.fractional_max_pool2d)
fractional_max_pool3d_with_indices = _with_indices(max_pool.fractional_max_pool3d)

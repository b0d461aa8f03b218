"""Layers whose forward torch.fx cannot trace."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy


def as_leaf(module: torch.nn.Module, input: Proxy, *arguments: Any, **keywords: Any) -> Any:
    """Records a call of `module` as one node of an fx graph: fx cannot trace code that depends on the input's rank."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, *arguments), keywords)

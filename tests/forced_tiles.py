"""Forces tiles: what only a GPU's rules or large problems reach runs at small sizes, on every engine."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import ModuleType
from typing import Any
from unittest import mock

import tinynet_kernels
from tinynet_kernels.tiles import Target

# Makes launchers choose as for a GPU. Not CUDA: its products would use tensor cores.
GPU = Target("hip", "gfx942", 4, 1 << 16)


@contextmanager
def forced_tiles(**rules: Any) -> Iterator[None]:
    """Within it, `rules` replace the functions and numbers of those names in the modules of `tinynet_kernels`.

    Example:
        >>> with forced_tiles(linear_tile=GemmTile(16, 32, 16, 4, 1), split_count=3, GROUP=2):
        ...     check(*make(70, 37, 40, torch.float32, device))

    Args:
        rules: for a function, a replacement or the value that it returns at every call; for a number, another number.
    """
    with ExitStack() as stack:
        for name, rule in rules.items():
            original = next(vars(module)[name] for module in _modules() if name in vars(module))
            replacement = rule if callable(rule) or not callable(original) else lambda *_, rule=rule, **__: rule
            for module in _modules():
                if vars(module).get(name) is original:  # also where it was imported
                    stack.enter_context(mock.patch.object(module, name, replacement))
        _forget_problems()
        stack.callback(_forget_problems)
        yield


@cache
def _modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(tinynet_kernels.__path__, "tinynet_kernels.")]
    names.sort(key=lambda name: not name.endswith("tiles"))  # a rule may have a kernel's name
    return [importlib.import_module(name) for name in names]


def _forget_problems() -> None:
    """Launchers cache their choices for a problem."""
    for module in _modules():
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()

"""Tiles of a test's choosing: what only a GPU's rules or large problems reach runs at small sizes, on every engine."""

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

# Makes launchers decide as for a GPU. Not CUDA: its products would ask for tensor cores.
GPU = Target("hip", "gfx942", 4, 1 << 16)


@contextmanager
def forced_tiles(**rules: Any) -> Iterator[None]:
    """Within it, launchers find `rules` in place of what has their names in the modules of `tinynet_kernels`.

    Example:
        >>> with forced_tiles(linear_tile=GemmTile(16, 32, 16, 4, 1), split_count=3, GROUP=2):
        ...     check(*make(70, 37, 40, torch.float32, device))

    Args:
        rules: in place of a function, another one or what it returns at every call; in place of a number, another one.
    """
    with ExitStack() as stack:
        for name, rule in rules.items():
            original = next(vars(module)[name] for module in _modules() if name in vars(module))
            replacement = rule if callable(rule) or not callable(original) else lambda *_, rule=rule, **__: rule
            for module in _modules():
                if vars(module).get(name) is original:  # where it was imported, too
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
    """Launchers keep what they decided for a problem."""
    for module in _modules():
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()

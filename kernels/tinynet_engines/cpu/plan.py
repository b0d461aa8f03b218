"""Launch plans: repeated launches in a few microseconds.

Triton's own launcher binds arguments, computes a key and runs the kernel in about 15 us. A plan saves what is the same
from launch to launch: the compiled kernel, the grid, the layout of the argument block. Its key holds everything that
matters: the kernel, the types of its arguments, dtypes, integers, constants, the number of threads. (Alignment does
not: the engine compiles one kernel for aligned and misaligned pointers.) Plans hold no tensors. They are created by
compiling (``warmup``), never by a launch.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from triton import knobs
from triton.language import constexpr
from triton.runtime.jit import JITFunction

from tinynet_kernels.launch import Constants

from . import driver, storage

_LARGEST_CACHE = 2048
_MISSING = object()
# Launches that are watched or debugged, or whose kernel has changed, go through Triton's own launcher.
_WATCHED = (
    "runtime.debug or kernel.debug or kernel.pre_run_hooks or kernel._src is not source or "
    "runtime.launch_enter_hook is not enter or runtime.launch_exit_hook is not exit or "
    "getattr(enter, 'calls', enter) or getattr(exit, 'calls', exit)"
)


class Plan:
    """One compiled kernel for one grid, number of threads and list of integers."""

    __slots__ = ("exact", "globals", "head", "pack", "pair_count", "pairs", "send", "written")

    def __init__(self, compiled: Any, grid: tuple[int, ...], flat: list[tuple[str, Any]], used_globals: list[tuple]):
        kernel: driver.Kernel = compiled.function
        self.head = driver.block_head(kernel.address, kernel.arena_bytes, (*grid, 1, 1)[:3], torch.get_num_threads())
        self.pack = struct.Struct("=" + "".join(driver.slot_format(kind) for kind, _ in flat)).pack
        self.globals = used_globals
        # A kernel that relies on its arguments not to overlap: the minimal distance between them. What a kernel touches
        # follows from its integers and its grid, unless it loads addresses; then every launch inspects the tensors.
        self.written = kernel.written
        self.exact = kernel.overlap_matters and kernel.data_dependent
        spans = [driver.memory_span(value) if kind[0] == "*" else None for kind, value in flat]
        pairs = [
            struct.pack("=4q", target, other, _length(spans[target]), _length(span))
            for target in kernel.written
            for other, span in enumerate(spans)
            if kernel.overlap_matters and not self.exact and span is not None and other != target
        ]
        self.pairs, self.pair_count = b"".join(pairs), len(pairs)


def _length(span: tuple[int, int] | None) -> int:
    return span[1] - span[0] if span else 0


class CallSite:
    """Plans for one kernel called with one list of argument types and constants.

    ``launch(grid, arguments)`` is a few lines of Python generated for exactly these types; it returns False if there is
    no plan for them, or if this launch needs Triton's own launcher.
    """

    def __init__(self, kernel: JITFunction, types: tuple[type, ...], constants: Mapping[str, Any]):
        self.kernel = kernel
        self.compiling = _compiling.setdefault(id(kernel), threading.RLock())
        self.constants = dict(constants)
        self.names = [f"a{position}" for position in range(len(types))]
        self.tensors = [n for n, kind in zip(self.names, types, strict=False) if issubclass(kind, torch.Tensor)]
        self.integers = [n for n, kind in zip(self.names, types, strict=False) if issubclass(kind, int)]
        self.plans: dict[tuple, Plan] = {}
        self.compiled: dict[tuple, Any] = {}
        self.senders: dict[tuple[str, ...], Callable[..., Any]] = {}
        runtime = knobs.runtime
        scope: dict[str, Any] = {"plans": self.plans, "threads": torch.get_num_threads, "prepare": self.prepare}
        scope |= {"kernel": kernel, "source": kernel._src, "unchanged": _globals_unchanged, "runtime": runtime}
        scope |= {"enter": runtime.launch_enter_hook, "exit": runtime.launch_exit_hook}
        names = ", ".join(self.names)
        key = ", ".join(["grid", "threads()", *(f"{n}.dtype" for n in self.tensors), *self.integers])
        on_cpu = " and ".join(f"{n}.is_cpu" for n in self.tensors) or "True"
        self.launch: Callable[[tuple[int, ...], Sequence[Any]], bool] = _define(
            f"def launch(grid, arguments):\n"
            f"    {names + ', = arguments' if names else 'pass'}\n"
            f"    if {_WATCHED} or not ({on_cpu}): return False\n"
            f"    key = ({key})\n"
            f"    plan = plans.get(key)\n"
            f"    if plan is None:\n"
            f"        plan = prepare(key, grid, arguments)\n"
            f"        if plan is None: return False\n"
            f"    if plan.globals and not unchanged(plan.globals): return False\n"
            f"    return plan.send(plan{', ' + names if names else ''})\n",
            "launch",
            scope,
        )

    def prepare(self, key: tuple, grid: tuple[int, ...], arguments: Sequence[Any]) -> Plan | None:
        """A new plan; None if only Triton's own launcher can run it. Concurrent threads create it once."""
        with self.compiling:
            return self.plans.get(key) or self._prepare(key, grid, arguments)

    def _prepare(self, key: tuple, grid: tuple[int, ...], arguments: Sequence[Any]) -> Plan | None:
        values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | self.constants
        compiled = self._compile(grid, arguments)
        if compiled is None:
            return None
        signature = compiled.src.signature
        if not all(isinstance(kind, str) and not kind.startswith("tensordesc") for kind in signature.values()):
            return None
        passed = [name for name in self.kernel.arg_names if signature[name] != "constexpr"]
        flat = [(signature[name], values[name]) for name in passed]
        by_name = dict(zip(self.kernel.arg_names, self.names, strict=False))
        if any(name not in by_name for name in passed):
            return None
        used = [
            (scope, name, value, scope.get(name, _MISSING))
            for (name, _), (value, scope) in self.kernel.used_global_vals.items()
        ]
        plan = Plan(compiled, grid, flat, used)
        plan.send = self._sender(tuple(by_name[name] for name in passed))
        if len(self.plans) >= _LARGEST_CACHE:
            self.plans.clear()
        self.plans[key] = plan
        return plan

    def _compile(self, grid: tuple[int, ...], arguments: Sequence[Any]) -> Any:
        """The compiled kernel for these arguments. Triton distinguishes integers as :func:`_specialized` does."""
        key = tuple(
            a.dtype if isinstance(a, torch.Tensor) else _specialized(a) if isinstance(a, int) else None
            for a in arguments
        )
        compiled = self.compiled.get(key)
        if compiled is None:
            try:
                compiled = self.kernel.warmup(*arguments, grid=grid, **self.constants)
            except OSError:  # Triton's cache cannot be written any more
                storage.leave_triton_cache()
                compiled = self.kernel.warmup(*arguments, grid=grid, **self.constants)
            if compiled is not None:
                compiled._init_handles()
                if not isinstance(compiled.function, driver.Kernel):
                    return None
            if len(self.compiled) >= _LARGEST_CACHE:
                self.compiled.clear()
            self.compiled[key] = compiled
        return compiled

    def _sender(self, passed: tuple[str, ...]) -> Callable[..., Any]:
        """The function that packs the arguments of a compiled kernel and calls it."""
        if passed not in self.senders:
            values = ", ".join(f"{name}.data_ptr()" if name in self.tensors else name for name in passed)
            tensors = ", ".join(name if name in self.tensors else "None" for name in passed)
            scope = {"run": driver.runtime().launch_checked, "share_memory": _share_memory}
            self.senders[passed] = _define(
                f"def send({', '.join(['plan', *self.names])}):\n"
                f"    if plan.exact and share_memory(plan.written, ({tensors},)): return False\n"
                f"    block = plan.head + plan.pack({values})\n"
                f"    failure = run(block, plan.pairs, plan.pair_count)\n"
                f"    if failure is None: return True\n"
                f"    if failure == b'overlap':  # closer than the plan's own tensors were: look at these\n"
                f"        if share_memory(plan.written, ({tensors},)): return False\n"
                f"        failure = run(block, b'', 0)\n"
                f"    if failure is not None: raise RuntimeError(failure.decode())\n"
                f"    return True\n",
                "send",
                scope,
            )
        return self.senders[passed]


def _define(source: str, name: str, scope: dict[str, Any]) -> Callable[..., Any]:
    exec(source, scope)
    return scope[name]


def _specialized(value: int) -> tuple:
    return (type(value), value == 1, -(2**31) <= value < 2**31, -(2**63) <= value < 2**63)


def _globals_unchanged(used: list[tuple]) -> bool:
    """Whether the globals that a kernel was compiled with are unchanged; comparing constexprs takes a microsecond."""
    for scope, name, value, seen in used:
        now = scope.get(name, _MISSING)
        if (now is not seen or type(now) is not constexpr) and now != value:
            return False
    return True


def _share_memory(written: list[int], arguments: Sequence[Any]) -> bool:
    return driver.overlaps(written, [None if a is None else driver.memory_span(a) for a in arguments])


_sites: dict[tuple, CallSite] = {}
# By the kernel's id: call sites of one kernel share Triton's state of it, hence one lock.
_compiling: dict[int, threading.RLock] = {}


def _content(constants: Mapping[str, Any]) -> tuple:
    """A key that distinguishes constants which compare equal: 1, 1.0 and True."""
    return tuple(constants.items()), _types(tuple(constants.values()))


def _types(value: Any) -> Any:
    """The type of a constant, and of the items if it is a tuple."""
    return (type(value), *map(_types, value)) if isinstance(value, tuple) else type(value)


def launch(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Mapping[str, Any]) -> bool:
    """Run a kernel by its plan; False if only Triton's own launcher can run it."""
    types = tuple(map(type, arguments))
    # Hashing a kernel is slow. Its call sites keep it alive, so that no other kernel gets its id.
    key = (id(kernel), types, constants if type(constants) is Constants else _content(constants))
    site = _sites.get(key)
    if site is None:
        if type(kernel) is not JITFunction or callable(grid):
            return False
        if len(_sites) >= _LARGEST_CACHE:
            _sites.clear()
        by_content = (id(kernel), types, _content(constants))
        site = _sites[key] = _sites.get(by_content) or CallSite(kernel, types, constants)
        _sites[by_content] = site
    return site.launch(grid, arguments)


# A lock held by another thread during a fork would never be released in the child.
driver.after_fork_callbacks += [_sites.clear, _compiling.clear]

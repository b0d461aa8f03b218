"""The CPU engine's launch plans: the compiled kernel, the grid, and the layout of the block of arguments.

The number of threads is a part of the key. Alignment is not: the engine compiles one kernel for aligned and misaligned
pointers.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tinynet_engines.plans import LARGEST_CACHE, CallSite, Form, Planner, define
from tinynet_kernels.launch import Grid

from . import driver, storage
from .memory import LARGE, memory_span, overlaps, prefer_huge_pages


class Plan:
    """One compiled kernel for one grid, number of threads and list of integers."""

    __slots__ = (
        "exact",
        "grid",
        "head",
        "kernel",
        "large",
        "pack",
        "pair_count",
        "pairs",
        "passed",
        "send",
        "unchanged",
        "written",
    )

    def __init__(
        self,
        compiled: Any,
        grid: Grid,
        flat: list[tuple[str, Any]],
        passed: list[int],
        unchanged: Callable[[], bool] | None,
        sender: Callable[[bool], Callable[..., bool]],
    ) -> None:
        kernel: driver.Kernel = compiled.function
        self.kernel = kernel
        self.grid = (*grid, 1, 1)[:3]
        self.head = driver.block_head(kernel.address, kernel.arena_bytes, self.grid, torch.get_num_threads())
        self.pack = struct.Struct("=" + "".join(driver.slot_format(kind) for kind, _ in flat)).pack
        self.passed = passed  # positions of the arguments that the compiled kernel takes
        self.unchanged = unchanged
        # A kernel that relies on its arguments not to overlap: the minimal distance between them. What a kernel touches
        # follows from its integers and its grid, unless it loads addresses; then every launch inspects the tensors.
        self.written = kernel.written
        self.exact = kernel.overlap_matters and kernel.data_dependent
        spans = [memory_span(value) if kind[0] == "*" else None for kind, value in flat]
        pairs = [
            struct.pack("=4q", target, other, _length(spans[target]), _length(span))
            for target in kernel.written
            for other, span in enumerate(spans)
            if kernel.overlap_matters and not self.exact and span is not None and other != target
        ]
        self.pairs, self.pair_count = b"".join(pairs), len(pairs)
        self.large = [target for target in kernel.written if _length(spans[target]) >= LARGE]
        self.send = sender(bool(self.large))

    def block(self, passed: Sequence[Any]) -> bytes:
        """The block of a launch with these arguments, which may overlap in memory."""
        head = self.head
        if self.kernel.overlap_matters and _share_memory(self.written, passed):
            head = self.overlapping_head()
        return head + self.pack(*(each.data_ptr() if isinstance(each, torch.Tensor) else each for each in passed))

    def overlapping_head(self) -> bytes:
        """The head of a launch whose arguments overlap in memory."""
        return driver.block_head(*self.kernel.overlapping, self.grid, torch.get_num_threads())


def _length(span: tuple[int, int] | None) -> int:
    return span[1] - span[0] if span else 0


class CPUCallSite(CallSite):
    """Plans for one kernel, list of argument types and constants; see `CallSite`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.compiled: dict[tuple, Any] = {}
        self.senders: dict[tuple[tuple[str, ...], bool], Callable[..., Any]] = {}

    def _form(self) -> Form:
        on_cpu = " and ".join(f"{n}.is_cpu" for n in self.tensors) or "True"
        call = f"plan.send({', '.join(['plan', *self.names])})"
        return Form(on_cpu, [], ["threads()"], "unchanged = plan.unchanged", call, {"threads": torch.get_num_threads})

    def create(self, grid: Grid, arguments: tuple[Any, ...]) -> Plan | None:
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
        positions = [self.names.index(by_name[name]) for name in passed]
        sender = functools.partial(self._sender, tuple(by_name[name] for name in passed))
        return Plan(compiled, grid, flat, positions, self.unchanged(), sender)

    def _compile(self, grid: Grid, arguments: tuple[Any, ...]) -> Any:
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
            if len(self.compiled) >= LARGEST_CACHE:
                self.compiled.clear()
            self.compiled[key] = compiled
        return compiled

    def _sender(self, passed: tuple[str, ...], writes_large: bool) -> Callable[..., Any]:
        """The function that packs the arguments of a compiled kernel, large results among them, and calls it."""
        if (passed, writes_large) not in self.senders:
            values = ", ".join(f"{name}.data_ptr()" if name in self.tensors else name for name in passed)
            tensors = ", ".join(name if name in self.tensors else "None" for name in passed)
            shared = f"share_memory(plan.written, ({tensors},))"
            lines = [
                *([f"prefer_huge_pages(plan.large, ({tensors},))"] if writes_large else []),
                f"packed = plan.pack({values})",
                f"if plan.exact and {shared}:",
                "    failure = run(plan.overlapping_head() + packed, b'', 0)",
                "else:",
                "    failure = run(plan.head + packed, plan.pairs, plan.pair_count)",
                "    if failure is None: return True",
                "    if failure == b'overlap':  # closer than the plan's own tensors were: look at these",
                f"        head = plan.overlapping_head() if {shared} else plan.head",
                "        failure = run(head + packed, b'', 0)",
                "if failure is not None: raise RuntimeError(failure.decode())",
                "return True",
            ]
            scope = {"run": driver.runtime().launch_checked, "share_memory": _share_memory}
            scope |= {"prefer_huge_pages": prefer_huge_pages}
            definition = f"send({', '.join(['plan', *self.names])})"
            self.senders[passed, writes_large] = define(definition, lines, scope)
        return self.senders[passed, writes_large]


def _specialized(value: int) -> tuple:
    return (type(value), value == 1, -(2**31) <= value < 2**31, -(2**63) <= value < 2**63)


def _share_memory(written: list[int], arguments: Sequence[Any]) -> bool:
    spans = [memory_span(each) if isinstance(each, torch.Tensor) else None for each in arguments]
    return overlaps(written, spans)


planner = Planner(CPUCallSite)
# A lock held by another thread during a fork would never be released in the child.
driver.after_fork_callbacks.append(planner.clear)

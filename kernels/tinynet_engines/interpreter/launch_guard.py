"""The guard: runs kernels in the interpreter and reports faults that a device would not show.

It replaces the interpreter's load, store, atomic, pointer arguments and program order for the duration of a `with`
block. Kernels need no change, and a kernel without faults computes the same values under it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

from tinynet_engines.interpreter.guard_options import Extent, GuardOptions, Order, Poison
from tinynet_engines.interpreter.installation import install
from tinynet_engines.interpreter.launch_state import LaunchState
from tinynet_engines.interpreter.memory import TAG_SHIFT, Region, tensors_of
from tinynet_engines.interpreter.poison import POISONS, Snapshot, total_bytes
from tinynet_engines.interpreter.reports import GuardError, Launch, Report
from tinynet_kernels.launch import Grid, Reached, observers

Builder = interpreter.InterpreterBuilder
Executor = interpreter.GridExecutor
Handle = interpreter.TensorHandle

# Launches with more storage than this in total are not copied, so that poison can't be traced to a result.
SNAPSHOT_LIMIT = 1 << 30


class guard:
    """Checks every kernel launched inside a `with` block; needs `TRITON_INTERPRET=1`.

    Lanes that a mask switches off in a load without `other` hold poison. A launch in which that happens runs
    once with each poison, and its results must agree; loads whose lanes make no difference are not reported. Guards
    can't be nested.

    Args:
        poison: the value of such lanes in the final results; None uses the interpreter's zeros and checks nothing.
        order: the order in which programs run.
        seed: seed of the shuffled order.
        bounds: checks each access against the tensor that its pointer derives from.
        races: checks that no two programs touch one element unless both read, or both use atomics.
        barriers: checks that no program overwrites what it loaded, or reads back what it stored, without a
            `tl.debug_barrier()` in between: on a device several warps may hold the same element of a small tile.
        overflow: checks integer arithmetic narrower than 64 bits, except that of poison; enables `tl.device_assert`.
        extent: the memory that a tensor argument gives access to: "view", its own elements without the gaps between
            them, or "storage", all of the storage that it shares with other views.
        strict: raises `GuardError` at the end of the block if there are reports; otherwise they are only collected.

    Attributes:
        reports: faults, as `Report`s.
        launches: one `Launch` per kernel launch, with the bytes moved.
        allowed: the memory named by `allow`.

    Raises:
        GuardError: at the end of the block, if strict.
        RuntimeError: a guard is active already, or kernels are not interpreted.

    Example:
        >>> with tinynet.guard() as watch:
        ...     kernel[grid](x, y, n, BLOCK=128)
    """

    _active: ClassVar[guard | None] = None

    def __init__(
        self,
        poison: Poison | None = "nan",
        order: Order = "shuffle",
        seed: int = 0,
        *,
        bounds: bool = True,
        races: bool = True,
        barriers: bool = False,
        overflow: bool = True,
        extent: Extent = "view",
        strict: bool = True,
    ) -> None:
        self.options = GuardOptions(
            poison=poison,
            order=order,
            seed=seed,
            bounds=bounds,
            races=races,
            barriers=barriers,
            overflow=overflow,
            extent=extent,
            strict=strict,
        )
        self.reports: list[Report] = []
        self.launches: list[Launch] = []
        self.allowed: list[Region] = []
        self._patches = contextlib.ExitStack()
        self._launch_state: LaunchState | None = None

    @classmethod
    def active(cls) -> guard | None:
        """The guard whose block is running, or None."""
        return cls._active

    def allow(self, *tensors: torch.Tensor) -> None:
        """Lets kernels reach these tensors through addresses that are not arguments, such as a table of pointers.

        A pointer computed from an integer is checked against the extents of all allowed tensors.

        Args:
            tensors: kept alive until the guard ends.
        """
        for tensor in tensors:
            self.allowed.append(Region.of(tensor, f"allowed[{len(self.allowed)}]", self.options.extent))

    def _allow_reached(self, kernel: Any, grid: Grid, reached: Reached) -> None:
        for column in reached:
            self.allow(*column)

    def __enter__(self) -> guard:
        if guard._active is not None:
            raise RuntimeError("guard: another guard is active; guards can't be nested")
        if not knobs.runtime.interpret:
            raise RuntimeError("guard: kernels are compiled; set TRITON_INTERPRET=1 before Triton is imported")
        install()
        self._patch()
        observers.append(self._allow_reached)
        guard._active = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        guard._active = None
        observers.remove(self._allow_reached)
        self._patches.close()
        if self.options.strict and self.reports and kind is None:
            raise GuardError(self.reports)

    # Hooks in the interpreter -----------------------------------------------------------------------------------

    def _patch(self) -> None:
        stock = {
            name: getattr(Builder, name)
            for name in (
                "create_masked_load",
                "create_masked_store",
                "create_atomic_rmw",
                "create_atomic_cas",
                "create_dot",
                "create_assert",
                "create_barrier",
                "set_grid_dim",
                "set_grid_idx",
            )
        }
        stock_convert, stock_launch = interpreter._implicit_cvt, Executor.__call__
        stock_semantic_load = interpreter.TritonSemantic.load

        def semantic_load(semantic: Any, pointer: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
            self._state.other_is_given = other is not None
            try:
                return stock_semantic_load(semantic, pointer, mask, other, *rest, **named)
            finally:
                self._state.other_is_given = False

        def load(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
            dtype = pointers.get_element_ty()
            size = interpreter._get_np_dtype(dtype).itemsize
            addresses, active = self._state.access(pointers, mask, size, "load")
            # Triton tests `if other`, which drops a block of one zero; its lanes hold zero all the same.
            if other is None and not self._state.other_is_given and not active.all():
                other = self._state.unspecified_lanes(mask, active.shape, dtype)
            address_handle = Handle(addresses, pointers.dtype)
            return stock["create_masked_load"](builder, address_handle, Handle(active, tl.int1), other, *rest, **named)

        def store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            addresses, active = self._state.access(pointers, mask, value.data.itemsize, "store", value.data)
            address_handle = Handle(addresses, pointers.dtype)
            return stock["create_masked_store"](builder, address_handle, value, Handle(active, tl.int1), *rest, **named)

        def atomic_rmw(builder: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            addresses, active = self._state.access(pointers, mask, value.data.itemsize, "atomic")
            address_handle = Handle(addresses, pointers.dtype)
            return stock["create_atomic_rmw"](builder, operation, address_handle, value, Handle(active, tl.int1), *rest)

        def atomic_cas(builder: Any, pointers: Any, compare: Any, value: Any, *rest: Any) -> Any:
            everywhere = np.ones(pointers.data.shape, dtype=bool)
            addresses, active = self._state.access(pointers, everywhere, value.data.itemsize, "atomic")
            if not active.all():
                return compare  # it has no mask that could exclude the reported lanes
            return stock["create_atomic_cas"](builder, Handle(addresses, pointers.dtype), compare, value, *rest)

        def dot(builder: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
            self._state.launch.dot_flops += 2 * a.data.size * b.data.shape[-1]
            return stock["create_dot"](builder, a, b, accumulator, *rest)

        def device_assert(builder: Any, condition: Any, message: str) -> None:
            if not condition.data.all():
                kind = "overflow" if "overflow detected" in str(message) else "assertion"
                self._state.report(kind, str(message))

        def barrier(builder: Any) -> None:
            stock["create_barrier"](builder)
            self._state.phase += 1

        def grid_dim(builder: Any, *grid: int) -> None:
            stock["set_grid_dim"](builder, *grid)
            self._state.start_grid(grid)

        def grid_index(builder: Any, *index: int) -> None:
            stock["set_grid_idx"](builder, *self._state.next_program(index))

        def convert(argument: Any) -> Any:
            result = stock_convert(argument)
            if hasattr(argument, "data_ptr"):
                tag = np.uint64(self._state.add_pointer(argument))
                result.handle.data = result.handle.data + (tag << TAG_SHIFT)
            return result

        def launch(executor: Any, *arguments: Any, **named: Any) -> Any:
            self._launch(stock_launch, executor, arguments, named)

        hooks = {
            "create_masked_load": load,
            "create_masked_store": store,
            "create_atomic_rmw": atomic_rmw,
            "create_atomic_cas": atomic_cas,
            "create_dot": dot,
            "create_assert": device_assert,
            "create_barrier": barrier,
            "set_grid_dim": grid_dim,
            "set_grid_idx": grid_index,
        }
        enter = self._patches.enter_context
        for name, hook in hooks.items():
            enter(mock.patch.object(Builder, name, hook))
        enter(mock.patch.object(interpreter.TritonSemantic, "load", semantic_load))
        enter(mock.patch.object(interpreter, "_implicit_cvt", convert))
        enter(mock.patch.object(Executor, "__call__", launch))
        if self.options.overflow:
            builder = interpreter.interpreter_builder
            options = dataclasses.replace(builder.options, debug=True, sanitize_overflow=True)
            enter(mock.patch.object(builder, "options", options))

    @property
    def _state(self) -> LaunchState:
        assert self._launch_state is not None, "an interpreted operation ran outside a launch"
        return self._launch_state

    # One launch -------------------------------------------------------------------------------------------------

    def _launch(self, stock: Any, executor: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        pointers = _pointer_arguments(executor, arguments, named)
        tensors = [tensor for _, tensor in pointers] + [region.tensor for region in self.allowed]
        memory = Snapshot(tensors) if self.options.poison and total_bytes(tensors) <= SNAPSHOT_LIMIT else None
        self._launch_state = state = LaunchState(
            self.options, self.allowed, self.reports, executor.fn.__name__, pointers, self.options.poison
        )
        self.launches.append(state.launch)
        try:
            stock(executor, *arguments, **named)
            state.finish()
            if state.poisoned_lines and memory is None:
                limit = f"whether results depend on it is not checked beyond {SNAPSHOT_LIMIT >> 20} MiB of tensors"
                self._report_poison(state, f"lanes masked off in a load without `other`; {limit}", state.poisoned_lines)
            elif state.poisoned_lines and memory is not None:
                self._trace_poison(_Rerun(self, state, memory, lambda: stock(executor, *arguments, **named)))
        finally:
            self._launch_state = None

    def _trace_poison(self, again: _Rerun) -> None:
        """Runs a launch again with other poisons; a result that differs depends on lanes it must not use."""
        state, results = again.state, Snapshot(again.memory.tensors)
        overflows = state.lines_of("overflow")
        if overflows:  # an overflow of poison alone is none
            state.withdraw("overflow", again.with_poison(None, silent=False).lines_of("overflow"))
        message = self._differences(again, results)
        if message:
            lines = list(state.poisoned_lines)
            if len(lines) > 1:
                again.with_poison(None)
                zeros = Snapshot(again.memory.tensors)
                lines = [line for line in lines if self._differences(again, zeros, line)] or lines
            self._report_poison(state, message, lines)
        results.restore()

    def _differences(self, again: _Rerun, expected: Snapshot, only_line: str | None = None) -> str:
        """How results with other poisons, in all loads or in those of one line, differ from these; "" if nowhere."""
        tensors = again.state.pointers + [(region.name, region.tensor) for region in self.allowed]
        different: dict[str, int] = {}
        for poison in POISONS:
            if poison == self.options.poison and only_line is None:
                continue
            try:
                again.with_poison(poison, only_line=only_line)
            except interpreter.InterpreterError as error:
                return f"with {poison} in lanes masked off without `other` it fails: {error}"
            for (name, tensor), count in zip(tensors, expected.differences(), strict=True):
                if count:
                    different[f"{name}{list(tensor.shape)}"] = count
            if different and only_line is not None:
                break
        outputs = ", ".join(f"{count} byte(s) of {name}" for name, count in different.items())
        return f"{outputs} depend on lanes masked off in a load without `other`" if outputs else ""

    def _report_poison(self, state: LaunchState, message: str, lines: Iterable[str]) -> None:
        self.reports += [Report("poison", state.launch.kernel, None, message, line) for line in lines]


@dataclasses.dataclass
class _Rerun:
    """A launch that can run again from the same memory."""

    watch: guard
    state: LaunchState
    memory: Snapshot
    run: Callable[[], Any]

    def with_poison(self, poison: str | None, silent: bool = True, only_line: str | None = None) -> LaunchState:
        """Runs it with a poison (None: zeros); its reports stay with the state that is returned."""
        watch, state = self.watch, self.state
        self.memory.restore()
        watch._launch_state = again = LaunchState(
            watch.options, watch.allowed, [], state.launch.kernel, state.pointers, poison, silent, only_line
        )
        self.run()
        return again


def _pointer_arguments(
    executor: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> list[tuple[str, torch.Tensor]]:
    """Parameter names and tensors of a launch, in the order in which the interpreter converts them."""
    parameters = inspect.getfullargspec(executor.fn)
    known = {*parameters.args, *parameters.kwonlyargs}
    values = inspect.getcallargs(
        executor.fn, *arguments, **{key: value for key, value in named.items() if key in known}
    )
    pointers = []
    for name, value in values.items():
        if name not in executor.constexprs:
            pointers += tensors_of(value, name)
    return pointers

"""The guard: runs kernels in the interpreter and reports what a device would do silently.

It replaces the interpreter's load, store, atomic, pointer argument and program order for the length of a `with`
block. Nothing in a kernel changes, and a kernel without a fault computes the same values under it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from typing import Any, ClassVar, Literal
from unittest import mock

import numpy as np
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

from tinynet.engines.interpreter import install
from tinynet.engines.interpreter.memory import (
    ADDRESS_MASK,
    SEVERAL,
    TAG_SHIFT,
    Conflict,
    Region,
    Shadow,
    tensors_of,
)
from tinynet.engines.interpreter.reports import (
    ArgumentTraffic,
    GuardError,
    Launch,
    Report,
    kernel_location,
)

Builder = interpreter.InterpreterBuilder
Executor = interpreter.GridExecutor
Handle = interpreter.TensorHandle

Poison = Literal["nan", "inf", "-inf"]
Order = Literal["shuffle", "forward", "reverse"]

# Folders whose frames are not a kernel's: Triton, numpy and this one.
_MACHINERY = tuple(
    os.path.join(os.path.abspath(folder), "")
    for folder in (
        os.path.dirname(triton.__file__),
        os.path.dirname(np.__file__),
        os.path.dirname(__file__),
    )
)

# A masked lane's value by poison: floating point, bfloat16 bits, float8 bits, integer (cut to its width).
_POISON_VALUES: dict[str, tuple[float, int, int, int]] = {
    "nan": (np.nan, 0x7FC0, 0x7F, 0x5A5A5A5A5A5A5A5A),
    "inf": (np.inf, 0x7F80, 0x7E, 0x7FFFFFFFFFFFFFFF),
    "-inf": (-np.inf, 0xFF80, 0xFE, -1),
}

# Launches whose storages are larger together are not copied, so that poison can't be followed to a result.
_SNAPSHOT_LIMIT = 1 << 30


def poison_array(shape: tuple[int, ...], dtype: Any, poison: str) -> np.ndarray:
    """An array of what masked lanes of a load without `other` get."""
    floating, bfloat16_bits, float8_bits, integer = _POISON_VALUES[poison]
    numpy_dtype = interpreter._get_np_dtype(dtype)
    if dtype == tl.bfloat16:
        return np.full(shape, bfloat16_bits, numpy_dtype)
    if dtype.is_floating():
        return np.full(shape, float8_bits if dtype.primitive_bitwidth == 8 else floating, numpy_dtype)
    return np.full(shape, integer, np.int64).astype(numpy_dtype)


class guard:
    """Watches every kernel launched inside a `with` block; needs `TRITON_INTERPRET=1`.

    >>> with tinynet.guard() as watch:
    ...     kernel[grid](x, y, n, BLOCK=128)

    The lanes that a mask switches off in a load without `other` hold poison. A launch in which that happens is run
    once with each poison, and its results must agree. Guards don't nest.

    Args:
        poison: what such lanes hold in the results that stay; None leaves the interpreter's zeros and checks nothing.
        order: the order of programs.
        seed: of the shuffled order.
        bounds: checks each access against the tensor that its pointer came from.
        races: checks that no two programs touch one element unless both read, or both use atomics.
        barriers: checks that no program overwrites what it loaded, or reads back what it stored, without a
            `tl.debug_barrier()` between: on a device several warps may hold the same element of a small tile.
        overflow: checks integer arithmetic narrower than 64 bits; switches `tl.device_assert` on as well.
        extent: what a tensor argument allows: "view", its own elements, gaps between them excluded, or "storage",
            all of the storage that it shares with other views.
        strict: raises `GuardError` at the end of the block if there are reports; else they are only collected.

    Attributes:
        reports: faults, as `Report`s.
        launches: one `Launch` a kernel launch, with the bytes moved.

    Raises:
        GuardError: at the end of the block, if strict.
        RuntimeError: a guard is active already, or kernels are not interpreted.
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
        extent: Literal["view", "storage"] = "view",
        strict: bool = True,
    ) -> None:
        for name, value, choices in (
            ("poison", poison, (None, *_POISON_VALUES)),
            ("order", order, ("shuffle", "forward", "reverse")),
            ("extent", extent, ("view", "storage")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: got {value!r}, expected one of {choices}")
        self.poison, self.order, self.seed, self.extent = poison, order, seed, extent
        self.bounds, self.races, self.barriers, self.overflow = bounds, races, barriers, overflow
        self.strict = strict
        self.reports: list[Report] = []
        self.launches: list[Launch] = []
        self._allowed: list[Region] = []
        self._patches = contextlib.ExitStack()
        self._launch_state: _LaunchState | None = None

    @classmethod
    def active(cls) -> guard | None:
        """The guard whose block is running, or None."""
        return cls._active

    def allow(self, *tensors: torch.Tensor) -> None:
        """Lets kernels reach these tensors through addresses that are no argument: a table of pointers.

        A pointer made from an integer is checked against the extents of all allowed tensors.

        Args:
            tensors: kept alive until the guard goes.
        """
        for tensor in tensors:
            self._allowed.append(Region.of(tensor, f"allowed[{len(self._allowed)}]", self.extent))

    def __enter__(self) -> guard:
        if guard._active is not None:
            raise RuntimeError("guard: another guard is active; guards don't nest")
        if not knobs.runtime.interpret:
            raise RuntimeError("guard: kernels are compiled; set TRITON_INTERPRET=1 before Triton is imported")
        install()
        self._patch()
        guard._active = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        guard._active = None
        self._patches.close()
        if self.strict and self.reports and kind is None:
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

        def load(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
            dtype = pointers.get_element_ty()
            size = interpreter._get_np_dtype(dtype).itemsize
            addresses, active = self._state.access(pointers, mask, size, "load")
            if other is None and not active.all():
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
                return compare  # it has no mask to leave the reported lanes out with
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
        enter(mock.patch.object(interpreter, "_implicit_cvt", convert))
        enter(mock.patch.object(Executor, "__call__", launch))
        if self.overflow:
            builder = interpreter.interpreter_builder
            options = dataclasses.replace(builder.options, debug=True, sanitize_overflow=True)
            enter(mock.patch.object(builder, "options", options))

    @property
    def _state(self) -> _LaunchState:
        assert self._launch_state is not None, "an interpreted operation ran outside a launch"
        return self._launch_state

    # One launch -------------------------------------------------------------------------------------------------

    def _launch(self, stock: Any, executor: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        pointers = _pointer_arguments(executor, arguments, named)
        tensors = [tensor for _, tensor in pointers] + [region.tensor for region in self._allowed]
        memory = _Snapshot(tensors) if self.poison and _total_bytes(tensors) <= _SNAPSHOT_LIMIT else None
        self._launch_state = state = _LaunchState(self, executor.fn.__name__, pointers, self.poison)
        self.launches.append(state.launch)
        try:
            stock(executor, *arguments, **named)
            state.finish()
            if state.poisoned_lines and memory is None:
                limit = f"whether results depend on it is not tried beyond {_SNAPSHOT_LIMIT >> 20} MiB of tensors"
                self._report_poison(state, f"lanes masked off in a load without `other`; {limit}")
            elif state.poisoned_lines and memory is not None:
                self._compare_poisons(state, memory, lambda: stock(executor, *arguments, **named))
        finally:
            self._launch_state = None

    def _compare_poisons(self, state: _LaunchState, memory: _Snapshot, run: Any) -> None:
        """Runs the launch again with the other poisons; a result that differs depends on lanes it must not use."""
        kept = _Snapshot(memory.tensors)
        different: dict[str, int] = {}
        for poison in _POISON_VALUES:
            if poison == self.poison:
                continue
            memory.restore()
            self._launch_state = _LaunchState(self, state.launch.kernel, state.pointers, poison, silent=True)
            try:
                run()
            except interpreter.InterpreterError as error:
                kept.restore()
                self._report_poison(state, f"with {poison} in lanes masked off without `other` it fails: {error}")
                return
            for (name, tensor), count in zip(self._named(state), kept.differences(), strict=True):
                if count:
                    different[f"{name}{list(tensor.shape)}"] = count
        kept.restore()
        if different:
            outputs = ", ".join(f"{count} byte(s) of {name}" for name, count in different.items())
            self._report_poison(state, f"{outputs} depend on lanes masked off in a load without `other`")

    def _report_poison(self, state: _LaunchState, message: str) -> None:
        for line in state.poisoned_lines:
            self._add(Report("poison", state.launch.kernel, None, message, line))

    def _named(self, state: _LaunchState) -> list[tuple[str, torch.Tensor]]:
        return state.pointers + [(region.name, region.tensor) for region in self._allowed]

    def _add(self, report: Report) -> None:
        self.reports.append(report)


class _LaunchState:
    """What the guard knows of the launch in progress."""

    def __init__(
        self,
        owner: guard,
        kernel: str,
        pointers: list[tuple[str, torch.Tensor]],
        poison: str | None,
        silent: bool = False,
    ) -> None:
        self.owner = owner
        self.launch = Launch(kernel)
        self.pointers = pointers
        self.poison = poison
        self.silent = silent
        self.poisoned_lines: dict[str, None] = {}  # an ordered set
        self.program: tuple[int, ...] = (0, 0, 0)
        self.phase = 0  # barriers and programs so far
        self._linear_program = 0
        self._order = np.zeros(0, dtype=np.int64)
        self._seen: dict[tuple[str, str], Report] = {}
        self._arguments: list[Region] = []
        self._allowed = [dataclasses.replace(region) for region in owner._allowed]
        self._shadows: dict[int, Shadow] = {}

    # Programs and arguments

    def add_pointer(self, argument: Any) -> int:
        """Takes the next pointer argument, in the order of the parameters, and returns its tag."""
        name, _ = self.pointers[len(self._arguments)]
        ((_, tensor),) = tensors_of(argument, name)  # the host's copy where the tensor is on a device
        self._arguments.append(Region.of(tensor, name, self.owner.extent))
        return len(self._arguments)

    def start_grid(self, grid: tuple[int, ...]) -> None:
        """Prepares the shadows, now that all arguments are known, and decides the order of the programs."""
        granularities: dict[int, int] = {}
        for region in (*self._arguments, *self._allowed):
            smallest = granularities.get(region.storage, region.element_size)
            granularities[region.storage] = min(smallest, region.element_size)
        self._shadows = {storage: Shadow(storage, size) for storage, size in granularities.items()}
        self.launch.grid = (grid[0], grid[1], grid[2])
        self._order = np.arange(int(np.prod(grid)))
        if self.owner.order == "reverse":
            self._order = self._order[::-1]
        elif self.owner.order == "shuffle":
            np.random.default_rng(self.owner.seed).shuffle(self._order)

    def next_program(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """The program that runs when the interpreter's loop has come to `index`."""
        position = np.ravel_multi_index(index, self.launch.grid)
        self._linear_program = int(self._order[position])
        self.program = self._unravel(self._linear_program)
        self.phase += 1
        return self.program

    def _unravel(self, linear_program: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(linear_program, self.launch.grid))

    # Memory

    def unspecified_lanes(self, mask: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """The `other` of a load that names none."""
        if self.poison is None:
            return None
        if not _lanes(mask).all():  # else they are lanes out of bounds, and reported as such
            self.poisoned_lines[kernel_location(_MACHINERY)] = None
        return Handle(poison_array(shape, dtype, self.poison), dtype)

    def access(
        self, pointers: Any, mask: Any, size: int, action: str, values: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Checks one access of the running program and counts its bytes.

        Args:
            pointers: handle of tagged addresses.
            mask: handle or array of active lanes.
            size: bytes a lane.
            action: "load", "store" or "atomic".
            values: what a store writes.

        Returns:
            Addresses without tags, and the lanes that may go ahead: the active ones without a report.
        """
        tagged = pointers.data
        addresses, tags = tagged & ADDRESS_MASK, tagged >> TAG_SHIFT
        permitted = np.array(np.broadcast_to(_lanes(mask), tagged.shape), dtype=bool)
        active_tags = tags[permitted]
        if active_tags.size and (active_tags == active_tags[0]).all():
            active_tags = active_tags[:1]  # the usual case, without a sort
        for tag in np.unique(active_tags):
            lanes = permitted & (tags == tag)
            for region, owned in self._split_by_region(int(tag), addresses, lanes, size, action, permitted):
                self._note(region, addresses[owned].astype(np.int64), size, action)
        if values is not None and self.owner.races:
            stored = np.broadcast_to(values, tagged.shape)[permitted]
            self._check_duplicates(addresses[permitted], stored)
        return addresses, permitted

    def _split_by_region(
        self, tag: int, addresses: np.ndarray, lanes: np.ndarray, size: int, action: str, permitted: np.ndarray
    ) -> list[tuple[Region, np.ndarray]]:
        """Lanes of one tag by the region they fall in; lanes that fall in none are reported and not permitted."""
        signed = addresses.astype(np.int64)
        regions = self._arguments[tag - 1 : tag] if tag else self._allowed
        rest, parts = lanes, []
        for region in regions:
            inside = rest & ~region.outside(signed, size)
            if inside.any():
                parts.append((region, inside))
                rest = rest & ~inside
        if not self.owner.bounds:
            return parts
        if rest.any():
            self._report_outside(tag, regions, signed[rest], action)
            permitted &= ~rest
        misaligned = lanes & (addresses % np.uint64(size) != 0) & permitted
        if misaligned.any():
            self.report("misaligned", f"{action} of {np.count_nonzero(misaligned)} lane(s) of {size} bytes")
        return parts

    def _report_outside(self, tag: int, regions: list[Region], addresses: np.ndarray, action: str) -> None:
        lanes = f"{action} of {addresses.size} lane(s)"
        if tag and regions:
            self.report("out-of-bounds", f"{lanes} outside its argument: {regions[0].describe(addresses)}")
        elif tag:
            self.report("out-of-bounds", f"{lanes} at an address that no argument leads to")
        elif regions:
            self.report("out-of-bounds", f"{lanes} outside every tensor given to guard.allow")
        else:
            message = f"{lanes} through a pointer made from an integer; name its memory with guard.allow(...)"
            self.report("out-of-bounds", message)

    def _note(self, region: Region, addresses: np.ndarray, size: int, action: str) -> None:
        """Counts an access that is in bounds, and looks for a race."""
        if action != "store":
            region.bytes_loaded += addresses.size * size
        if action != "load":
            region.bytes_stored += addresses.size * size
        if not self.owner.races or self.silent:
            return
        shadow = self._shadows[region.storage]
        for conflict in shadow.record(addresses, size, self._linear_program, self.phase, action):
            if conflict.kind == "no-barrier":
                self._report_missing_barrier(region, conflict, action)
                continue
            other = "several programs"
            if conflict.other_program != SEVERAL:
                other = f"program {self._unravel(conflict.other_program)}"
            verb = {"load": "read", "store": "written", "atomic": "updated"}[action]
            touched = "written" if conflict.kind == "write-write" or action == "load" else "read"
            message = f"{conflict.elements} element(s) of {region.name} {verb} here are {touched} by {other}"
            self.report(conflict.kind, message)

    def _report_missing_barrier(self, region: Region, conflict: Conflict, action: str) -> None:
        if self.owner.barriers:
            before, now = ("stored", "loads") if action == "load" else ("loaded", "overwrites")
            elements = f"{conflict.elements} element(s) of {region.name}"
            self.report("no-barrier", f"{now} {elements} that it {before} since the last tl.debug_barrier()")

    def _check_duplicates(self, addresses: np.ndarray, values: np.ndarray) -> None:
        """Reports lanes of one store that write different values to one address."""
        if self.silent or addresses.size < 2 or (np.diff(addresses.astype(np.int64)) > 0).all():
            return
        unique, first, inverse = np.unique(addresses, return_index=True, return_inverse=True)
        if unique.size == addresses.size:
            return
        bits = np.ascontiguousarray(values).view(f"u{values.itemsize}")
        different = bits != bits[first][inverse.reshape(-1)]
        if different.any():
            message = f"{np.count_nonzero(different)} lane(s) write another value to an address already written"
            self.report("duplicate-store", message)

    # Reports and traffic

    def report(self, kind: str, message: str) -> None:
        """Notes a fault of the running program at the kernel's current line, once a line and kind."""
        if self.silent:
            return
        location = kernel_location(_MACHINERY)
        key = (kind, location)
        if key in self._seen:
            self._seen[key].occurrences += 1
            return
        self._seen[key] = Report(kind, self.launch.kernel, self.program, message, location)
        self.owner._add(self._seen[key])

    def finish(self) -> None:
        """Writes the traffic of every tensor into the launch."""
        for region, name, tensor in [
            *((region, name, tensor) for region, (name, tensor) in zip(self._arguments, self.pointers, strict=True)),
            *((region, f"allowed[{i}]", region.tensor) for i, region in enumerate(self._allowed)),
        ]:
            read, written = self._shadows[region.storage].elements_touched(region)
            self.launch.arguments[name] = ArgumentTraffic(
                tensor.numel(), region.bytes_loaded, region.bytes_stored, read, written
            )


def _lanes(mask: Any) -> np.ndarray:
    """The lanes of a mask; Triton 3.6 - 3.8 pass a descriptor's mask as a bare array."""
    return mask.data if isinstance(mask, Handle) else mask


class _Snapshot:
    """Copies of the storages under some tensors."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self._copies = [(storage, storage.clone()) for storage in storages.values()]

    def restore(self) -> None:
        """Writes the copies back."""
        for storage, copy in self._copies:
            storage.copy_(copy)

    def differences(self) -> list[int]:
        """How many bytes of each tensor's storage differ from its copy now."""
        counts = {storage.data_ptr(): _different_bytes(storage, copy) for storage, copy in self._copies}
        return [counts[tensor.untyped_storage().data_ptr()] for tensor in self.tensors]


def _total_bytes(tensors: list[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _different_bytes(storage: torch.UntypedStorage, other: torch.UntypedStorage) -> int:
    def as_bytes(data: torch.UntypedStorage) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8, device=data.device).set_(data)  # pyright: ignore

    return int((as_bytes(storage) != as_bytes(other)).sum())


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

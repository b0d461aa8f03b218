"""One launch under the guard: the running program, the memory its accesses may touch, and its reports."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch
import triton
from triton.runtime import interpreter

from tinynet_engines.interpreter.guard_options import GuardOptions
from tinynet_engines.interpreter.memory import (
    ADDRESS_MASK,
    SEVERAL,
    TAG_SHIFT,
    Conflict,
    Region,
    Shadow,
    tensors_of,
)
from tinynet_engines.interpreter.poison import poison_array
from tinynet_engines.interpreter.reports import ArgumentTraffic, Launch, Report, kernel_location

Handle = interpreter.TensorHandle

# Folders whose frames do not belong to a kernel: Triton, numpy and this package.
_MACHINERY = tuple(
    os.path.join(os.path.abspath(folder), "")
    for folder in (
        os.path.dirname(triton.__file__),
        os.path.dirname(np.__file__),
        os.path.dirname(__file__),
    )
)


class LaunchState:
    """The guard's data about the launch in progress."""

    def __init__(
        self,
        options: GuardOptions,
        allowed: list[Region],
        reports: list[Report],
        kernel: str,
        pointers: list[tuple[str, torch.Tensor]],
        poison: str | None,
        silent: bool = False,
        only_line: str | None = None,
    ) -> None:
        self.options = options
        self._reports = reports  # shared by the whole guard
        self.launch = Launch(kernel)
        self.pointers = pointers
        self.poison = poison
        self.silent = silent
        self._only_line = only_line  # the one whose loads hold poison; None: all
        self._poisoned_loads = 0
        self.poisoned_lines: dict[str, None] = {}  # an ordered set
        self.other_is_given = False  # in the current load
        self.program: tuple[int, ...] = (0, 0, 0)
        self.phase = 0  # barriers and programs so far
        self._linear_program = 0
        self._order = np.zeros(0, dtype=np.int64)
        self._seen: dict[tuple[str, str], Report] = {}
        self._arguments: list[Region] = []
        self._allowed = [dataclasses.replace(region) for region in allowed]
        self._shadows: dict[int, Shadow] = {}

    # Programs and arguments

    def add_pointer(self, argument: Any) -> int:
        """Takes the next pointer argument, in the order of the parameters, and returns its tag."""
        name, _ = self.pointers[len(self._arguments)]
        ((_, tensor),) = tensors_of(argument, name)  # the host's copy if the tensor is on a device
        self._arguments.append(Region.of(tensor, name, self.options.extent))
        return len(self._arguments)

    def start_grid(self, grid: tuple[int, ...]) -> None:
        """Prepares the shadows once all arguments are known, and decides the order of the programs."""
        granularities: dict[int, int] = {}
        for region in (*self._arguments, *self._allowed):
            smallest = granularities.get(region.storage, region.element_size)
            granularities[region.storage] = min(smallest, region.element_size)
        self._shadows = {storage: Shadow(storage, size) for storage, size in granularities.items()}
        self.launch.grid = (grid[0], grid[1], grid[2])
        self._order = np.arange(int(np.prod(grid)))
        if self.options.order == "reverse":
            self._order = self._order[::-1]
        elif self.options.order == "shuffle":
            np.random.default_rng(self.options.seed).shuffle(self._order)

    def next_program(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """The program that runs when the interpreter's loop reaches `index`."""
        position = np.ravel_multi_index(index, self.launch.grid)
        self._linear_program = int(self._order[position])
        self.program = self._unravel(self._linear_program)
        self.phase += 1
        return self.program

    def _unravel(self, linear_program: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(linear_program, self.launch.grid))

    # Memory

    def unspecified_lanes(self, mask: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """The `other` of a load that specifies none."""
        if self.poison is None:
            return None
        self._poisoned_loads += 1
        if not _lanes(mask).all():  # otherwise they are out of bounds, and reported as such
            line = kernel_location(_MACHINERY)
            self.poisoned_lines[line] = None
            if self._only_line is not None and line != self._only_line:
                return None
        return Handle(poison_array(shape, dtype, self.poison, self._poisoned_loads), dtype)

    def access(
        self, pointers: Any, mask: Any, size: int, action: str, values: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Checks one access of the running program and counts its bytes.

        Args:
            pointers: handle of tagged addresses.
            mask: handle or array of active lanes.
            size: bytes per lane.
            action: "load", "store" or "atomic".
            values: what a store writes.

        Returns:
            Addresses without tags, and the lanes that may proceed: the active ones without a report.
        """
        tagged = pointers.data
        addresses, tags = tagged & ADDRESS_MASK, tagged >> TAG_SHIFT
        permitted = np.array(np.broadcast_to(_lanes(mask), tagged.shape), dtype=bool)
        active_tags = tags[permitted]
        if active_tags.size and (active_tags == active_tags[0]).all():
            active_tags = active_tags[:1]  # the usual case, which needs no sort
        for tag in np.unique(active_tags):
            lanes = permitted & (tags == tag)
            for region, owned in self._split_by_region(int(tag), addresses, lanes, size, action, permitted):
                self._note(region, addresses[owned].astype(np.int64), size, action)
        if values is not None and self.options.races:
            stored = np.broadcast_to(values, tagged.shape)[permitted]
            self._check_duplicates(addresses[permitted], stored)
        return addresses, permitted

    def _split_by_region(
        self, tag: int, addresses: np.ndarray, lanes: np.ndarray, size: int, action: str, permitted: np.ndarray
    ) -> list[tuple[Region, np.ndarray]]:
        """Lanes of one tag by the region they are in; lanes in no region are reported and not permitted."""
        signed = addresses.astype(np.int64)
        regions = self._arguments[tag - 1 : tag] if tag else self._allowed
        rest, parts = lanes, []
        for region in regions:
            inside = rest & ~region.outside(signed, size)
            if inside.any():
                parts.append((region, inside))
                rest = rest & ~inside
        if not self.options.bounds:
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
            self.report("out-of-bounds", f"{lanes} at an address that derives from no argument")
        elif regions:
            self.report("out-of-bounds", f"{lanes} outside every tensor given to guard.allow")
        else:
            message = f"{lanes} through a pointer computed from an integer; name its memory with guard.allow(...)"
            self.report("out-of-bounds", message)

    def _note(self, region: Region, addresses: np.ndarray, size: int, action: str) -> None:
        """Counts an access that is in bounds, and checks for races."""
        if action != "store":
            region.bytes_loaded += addresses.size * size
        if action != "load":
            region.bytes_stored += addresses.size * size
        if not self.options.races or self.silent:
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
        if self.options.barriers:
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
            message = f"{np.count_nonzero(different)} lane(s) write a different value to an address already written"
            self.report("duplicate-store", message)

    # Reports and traffic

    def report(self, kind: str, message: str) -> None:
        """Records a fault of the running program at the kernel's current line, once per line and kind."""
        if self.silent:
            return
        location = kernel_location(_MACHINERY)
        key = (kind, location)
        if key in self._seen:
            self._seen[key].occurrences += 1
            return
        self._seen[key] = Report(kind, self.launch.kernel, self.program, message, location)
        self._reports.append(self._seen[key])

    def withdraw(self, kind: str, locations: set[str]) -> None:
        """Removes this launch's reports of a kind at other lines than these."""
        for (reported, location), report in list(self._seen.items()):
            if reported == kind and location not in locations:
                del self._seen[reported, location]
                self._reports[:] = [each for each in self._reports if each is not report]

    def lines_of(self, kind: str) -> set[str]:
        """The lines of this launch's reports of a kind."""
        return {location for reported, location in self._seen if reported == kind}

    def finish(self) -> None:
        """Records the traffic of every tensor in the launch."""
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

"""Launch plans for Triton's own drivers, CUDA's and ROCm's: straight to the compiled kernel's launcher.

Triton compiles a kernel again where a pointer is or isn't a multiple of 16 bytes and, for AMD chips, where a tensor's
memory ends below 2 GiB; so both are in a plan's key. Pointers are passed as integers, which spares the launcher a call
into PyTorch and a query of the driver for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.runtime import driver as registry

from tinynet_engines.plans import CallSite, Form, Planner
from tinynet_kernels.launch import Grid, Launch

TARGETS = ("cuda", "hip")
# Read for each launch: other drivers may have been activated, and these hooks and modes change what is compiled.
_CONDITION = (
    "registry._active is driver and compilation.instrumentation_mode is mode and "
    "runtime.add_stages_inspection_hook is None"
)


class DriverPlan(NamedTuple):
    """One compiled kernel on one device, for one grid.

    Attributes:
        unchanged: see `CallSite.unchanged`.
        run: the launcher of the compiled kernel.
        function: the handle of the loaded kernel.
        metadata: what the launcher reads beside its arguments.
        x, y, z: numbers of programs.
    """

    unchanged: Callable[[], bool] | None
    run: Any
    function: Any
    metadata: Any
    x: int
    y: int
    z: int


class DriverCallSite(CallSite):
    """Plans for one kernel, list of argument types and constants; see `CallSite`."""

    def __init__(self, driver: Any, *arguments: Any) -> None:
        self.driver = driver
        super().__init__(*arguments)

    def _form(self) -> Form:
        kind = self.driver.get_active_torch_device().type
        pointers = {name: f"p{name[1:]}" for name in self.tensors}
        lines = [f"{pointer} = {name}.data_ptr()" for name, pointer in pointers.items()]
        all_bits = " | ".join(pointers.values()) or "0"
        alignment = ", ".join(f"{pointer} & 15 == 0" for pointer in pointers.values())
        key = ["device", f"not ({all_bits}) & 15 or ({alignment},)"]
        scope: dict[str, Any] = {"driver": self.driver, "registry": registry, "stream": self.driver.get_current_stream}
        scope |= {"compilation": knobs.compilation, "mode": knobs.compilation.instrumentation_mode}
        if kind == "cuda":
            lines.append(f"device = {self.tensors[0]}.get_device()")
            lines.append("if device != current_device(): return on(device, launch, arguments)")
            scope |= {"current_device": torch._C._cuda_getDevice, "on": _launch_on}
        else:
            lines.append("device = driver.get_current_device()")
        if self.driver.get_current_target().backend == "hip":
            key += [f"{name}.untyped_storage().nbytes() < 2147483648" for name in self.tensors]
        condition = " and ".join([_CONDITION, *(f"{name}.is_{kind}" for name in self.tensors)])
        values = dict(zip(self.kernel.arg_names, (pointers.get(name, name) for name in self.names), strict=False))
        # The launcher skips constants, but expects something in their places.
        passed = ", ".join(values.get(name, "None") for name in self.kernel.arg_names)
        call = f"run(x, y, z, stream(device), function, metadata, None, None, None, {passed}) is None"
        return Form(condition, lines, key, "unchanged, run, function, metadata, x, y, z = plan", call, scope)

    def create(self, grid: Grid, arguments: tuple[Any, ...]) -> DriverPlan | None:
        compiled: Any = self.kernel.warmup(*arguments, grid=grid, **self.constants)
        if compiled is None:
            return None
        signature = compiled.src.signature
        given = dict(zip(self.kernel.arg_names, arguments, strict=False))
        for name in self.kernel.arg_names:
            kind = signature[name]
            if (
                not isinstance(kind, str)
                or kind.startswith("tensordesc")
                or (kind != "constexpr" and name not in given)
            ):
                return None
        compiled._init_handles()
        x, y, z = (*grid, 1, 1)[:3]
        return DriverPlan(self.unchanged(), compiled.run, compiled.function, compiled.packed_metadata, x, y, z)


def _launch_on(device: int, launch: Launch, arguments: tuple[Any, ...]) -> bool:
    """Launches on another device than the current one."""
    with torch.cuda.device(device):
        return launch(arguments)


def planner_of(driver: Any) -> Planner | None:
    """The launch plans of one of Triton's drivers; None for a driver whose launcher is not known to us."""
    if driver.get_current_target().backend not in TARGETS:
        return None

    def create_site(*arguments: Any) -> DriverCallSite:
        return DriverCallSite(driver, *arguments)

    return Planner(create_site)

"""Native CPU engine: runs Triton kernels on CPU tensors by generating C for the system's compiler.

Importing this package imports neither Triton nor a compiler; :func:`unavailable_reason` says whether it can work here,
:func:`activate` switches it on for the process, :func:`launch` runs a kernel with little overhead.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

OLDEST_TRITON, NEWEST_TRITON = (3, 6), (3, 9)
_activation = threading.Lock()


@functools.lru_cache
def unavailable_reason() -> str | None:
    """The reason why kernels cannot run on this CPU, as a sentence that says what to install; None if they can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"the CPU engine needs Linux on x86-64 or aarch64, this is {sys.platform} on {platform.machine()}"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "the CPU engine needs Triton: pip install 'triton>=3.6,<3.10'"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not OLDEST_TRITON <= tuple(map(int, numbers.groups())) <= NEWEST_TRITON:
        return f"the CPU engine supports Triton 3.6 to 3.9, found {version}: pip install 'triton>=3.6,<3.10'"
    from . import toolchain

    if toolchain.find_compiler() is None:
        return "the CPU engine needs a C compiler: install gcc or clang (or name one in TINYNET_CPU_COMPILER)"
    return None


def is_active() -> bool:
    """Whether Triton's active driver is this engine's."""
    runtime = sys.modules.get("triton.runtime.driver") or sys.modules.get("triton.runtime")
    # Another thread may be in the middle of importing the module: its class may not exist yet.
    own = getattr(sys.modules.get(__name__ + ".driver"), "CPUDriver", None)
    if runtime is None or own is None:
        return False
    from triton.runtime import driver

    return isinstance(driver._active, own)  # type: ignore[attr-defined]


def activate() -> None:
    """Make CPU tensors run on this engine, for this process.

    Adds a backend named ``tinynet_cpu`` to Triton and makes its driver the active one. Does nothing when it already is.

    Raises:
        RuntimeError: the engine is unavailable here, or Triton has, or could have, another active driver.
        ToolchainError: the C compiler does not work.
        OSError: the run-time library cannot be written or loaded; `StorageError` where no folder can hold it.
    """
    with _activation:
        if not is_active():
            _activate()


def _activate() -> None:
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    from triton import knobs
    from triton import runtime as triton_runtime
    from triton.backends import Backend, backends  # type: ignore[attr-defined]

    active = triton_runtime.driver._active or triton_runtime.driver._default
    if active is not None:
        raise RuntimeError(
            f"Triton already has an active driver, {type(active).__name__}: the CPU engine never replaces one"
        )
    rivals = [name for name, backend in backends.items() if backend.driver.is_active()]
    if rivals:
        raise RuntimeError(
            f"Triton can use {', '.join(rivals)} here: the CPU engine serves machines without a GPU driver"
        )
    from . import driver as cpu_driver
    from . import storage
    from .compiler import TARGET, CPUBackend

    if not storage.is_usable(knobs.cache.dir, execute=False):
        storage.leave_triton_cache()
    backends[TARGET] = Backend(CPUBackend, cpu_driver.CPUDriver)
    triton_runtime.driver.set_active(cpu_driver.CPUDriver())


def launch(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Run a kernel like ``kernel[grid](*arguments, **constants)``; a repeated launch takes a few microseconds.

    Args:
        kernel: a ``@triton.jit`` function.
        grid: one to three program counts.
        arguments: positional arguments: CPU tensors, ints, floats, bools or None.
        constants: keyword arguments: the kernel's constexprs and ``num_warps``, ``num_stages``.

    Raises:
        RuntimeError: the engine is not active, or a device assertion failed.
    """
    if not plan_launch(kernel, grid, arguments, constants):
        kernel[grid](*arguments, **constants)


def plan_launch(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Mapping[str, Any]) -> bool:
    """Run a kernel by its launch plan; False if it must go through Triton's own launcher (hooks, debugging, autotuner).

    Arguments and errors as for :func:`launch`.
    """
    from .plan import planner

    return planner.launch(kernel, grid, tuple(arguments), constants)

"""Who runs a tensor: our kernels, their registered operators, or the plain PyTorch reference.

One question, asked here alone: does Triton's active driver name this tensor's device, or is TRITON_INTERPRET=1 set?
Then the kernels run, else the reference. `tinynet.engine("auto" | "kernels" | "reference")` and the environment
variable TINYNET_ENGINE overrule it; "kernels" is an error where no driver serves the device.

Under graph capture (`torch.compile`, `torch.export`, fake tensors) an operator registered with `torch.library` stands
in for the launcher: a capture can't look into a launch. Eager code skips it, for it costs 20 to 30 us a call.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from contextvars import ContextVar, Token
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal

import torch

from tinynet.engines import offline

EngineName = Literal["auto", "kernels", "reference"]
NAMES: tuple[str, ...] = ("auto", "kernels", "reference")
# What the kernels compute in; float64 is the reference's.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


class Route(Enum):
    """The way a call takes: launcher, registered operator, or plain PyTorch."""

    KERNELS = "kernels"
    OPERATOR = "operator"
    REFERENCE = "reference"


def _from_environment() -> str:
    name = os.environ.get("TINYNET_ENGINE", "auto")
    if name not in NAMES:
        raise ValueError(f"TINYNET_ENGINE: got {name!r}, expected one of {', '.join(NAMES)}")
    return name


_default_engine = _from_environment()
_engine: ContextVar[str] = ContextVar("tinynet_engine", default=_default_engine)


class engine:
    """Chooses the engine, from here on or for a `with` block.

    `tinynet.engine("reference")` as a statement sets it for the current context; `with tinynet.engine("kernels"):`
    restores the previous one at its end. A function compiled by `torch.compile` keeps the engine of its compilation.

    Args:
        name: "auto": kernels where a driver serves the device, else the reference; "kernels": an error where none
            does; "reference": plain PyTorch.

    Raises:
        ValueError: any other name.
    """

    def __init__(self, name: EngineName) -> None:
        if name not in NAMES:
            raise ValueError(f"engine: got {name!r}, expected one of {', '.join(NAMES)}")
        self._token: Token[str] = _engine.set(name)

    def __enter__(self) -> engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _engine.reset(self._token)


def route(x: torch.Tensor) -> Route:
    """The way a call on `x` takes.

    Raises:
        RuntimeError: engine "kernels" is in force and no driver serves x's device.
        TypeError: engine "kernels" is in force and the kernels don't compute in x's dtype.
    """
    if offline.is_inspecting():
        return Route.KERNELS
    if torch.compiler.is_compiling():
        return Route.OPERATOR if _kernels_serve(x.device.type, x.dtype) else Route.REFERENCE
    # To name the type of a device takes a quarter of a microsecond.
    device_type = "cpu" if x.is_cpu else x.device.type
    if not _kernels_serve_now(device_type, x.dtype) or torch._C._are_functorch_transforms_active():
        return Route.REFERENCE  # vmap and functional gradients see through plain PyTorch alone
    return Route.KERNELS if type(x) in _PLAIN_TYPES else Route.OPERATOR


def _kernels_serve_now(device_type: str, dtype: torch.dtype) -> bool:
    name = _engine.get()
    if name == "reference":
        return False
    if dtype not in KERNEL_DTYPES:
        if name == "kernels":
            raise TypeError(f"engine 'kernels': got dtype {dtype}, expected float32, bfloat16 or float16")
        return False
    reason = unavailable_reason(device_type)
    if reason is None:
        return True
    if name == "kernels":
        raise RuntimeError(f"engine 'kernels': {reason}")
    return False


def _kernels_serve(device_type: str, dtype: torch.dtype) -> bool:
    """As `_kernels_serve_now`, decided once a compilation."""
    return _kernels_serve_now(device_type, dtype)


# What torch.compiler.assume_constant_result sets; calling that would import all of the compiler, seconds, with tinynet.
_kernels_serve._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


# By device type and Triton's active driver. Read without the lock, which one thread at a time decides under.
_reasons: dict[tuple[str, Any], str | None] = {}
_deciding = threading.Lock()


def unavailable_reason(device_type: str) -> str | None:
    """Why no kernel can run on a device of this type, as a sentence that says what to install; None where one can."""
    drivers = _triton_drivers()
    if drivers is None:
        return "Triton is not installed; install it with pip install triton (Linux only)"
    try:
        # Which driver is active right now, without making Triton look for one.
        return _reasons[device_type, drivers._active]
    except KeyError:
        return _decide_reason(device_type, drivers)


def _decide_reason(device_type: str, drivers: Any) -> str | None:
    """Finds and notes the reason, unless another thread has done so meanwhile."""
    with _deciding:
        if (device_type, drivers._active) not in _reasons:
            reason = _find_reason(device_type)  # may make a driver active
            _reasons[device_type, drivers._active] = reason
        return _reasons[device_type, drivers._active]


@lru_cache(maxsize=1)
def _triton_drivers() -> Any:
    """Triton's choice of driver; None without Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return triton.runtime.driver


def _find_reason(device_type: str) -> str | None:
    import triton

    from tinynet_kernels.launch import INTERPRETED

    if device_type == "meta":
        return "meta tensors hold no data for a kernel to run on"
    if INTERPRETED:
        from tinynet.engines import interpreter

        interpreter.install()
        return None
    driver: Any = _active_driver()
    if driver is None and device_type == "cpu":
        reason = _activate_cpu_engine()
        if reason is not None:
            return reason
        driver = triton.runtime.driver.active
    if driver is None:
        return f"no Triton driver is active for device type {device_type!r}; a GPU build of PyTorch is needed"
    served = driver.get_active_torch_device().type
    if served == device_type:
        return None
    return f"the tensor is on {device_type!r} but Triton's active driver serves {served!r}"


def _active_driver() -> Any:
    """Triton's active driver, or None where it finds none for this machine."""
    import triton

    try:
        return triton.runtime.driver.active
    except RuntimeError:  # "0 active drivers": no GPU here
        return None


def _activate_cpu_engine() -> str | None:
    """Makes the native CPU engine Triton's driver where none is; the reason where it can't run, else None."""
    from tinynet.engines import cpu
    from tinynet_kernels import launch

    reason = cpu.unavailable_reason()
    if reason is not None:
        return reason
    from tinynet.engines.cpu.toolchain import ToolchainError

    try:
        cpu.activate()
    except (OSError, ToolchainError) as error:  # all is installed that is needed, so nobody would look for a reason
        reason = f"the CPU engine cannot build kernels: {' '.join(str(error).split())[:300]}"
        warnings.warn(f"{reason}; plain PyTorch takes their place", RuntimeWarning, stacklevel=2)
        return reason
    from tinynet.engines.cpu import plan

    launch.planner = plan.launch
    return None


def describe(device: torch.device | str) -> str:
    """One line for a person: which engine runs tensors on `device`, and why."""
    device = torch.device(device)
    name = _engine.get()
    if name == "reference":
        return f"engine: reference (plain PyTorch) on {device}, as asked"
    reason = unavailable_reason(device.type)
    if reason is not None:
        return f"engine: reference (plain PyTorch) on {device}: {reason}"
    from tinynet_kernels.tiles import current_target

    target = current_target()
    return f"engine: Triton kernels on {device} (target {target.kind} {target.architecture}".rstrip() + ")"

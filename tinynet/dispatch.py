"""Who computes a call: our kernels, their registered operators, or the plain PyTorch reference.

One question about all operands, answered only here: does Triton's active driver name their device, or is
TRITON_INTERPRET=1 set, and are they plain strided tensors? Then the kernels run, else the reference, which PyTorch
takes through whatever the operands are: lazy negations, wrapper subclasses, function transforms, forward derivatives.
`tinynet.engine("auto" | "kernels" | "reference")` and the environment variable TINYNET_ENGINE overrule the choice of
driver; "kernels" is an error where no driver serves the device.

Under graph capture (`torch.compile`, `torch.export`, fake tensors) and dispatch modes (`FlopCounterMode`) an operator
registered with `torch.library` stands in for the launcher: they can't look into a launch. Eager code skips it, for it
costs 20 to 30 us per call.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from collections.abc import Sequence
from contextvars import ContextVar, Token
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from tinynet_engines import offline

EngineName = Literal["auto", "kernels", "reference"]
NAMES: tuple[str, ...] = ("auto", "kernels", "reference")
# What the kernels compute in; float64 is the reference's.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


class Route(Enum):
    """The route of a call: launcher, registered operator, or plain PyTorch."""

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
    restores the previous one at its end. A function compiled by `torch.compile` uses the engine of its compilation.

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


# The look-ups through two modules take longer than the calls.
_transforms_active = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


def route_of(operator: str, names: Sequence[str], *operands: Any) -> Route:
    """The route of a call on these operands.

    Args:
        operator: named in messages.
        names: of the operands.
        operands: tensors on one device, None for absent ones. The first is a tensor, and its dtype the kernels'.

    Raises:
        RuntimeError: engine "kernels" is in force and no driver serves the device.
        TypeError: engine "kernels" is in force and the kernels don't compute in the dtype; or an operand is nested, or
            in a layout other than strided.
    """
    first = operands[0]
    inspecting = offline.is_inspecting()
    if inspecting or torch.compiler.is_compiling():
        if _any_empty(operands):
            return Route.REFERENCE
        if inspecting:
            return Route.KERNELS
        return Route.OPERATOR if _kernels_serve(first.device.type, first.dtype) else Route.REFERENCE
    return route_of_plain(first) if _all_plain(operands) else _route_of_others(operator, names, operands)


def route_of_plain(first: torch.Tensor) -> Route:
    """The route of plain operands, given the first of them, outside of compilation and inspection."""
    # To name the type of a device takes a quarter of a microsecond.
    if not _kernels_serve_now("cpu" if first.is_cpu else first.device.type, first.dtype):
        return Route.REFERENCE
    if _transforms_active() or forward_ad._current_level >= 0 or _tracing_state() is not None:
        return Route.REFERENCE  # these see through PyTorch's own operators alone
    return Route.OPERATOR if _modes() else Route.KERNELS


def _all_plain(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether all these tensors (None: absent) are strided values in memory, ready for a kernel.

    Not plain are subclasses, layouts other than strided, nested tensors, tensors without memory (on the meta device,
    zero tensors, those inside vmap, empty ones) and those with the lazy negative bit.
    """
    try:
        for tensor in tensors:
            if tensor is not None and (
                type(tensor) not in _PLAIN_TYPES or tensor.is_neg() or tensor.is_nested or not tensor.data_ptr()
            ):
                return False
    except RuntimeError:  # no memory to point at
        return False
    return True


def are_plain_and_alike(operands: Sequence[torch.Tensor | None]) -> bool:
    """Whether all these (None: absent) are plain, of one dtype and on one device, and nothing compiles or inspects."""
    if torch.compiler.is_compiling() or offline.is_inspecting():
        return False
    first: Any = operands[0]
    if type(first) not in _PLAIN_TYPES:
        return False
    dtype, on_cpu = first.dtype, first.is_cpu
    try:
        for tensor in operands:
            if tensor is not None and (
                type(tensor) not in _PLAIN_TYPES
                or tensor.dtype is not dtype
                or not ((on_cpu and tensor.is_cpu) or tensor.device == first.device)
                or tensor.is_neg()
                or tensor.is_nested
                or not tensor.data_ptr()
            ):
                return False
    except RuntimeError:  # no memory to point at
        return False
    return True


def is_plain_eager(*tensors: torch.Tensor | None) -> bool:
    """Whether these may be handed to kernels at once: they are plain, and no mode waits to see operators."""
    return (_all_plain(tensors) and not _modes()) or offline.is_inspecting()


def _any_empty(tensors: Sequence[torch.Tensor | None]) -> bool:
    return any(tensor is not None and tensor.numel() == 0 for tensor in tensors)


def is_forward_mode() -> bool:
    """Whether forward-mode AD is at work, which PyTorch's fused recurrent operators don't know."""
    return forward_ad._current_level >= 0


def _route_of_others(operator: str, names: Sequence[str], operands: Sequence[Any]) -> Route:
    """The route of operands that are not all plain: the reference, since PyTorch handles most of them.

    Fake tensors, and subclasses whose memory is that of a plain tensor, take the operator, which returns their kind.
    """
    first = operands[0]
    served = _kernels_serve_now("cpu" if first.is_cpu else first.device.type, first.dtype)
    is_operator = served and not (_transforms_active() or is_forward_mode() or _tracing_state() is not None)
    for name, tensor in zip(names, operands, strict=True):
        if tensor is None:
            continue
        if type(tensor) in _PLAIN_TYPES:
            check_strided(operator, name, tensor)
            is_operator = is_operator and _all_plain((tensor,))
        elif not isinstance(tensor, FakeTensor):
            has_memory = not torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python)
            is_operator = is_operator and has_memory
    return Route.OPERATOR if is_operator else Route.REFERENCE


def check_strided(operator: str, name: str, tensor: torch.Tensor | None) -> None:
    """Raises TypeError for a nested tensor and one in a layout other than strided; subclasses know what they do."""
    if tensor is None or type(tensor) not in _PLAIN_TYPES:
        return
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested" if tensor.is_nested else f"in layout {tensor.layout}"
        raise TypeError(f"{operator}: {name} is {kind}, expected a strided tensor")


def any_subclass(*tensors: torch.Tensor | None) -> bool:
    """Whether one of these (None: absent) is of a subclass of Tensor."""
    return any(tensor is not None and type(tensor) not in _PLAIN_TYPES for tensor in tensors)


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
            reason = _find_reason(device_type)  # may activate a driver
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
        from tinynet_engines import interpreter

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
    from tinynet_engines import cpu
    from tinynet_kernels import launch

    reason = cpu.unavailable_reason()
    if reason is not None:
        return reason
    from tinynet_engines.cpu.toolchain import ToolchainError

    try:
        cpu.activate()
    except (OSError, ToolchainError) as error:  # all is installed that is needed, so nobody would look for a reason
        reason = f"the CPU engine cannot build kernels: {' '.join(str(error).split())[:300]}"
        warnings.warn(f"{reason}; plain PyTorch takes their place", RuntimeWarning, stacklevel=2)
        return reason
    from tinynet_engines.cpu import plan

    launch.planner = plan.launch
    return None


def describe(device: torch.device | str) -> str:
    """One line for a person: which engine runs tensors on `device`, and why."""
    device = torch.device(device)
    name = _engine.get()
    if name == "reference":
        return f"engine: reference (plain PyTorch) on {device}, as requested"
    reason = unavailable_reason(device.type)
    if reason is not None:
        return f"engine: reference (plain PyTorch) on {device}: {reason}"
    from tinynet_kernels.tiles import current_target

    target = current_target()
    return f"engine: Triton kernels on {device} (target {target.kind} {target.architecture}".rstrip() + ")"

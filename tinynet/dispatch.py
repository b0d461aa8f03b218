"""Chooses what runs a call: tinynet's kernels, their registered operators, or the plain PyTorch reference.

The kernels run if all operands are plain strided tensors and either Triton's active driver serves their device or
TRITON_INTERPRET=1 is set. Otherwise the reference runs, whose plain PyTorch operators support all other operands
(lazy negations, wrapper subclasses, function transforms, forward derivatives). `tinynet.engine("auto" | "kernels" |
"reference")` and the environment variable TINYNET_ENGINE override this; "kernels" raises an error if no driver serves
the device.

Graph capture (`torch.compile`, `torch.export`, fake tensors) and dispatch modes (`FlopCounterMode`) cannot see kernel
launches, so there an operator registered with `torch.library` replaces the launcher. Eager code does not use it,
because it costs 20 to 30 us per call. What ends in a file of another program's operators (`torch.jit.trace`, ONNX,
TensorBoard's graphs) gets the reference.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
# The dtypes of the kernels; float64 runs on the reference.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


class Route(Enum):
    """What runs a call: a kernel launcher, a registered operator, or plain PyTorch."""

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
    """Chooses the engine, permanently or for a `with` block.

    `tinynet.engine("reference")` sets it for the current context; `with tinynet.engine("kernels"):` restores the
    previous one at the end of the block. A function compiled by `torch.compile` always runs on the engine that was set
    when it was compiled.

    Args:
        name: "auto": kernels if a driver serves the device, else the reference; "kernels": kernels, or an error if no
            driver serves the device; "reference": plain PyTorch.

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


# Bound here because looking them up through two modules takes longer than calling them.
_transforms_active = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
# By thread: how many of its dispatch modes are ours. They watch PyTorch's operators beside the launches, not ours.
own_modes: dict[int, int] = {}
_tracing_state = torch._C._get_tracing_state


def _is_watched() -> bool:
    """Whether a dispatch mode that is not ours is active."""
    count = _modes()
    return count > 0 and count > own_modes.get(threading.get_ident(), 0)


@contextmanager
def own_mode(mode: AbstractContextManager[Any]) -> Iterator[None]:
    """Activates a dispatch mode that the kernels need not know of."""
    thread = threading.get_ident()
    before = own_modes.get(thread, 0)
    own_modes[thread] = before + 1
    try:
        with mode:
            yield
    finally:
        own_modes[thread] = before


def route_of(operator: str, names: Sequence[str], *operands: Any) -> Route:
    """Chooses what runs a call on these operands.

    Args:
        operator: the operator's name, for error messages.
        names: the operands' names, for error messages.
        operands: tensors on one device; None for absent ones. The first is never None, and the kernels run in its
            dtype.

    Raises:
        RuntimeError: the engine is "kernels" and no driver serves the device.
        TypeError: the engine is "kernels" and the kernels do not support the dtype; or an operand is nested, or has a
            layout other than strided.
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
    """Chooses for plain operands, given the first of them, outside of compilation and inspection."""
    # `is_cpu` is tested first because reading `device.type` takes a quarter of a microsecond.
    if not _kernels_serve_now("cpu" if first.is_cpu else first.device.type, first.dtype):
        return Route.REFERENCE
    if _transforms_active() or forward_ad._current_level >= 0 or _tracing_state() is not None:
        return Route.REFERENCE  # these support only PyTorch's own operators
    return Route.OPERATOR if _is_watched() else Route.KERNELS


def _all_plain(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether a kernel can read all these tensors (None: absent) from memory: strided, and not of a subclass.

    Not plain are subclasses, layouts other than strided, nested tensors, tensors without memory (on the meta device,
    zero tensors, inside vmap, empty) and lazily negated tensors.
    """
    try:
        for tensor in tensors:
            if tensor is not None and (
                type(tensor) not in _PLAIN_TYPES or tensor.is_neg() or tensor.is_nested or not tensor.data_ptr()
            ):
                return False
    except RuntimeError:  # the tensor has no memory
        return False
    return True


def are_plain_and_alike(operands: Sequence[torch.Tensor | None]) -> bool:
    """Whether all (None: absent) are plain and share dtype and device, outside of compilation and inspection."""
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
    except RuntimeError:  # the tensor has no memory
        return False
    return True


def is_plain_eager(*tensors: torch.Tensor | None) -> bool:
    """Whether these can be passed to kernels directly: they are plain, and no dispatch mode is active."""
    return (_all_plain(tensors) and not _is_watched()) or offline.is_inspecting()


def _any_empty(tensors: Sequence[torch.Tensor | None]) -> bool:
    return any(tensor is not None and tensor.numel() == 0 for tensor in tensors)


def is_forward_mode() -> bool:
    """Whether forward-mode AD is active, which PyTorch's fused recurrent operators do not support."""
    return forward_ad._current_level >= 0


def _route_of_others(operator: str, names: Sequence[str], operands: Sequence[Any]) -> Route:
    """Chooses for operands that are not all plain: usually the reference, since PyTorch supports most of them.

    Fake tensors, and subclasses that have memory like a plain tensor, run the registered operator, which returns
    tensors of the same kind.
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
    """Raises TypeError for a nested tensor and for a layout other than strided; does not check subclasses."""
    if tensor is None or type(tensor) not in _PLAIN_TYPES:
        return
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "nested" if tensor.is_nested else f"in layout {tensor.layout}"
        raise TypeError(f"{operator}: {name} is {kind}, expected a strided tensor")


def any_subclass(*tensors: torch.Tensor | None) -> bool:
    """Whether one of these (None: absent) is an instance of a subclass of Tensor."""
    return any(tensor is not None and type(tensor) not in _PLAIN_TYPES for tensor in tensors)


def _kernels_serve_now(device_type: str, dtype: torch.dtype) -> bool:
    name = _engine.get()
    if name == "reference":
        return False
    if dtype not in KERNEL_DTYPES:
        if name == "kernels":
            raise TypeError(f"engine 'kernels': got dtype {dtype}, expected float32, bfloat16 or float16")
        return False
    drivers = _triton_drivers()
    if drivers is not None and _reasons.get((device_type, drivers._active), "undecided") is None:  # most calls
        return True
    reason = unavailable_reason(device_type)
    if reason is None:
        return True
    if name == "kernels":
        raise RuntimeError(f"engine 'kernels': {reason}")
    return False


def _kernels_serve(device_type: str, dtype: torch.dtype) -> bool:
    """Like `_kernels_serve_now`, but evaluated once per compilation. ONNX knows none of our operators."""
    return not torch.onnx.is_in_onnx_export() and _kernels_serve_now(device_type, dtype)


# The attribute that torch.compiler.assume_constant_result sets; calling that would import the compiler, for seconds.
_kernels_serve._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


# By device type and Triton's active driver. Written while holding the lock, read without it.
_reasons: dict[tuple[str, Any], str | None] = {}
_deciding = threading.Lock()


def unavailable_reason(device_type: str) -> str | None:
    """Returns why no kernel can run on this device type, and what to install; None if kernels can run."""
    drivers = _triton_drivers()
    if drivers is None:
        return "Triton is not installed; install it with pip install triton (Linux only)"
    try:
        # `_active`, unlike `active`, does not make Triton search for a driver.
        return _reasons[device_type, drivers._active]
    except KeyError:
        return _decide_reason(device_type, drivers)


def _decide_reason(device_type: str, drivers: Any) -> str | None:
    """Finds and stores the reason, unless another thread has done so in the meantime."""
    with _deciding:
        if (device_type, drivers._active) not in _reasons:
            reason = _find_reason(device_type)  # may activate a driver
            _reasons[device_type, drivers._active] = reason
        return _reasons[device_type, drivers._active]


@lru_cache(maxsize=1)
def _triton_drivers() -> Any:
    """Triton's driver registry; None if Triton is not installed."""
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
        _plan_launches(driver)
        return None
    return f"the tensor is on {device_type!r} but Triton's active driver serves {served!r}"


def _plan_launches(driver: Any) -> None:
    """Shortens repeated launches on the active driver."""
    from tinynet_engines import cpu
    from tinynet_kernels import launch

    if cpu.is_active():
        from tinynet_engines.cpu.plan import planner
    else:
        from tinynet_engines.driver_plan import planner_of

        planner = planner_of(driver)
    launch.planner = planner


def _active_driver() -> Any:
    """Triton's active driver, or None if it finds none for this machine."""
    import triton

    try:
        return triton.runtime.driver.active
    except RuntimeError:  # "0 active drivers": no GPU here
        return None


def _activate_cpu_engine() -> str | None:
    """Activates the native CPU engine as Triton's driver; returns why it cannot run, or None."""
    from tinynet_engines import cpu

    reason = cpu.unavailable_reason()
    if reason is not None:
        return reason
    from tinynet_engines.cpu.toolchain import ToolchainError

    try:
        cpu.activate()
    except (OSError, ToolchainError) as error:  # unexpected, since everything needed is installed: warn
        reason = f"the CPU engine cannot build kernels: {' '.join(str(error).split())[:300]}"
        warnings.warn(f"{reason}; plain PyTorch runs instead", RuntimeWarning, stacklevel=2)
        return reason
    return None


def describe(device: torch.device | str | None = None) -> str:
    """Returns one line that says which engine runs tensors on `device`, and why.

    Args:
        device: None for the GPU if there is one, else the CPU.

    Example:
        >>> tinynet.describe()
        'engine: Triton kernels on cpu (target cpu)'
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = _engine.get()
    if name == "reference":
        return f"engine: reference (plain PyTorch) on {device}, as requested"
    reason = unavailable_reason(device.type)
    if reason is not None:
        return f"engine: reference (plain PyTorch) on {device}: {reason}"
    from tinynet_kernels.tiles import current_target

    target = current_target()
    return f"engine: Triton kernels on {device} (target {target.kind} {target.architecture}".rstrip() + ")"

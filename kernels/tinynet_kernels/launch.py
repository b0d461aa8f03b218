"""The one door through which every kernel is launched, and the cost of what goes through it.

Launching in one place lets an engine plan repeated launches (`planner`), a test count them (`observers`),
torch.profiler show them by name, and a report ask what a launch must at least move and compute (`cost_of`), without any
change to a launcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any, NamedTuple, Protocol

import torch
from torch.autograd import profiler
from triton import knobs

# Triton reads TRITON_INTERPRET when a kernel is decorated, so one process has one answer.
INTERPRETED: bool = bool(knobs.runtime.interpret)

# What TorchInductor shows its kernels with; torch.profiler.record_function takes no shapes.
_RECORD: Any = torch._C._profiler._RecordFunctionFast  # pyright: ignore[reportAttributeAccessIssue]
Grid = tuple[int, ...]
# launch(arguments) launches and returns True, or returns False and leaves it to Triton.
Launch = Callable[[tuple[Any, ...]], bool]


class Launcher(Protocol):
    """What launches kernels, or records their launches."""

    def launch(self, kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> bool:
        """Launches and returns True, or returns False and leaves it to Triton."""
        ...


class Planner(Launcher, Protocol):
    """What shortens repeated launches on a driver; `tinynet_engines.plans.Planner` is one."""

    generation: object

    def bind(
        self, kernel: Any, grid: Grid, types: tuple[type, ...], numbers: tuple[Any, ...], constants: Mapping[str, Any]
    ) -> Launch | None:
        """The same as a function of the arguments before `numbers`, valid until `generation` is another object."""
        ...


planner: Planner | None = None
# By thread: what records its launches instead of running them.
recorders: dict[int, Launcher] = {}
# Columns of tensors that a kernel reaches through a table of their addresses.
Reached = Sequence[Sequence[torch.Tensor]]
# Each observer is called with (kernel, grid, reached) before a launch.
observers: list[Callable[[Any, Grid, Reached], None]] = []


def launch(kernel: Any, grid: Grid, *arguments: Any, **constants: Any) -> None:
    """Runs `kernel` over `grid` on the device of the first argument.

    Args:
        kernel: a `triton.jit` function.
        grid: one to three positive program counts.
        arguments: the kernel's run-time arguments in order; the first is a tensor, absent tensors are None.
        constants: its `constexpr` arguments, and `num_warps` and `num_stages`.
    """
    _run(kernel, grid, arguments, constants)


class Problem:
    """Everything about a launch except its tensors, decided once for each problem.

    Deciding takes longer than a small kernel runs, so launchers cache problems with `lru_cache`.

    Args:
        kernel: a `triton.jit` function.
        grid: one to three positive program counts.
        numbers: its last run-time arguments.
        constants: as in `launch`.
    """

    __slots__ = ("bound", "constants", "generation", "grid", "kernel", "latest", "names_checked", "numbers")

    def __init__(self, kernel: Any, grid: Grid, *numbers: Any, **constants: Any) -> None:
        self.kernel = kernel
        self.grid = grid
        self.numbers = numbers
        self.constants = constants
        self.names_checked = False
        self.bound: dict[tuple[type, ...], Launch | None] = {}  # by the types of the arguments
        self.latest: Launch | None = None  # the one that launched last
        self.generation: object = None  # of the planner that bound them

    def launch(self, *arguments: Any, reached: Reached = ()) -> None:
        """Runs the kernel on the device of the first argument.

        Args:
            arguments: the ones before `numbers`, tensors mostly, in the kernel's order.
            reached: tensors that the kernel reads or writes through addresses in one of its arguments.
        """
        if planner is None or observers or recorders or profiler._is_profiler_enabled:
            _run(self.kernel, self.grid, arguments + self.numbers, self.constants, reached)
            return
        latest = self.latest
        if latest is None or self.generation is not planner.generation or not latest(arguments):
            self._launch_another(planner, arguments)

    def _launch_another(self, planner: Planner, arguments: tuple[Any, ...]) -> None:
        """Runs the kernel where the latest launch can't run it again."""
        if self.generation is not planner.generation:
            self.bound.clear()
            self.latest = None
            self.generation = planner.generation
        types = tuple(map(type, arguments))
        launch = self.bound.get(types)
        if launch is None:
            launch = planner.bind(self.kernel, self.grid, types, self.numbers, self.constants)
            self.bound[types] = launch
        if launch is not None and launch is not self.latest and launch(arguments):
            self.latest = launch
        else:
            _run_by_triton(self.kernel, self.grid, arguments + self.numbers, self.constants)

    def launch_named(self, **arguments: Any) -> None:
        """As `launch`, the arguments by the kernel's names for them, in the kernel's order.

        Raises:
            TypeError: other arguments, or in another order. Only the first launch is checked: a problem has one
                launcher.
        """
        if not self.names_checked:
            names = self.kernel.arg_names[: len(arguments)]
            if names != list(arguments):
                raise TypeError(f"{self.kernel.__name__}: got {', '.join(arguments)}; expected {', '.join(names)}")
            self.names_checked = True
        self.launch(*arguments.values())


def _run(
    kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: Mapping[str, Any], reached: Reached = ()
) -> None:
    for observe in observers:
        observe(kernel, grid, reached)
    if profiler._is_profiler_enabled:
        _run_profiled(kernel, grid, arguments, constants)
    else:
        _run_planned(kernel, grid, arguments, constants)


def _run_profiled(kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> None:
    """Runs a kernel as an event of torch.profiler, with its name and the shapes of its tensors."""
    tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
    with _RECORD(kernel.__name__, tensors):
        _run_planned(kernel, grid, arguments, constants)


def _run_planned(kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> None:
    current = recorders.get(get_ident(), planner) if recorders else planner
    if current is None or not current.launch(kernel, grid, arguments, constants):
        _run_by_triton(kernel, grid, arguments, constants)


def _run_by_triton(kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> None:
    device = arguments[0].device
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*arguments, enable_fp_fusion=True, **constants)
    else:
        kernel[grid](*arguments, enable_fp_fusion=True, **constants)


class Cost(NamedTuple):
    """The least that a launch must do.

    Attributes:
        flops: arithmetic operations.
        bytes: bytes read and written, each once.
        serial: why a program's steps cannot be shared among more programs; empty where they can.
    """

    flops: int
    bytes: int
    serial: str = ""


_COSTS: dict[Any, Callable[..., Cost]] = {}


def costs(kernel: Any) -> Callable[[Callable[..., Cost]], Callable[..., Cost]]:
    """Registers the decorated function as the cost of `kernel`; it takes the kernel's arguments by name."""

    def register(function: Callable[..., Cost]) -> Callable[..., Cost]:
        _COSTS[kernel] = function
        return function

    return register


def cost_of(kernel: Any, arguments: dict[str, Any]) -> Cost | None:
    """The cost of one launch of `kernel`, or None for a kernel that registered none.

    Args:
        kernel: a `triton.jit` function.
        arguments: every argument of the launch by the kernel's own names, constants too.
    """
    function = _COSTS.get(kernel)
    return None if function is None else function(**arguments)


def size_in_bytes(*arguments: Any) -> int:
    """The bytes of the elements of those arguments that are tensors."""
    return sum(each.numel() * each.element_size() for each in arguments if isinstance(each, torch.Tensor))

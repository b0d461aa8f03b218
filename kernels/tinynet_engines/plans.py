"""Launch plans: repeated launches in a few microseconds, on any driver.

Triton's own launcher binds arguments, computes a key and finds the compiled kernel, which takes 10 to 25 us for each
launch. A plan saves what is the same from launch to launch. Its key holds everything that matters: the kernel, the
types of its arguments, dtypes, integers, constants, and what else the driver distinguishes. Plans hold no tensors. They
are created by compiling (`warmup`), never by a launch.

What a driver needs is in a subclass of `CallSite`: `cpu/plan.py` for the CPU engine, `driver_plan.py` for Triton's own
drivers.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.language import constexpr
from triton.runtime.jit import JITFunction

from tinynet_kernels.launch import Grid, Launch

LARGEST_CACHE = 2048
_MISSING = object()
# Launches that are watched or debugged, or whose kernel has changed, go through Triton's own launcher.
_WATCHED = (
    "runtime.debug or kernel.debug or kernel.pre_run_hooks or kernel._src is not source or "
    "runtime.launch_enter_hook is not enter or runtime.launch_exit_hook is not exit or entered or exited"
)
_IMMUTABLE = (constexpr, int, float, str, bool)


class Form(NamedTuple):
    """The driver's part of the code that launches: pieces of Python, in which the arguments are `a0`, `a1`, ...

    Attributes:
        condition: an expression, false where only Triton's own launcher can launch.
        lines: statements between the condition and the key.
        key: expressions that distinguish plans, beside dtypes and integers.
        unpacking: a statement that takes `unchanged`, and what `call` needs, from `plan`.
        call: an expression that runs a plan and says whether it did.
        scope: the names that these pieces use.
    """

    condition: str
    lines: Sequence[str]
    key: Sequence[str]
    unpacking: str
    call: str
    scope: Mapping[str, Any]


class CallSite(ABC):
    """Launches of one kernel with one list of argument types and constants.

    Args:
        kernel: a `triton.jit` function.
        types: of its run-time arguments.
        fixed: how many of the last ones are the same in all launches of a grid.
        constants: the other arguments, and the launch's options.
        compiling: held while a plan is created; call sites of one kernel share Triton's state of it.
    """

    def __init__(
        self,
        kernel: JITFunction,
        types: tuple[type, ...],
        fixed: int,
        constants: Mapping[str, Any],
        compiling: threading.RLock,
    ) -> None:
        self.kernel = kernel
        self.compiling = compiling
        self.constants = dict(constants)
        self.names = [f"a{position}" for position in range(len(types))]
        self.tensors = [n for n, kind in zip(self.names, types, strict=False) if issubclass(kind, torch.Tensor)]
        self.given = self.names[: len(types) - fixed]
        self.types = types
        self.integers = [n for n, kind in zip(self.given, types, strict=False) if issubclass(kind, int)]
        self.launches: dict[tuple[Grid, tuple[Any, ...]], Launch] = {}
        self._define = self._definition(self._form())

    @abstractmethod
    def _form(self) -> Form:
        """The driver's part of a launch."""

    @abstractmethod
    def create(self, grid: Grid, arguments: tuple[Any, ...]) -> Any:
        """A plan, which holds what `unchanged` returns; None if there can be none."""

    def launch(self, grid: Grid, numbers: tuple[Any, ...]) -> Launch:
        """The function that launches, of the arguments before `numbers`, the fixed ones."""
        launch = self.launches.get((grid, numbers))
        if launch is None:
            if len(self.launches) >= LARGEST_CACHE:
                self.launches.clear()
            launch = self.launches[grid, numbers] = self._define({}, grid, numbers)
        return launch

    def _definition(self, form: Form) -> Callable[..., Launch]:
        """A function of (plans, grid, numbers) that returns a few lines of Python, generated for exactly these types.

        They return False if there is no plan, if the launch needs Triton's own launcher, or if the arguments are of
        other types, where a tensor is only told from None.
        """
        scope: dict[str, Any] = {"prepare": self.prepare, "kernel": self.kernel, "source": self.kernel._src}
        enter, exit = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        scope |= {"enter": enter, "exit": exit, "runtime": knobs.runtime} | dict(form.scope)
        # A chain's list of hooks, which is empty unless somebody watches; or what stands in a chain's place.
        scope |= {"entered": getattr(enter, "calls", enter), "exited": getattr(exit, "calls", exit)}
        key = ", ".join([*form.key, *(f"{n}.dtype" for n in self.tensors), *self.integers])
        same_types = []
        for name, kind in zip(self.given, self.types, strict=False):
            if kind is type(None):
                same_types.append(f"{name} is None")
            elif name in self.tensors:
                same_types.append(f"{name} is not None")
            else:
                same_types.append(f"type({name}) is type_{name}")
                scope[f"type_{name}"] = kind
        lines = [
            _unpacking(self.names[len(self.given) :], "numbers"),
            "def launch(arguments):",
            f"    {_unpacking(self.given, 'arguments')}",
            f"    if not ({' and '.join([*same_types, form.condition])}) or {_WATCHED}: return False",
            *(f"    {line}" for line in form.lines),
            f"    key = ({key},)",
            "    plan = plans.get(key)",
            "    if plan is None:",
            "        plan = prepare(plans, key, grid, arguments + numbers)",
            "        if plan is None: return False",
            f"    {form.unpacking}",
            "    if unchanged is not None and not unchanged(): return False",
            f"    return {form.call}",
            "return launch",
        ]
        return define("define(plans, grid, numbers)", lines, scope)

    def prepare(self, plans: dict[tuple, Any], key: tuple, grid: Grid, arguments: tuple[Any, ...]) -> Any:
        """A new plan; None if only Triton's own launcher can run it. Concurrent threads create it once."""
        with self.compiling:
            plan = plans.get(key) or self.create(grid, arguments)
            if plan is not None:
                if len(plans) >= LARGEST_CACHE:
                    plans.clear()
                plans[key] = plan
            return plan

    def unchanged(self) -> Callable[[], bool] | None:
        """A function that says whether the globals that the compiled kernel uses are unchanged; None without any."""
        used = self.kernel.used_global_vals
        if not used:
            return None
        scope: dict[str, Any] = {}
        conditions = []
        for index, ((name, _), (value, module)) in enumerate(used.items()):
            scope |= {f"module{index}": module, f"value{index}": value, f"seen{index}": module.get(name, _MISSING)}
            now = f"module{index}[{name!r}]"
            same = f"{now} == value{index}"  # of constexprs, this takes a microsecond
            if isinstance(value, _IMMUTABLE):
                same = f"({now} is seen{index} or {same})"
            conditions.append(same)
        lines = ["try:", f"    return bool({' and '.join(conditions)})", "except KeyError:", "    return False"]
        return define("unchanged()", lines, scope)


def _unpacking(names: Sequence[str], values: str) -> str:
    return f"{', '.join(names)}, = {values}" if names else "pass"


def define(head: str, lines: Sequence[str], scope: dict[str, Any]) -> Callable[..., Any]:
    """The function `head` of these lines."""
    exec(f"def {head}:\n" + "".join(f"    {line}\n" for line in lines), scope)
    return scope[head.partition("(")[0]]


class Planner:
    """The launch plans of one driver.

    Args:
        create_site: the driver's subclass of `CallSite`, or a function with its arguments.

    Attributes:
        generation: another object after `clear`.
    """

    def __init__(self, create_site: Callable[..., CallSite]) -> None:
        self.create_site = create_site
        self.sites: dict[tuple, CallSite] = {}
        self.compiling: dict[int, threading.RLock] = {}  # by the kernel's id
        self.generation = object()

    def launch(self, kernel: Any, grid: Grid, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> bool:
        """Runs a kernel by its plan; False if only Triton's own launcher can run it."""
        site = self.site(kernel, grid, tuple(map(type, arguments)), 0, constants)
        return site is not None and site.launch(grid, ())(arguments)

    def bind(
        self, kernel: Any, grid: Grid, types: tuple[type, ...], numbers: tuple[Any, ...], constants: Mapping[str, Any]
    ) -> Launch | None:
        """The function that launches a kernel; it returns False if only Triton's own launcher can run it.

        Args:
            kernel: a `triton.jit` function.
            grid: one to three positive program counts.
            types: of the arguments that the function will be given.
            numbers: the arguments behind those.
            constants: the other arguments, and the launch's options.
        """
        site = self.site(kernel, grid, types + tuple(map(type, numbers)), len(numbers), constants)
        return None if site is None else site.launch(grid, numbers)

    def site(
        self, kernel: Any, grid: Grid, types: tuple[type, ...], fixed: int, constants: Mapping[str, Any]
    ) -> CallSite | None:
        """The call site of a launch; None for what is not a plain launch of a kernel."""
        # Hashing a kernel is slow. Its call sites keep it alive, so that no other kernel gets its id.
        key = (id(kernel), types, fixed, _content(constants))
        site = self.sites.get(key)
        if site is None:
            if type(kernel) is not JITFunction or callable(grid):
                return None
            if len(self.sites) >= LARGEST_CACHE:
                self.sites.clear()
            compiling = self.compiling.setdefault(id(kernel), threading.RLock())
            site = self.sites[key] = self.create_site(kernel, types, fixed, constants, compiling)
        return site

    def clear(self) -> None:
        """Forgets all plans, and locks that another thread may hold."""
        self.sites.clear()
        self.compiling.clear()
        self.generation = object()


def _content(constants: Mapping[str, Any]) -> tuple:
    """A key that distinguishes constants which compare equal: 1, 1.0 and True."""
    return tuple(constants.items()), _types(tuple(constants.values()))


def _types(value: Any) -> Any:
    """The type of a constant, and of the items if it is a tuple."""
    return (type(value), *map(_types, value)) if isinstance(value, tuple) else type(value)

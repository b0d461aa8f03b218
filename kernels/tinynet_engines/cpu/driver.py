"""Triton's driver for CPU tensors: loads generated kernels and runs them on PyTorch's own thread pool."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from . import toolchain
from .compiler import HEADER, MEMORY, TARGET
from .memory import memory_span, overlaps, prefer_huge_pages

# Persistent kernels choose their grid by how many programs fit a multiprocessor: a thread here. One does, as it takes
# all of the "shared memory": several would walk the whole memory one after the other, each in large steps.
_REGISTERS, _MOST_REGISTERS = 32, 1 << 16
# A launch block (`struct launch` in services.h): a head, and a slot for each argument.
HEAD, SLOT = struct.Struct("=QQq3qq"), 8
_POOLS = ("libgomp", "libiomp5", "libomp")


class Runtime:
    """The run-time library and the thread pool of this process."""

    def __init__(self) -> None:
        source = (toolchain.RUNTIME / "runtime.c").read_text()
        self.library = ctypes.CDLL(str(toolchain.build(source)))
        self.launch = self.library.tinynet_launch
        self.launch.argtypes = [ctypes.c_char_p]
        self.launch.restype = ctypes.c_char_p
        self.launch_checked = self.library.tinynet_launch_checked
        self.launch_checked.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64]
        self.launch_checked.restype = ctypes.c_char_p
        self.replay = self.library.tinynet_replay
        self.replay.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
        self.replay.restype = ctypes.c_char_p
        self.run = self.library.tinynet_run
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.run.argtypes = [pointer, ctypes.c_char_p, ctypes.POINTER(number), pointer, number]
        self.run.restype = ctypes.c_char_p
        pool = _find_pool()
        self.parallel = 0 if pool is None else _address(pool.GOMP_parallel)
        if pool is not None:
            self.library.tinynet_set_thread_number(ctypes.c_void_p(_address(pool.omp_get_thread_num)))


@functools.lru_cache
def runtime() -> Runtime:
    return Runtime()


def _find_pool() -> ctypes.CDLL | None:
    """The OpenMP library that PyTorch loaded; None, for one thread, if there is none."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(None, 5)[5].strip() for line in maps if line.count("/")}
    except OSError:
        return None
    for path in sorted(paths):
        if os.path.basename(path).startswith(_POOLS):
            try:
                library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            except OSError:
                continue
            if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
                return library
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _after_fork() -> None:
    """After a fork, run the child's kernels on its own thread: OpenMP's threads do not survive."""
    if runtime.cache_info().currsize:
        runtime().parallel = 0
    for callback in after_fork_callbacks:
        callback()


after_fork_callbacks: list[Callable[[], None]] = []
os.register_at_fork(after_in_child=_after_fork)


class Kernel:
    """A loaded kernel.

    Args:
        source: C text from the compiler's last stage.
    """

    def __init__(self, source: str):
        header = json.loads(source.partition("\n")[0].removeprefix(HEADER))
        self.source = source
        self.name: str = header["name"]
        self.fp_fusion: bool = header["fp_fusion"]
        self.written: list[int] = header["written"]
        self.overlap_matters: bool = header["overlap_matters"]
        self.data_dependent: bool = header["data_dependent"]
        self.address, self.arena_bytes = self._load(())

    def _load(self, defines: tuple[str, ...]) -> tuple[int, int]:
        library = ctypes.CDLL(str(toolchain.build(self.source, defines, self.fp_fusion)))
        address = ctypes.cast(library.tinynet_kernel, ctypes.c_void_p).value
        return address or 0, ctypes.c_int64.in_dll(library, "tinynet_arena_bytes").value

    @functools.cached_property
    def overlapping(self) -> tuple[int, int]:
        """(address, arena bytes) of the variant for arguments that overlap in memory; built on first use."""
        return self._load(("OVERLAPPING",))


def flatten_signature(signature: Iterable[Any], arguments: Iterable[Any]) -> list[tuple[str, Any]]:
    """(type, argument) of every value that a kernel takes, with tuples and tensor descriptors flattened."""
    flat: list[tuple[str, Any]] = []
    for kind, argument in zip(signature, arguments, strict=False):
        if isinstance(kind, tuple):
            flat += flatten_signature(kind, argument)
        elif kind == "constexpr":
            continue
        elif kind.startswith("tensordesc"):
            flat += _descriptor_arguments(kind, argument)
        else:
            flat.append((kind, argument))
    return flat


def _descriptor_arguments(kind: str, descriptor: Any) -> list[tuple[str, Any]]:
    from triton.backends import driver as triton_driver

    try:
        from triton.backends.driver import decompose_descriptor, expand_signature

        kinds = expand_signature([kind], None, None)
        return list(zip(kinds, decompose_descriptor(descriptor), strict=False))
    except ImportError:
        raise NotImplementedError(f"host-side tensor descriptors on {triton_driver.__name__} of this Triton") from None


def slot_format(kind: str) -> str:
    """``struct`` format of one 8-byte argument slot."""
    if kind.startswith("*") or kind == "u64":
        return "Q"
    return "d" if kind.startswith(("fp", "bf", "f")) else "q"


class Launcher:
    """Runs one compiled kernel; Triton calls it from ``kernel[grid](...)``."""

    def __init__(self, src: Any, metadata: Any):
        self.signature = tuple(src.signature.values())
        passed = [position for position, kind in enumerate(self.signature) if kind != "constexpr"]
        self.least_arguments = passed[-1] + 1 if passed else 0
        self.pack: Callable[..., bytes] | None = None

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        kernel: Kernel,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        if len(arguments) < self.least_arguments:
            raise TypeError(f"{kernel.name}: got {len(arguments)} arguments, expected {self.least_arguments}")
        flat = flatten_signature(self.signature, arguments)
        if self.pack is None:
            self.pack = struct.Struct("=" + "".join(slot_format(kind) for kind, _ in flat)).pack
        values, spans = [], []
        for kind, argument in flat:
            is_pointer = kind[0] == "*" and hasattr(argument, "data_ptr")
            if is_pointer and isinstance(argument, torch.Tensor) and argument.device.type != "cpu":
                raise ValueError(
                    f"{kernel.name}: the CPU engine runs kernels on CPU tensors, got one on {argument.device}"
                )
            values.append(argument.data_ptr() if is_pointer else argument)
            spans.append(memory_span(argument) if is_pointer and kernel.overlap_matters else None)
        address, arena_bytes = kernel.address, kernel.arena_bytes
        if kernel.overlap_matters and overlaps(kernel.written, spans):
            address, arena_bytes = kernel.overlapping
        prefer_huge_pages(kernel.written, [argument for _, argument in flat])
        if enter_hook is not None:
            enter_hook(launch_metadata)
        run(address, arena_bytes, (grid_x, grid_y, grid_z), self.pack(*values))
        if exit_hook is not None:
            exit_hook(launch_metadata)


def block_head(address: int, arena_bytes: int, grid: Sequence[int], threads: int) -> bytes:
    """The bytes of a launch block before the arguments (``struct launch`` in services.h)."""
    return HEAD.pack(address, runtime().parallel, threads, *grid, arena_bytes)


def run(address: int, arena_bytes: int, grid: Sequence[int], arguments: bytes) -> None:
    """Run every program of a grid.

    Raises:
        RuntimeError: a device assertion failed, or memory for the tiles could not be allocated.
    """
    failure = runtime().launch(block_head(address, arena_bytes, grid, torch.get_num_threads()) + arguments)
    if failure is not None:
        raise RuntimeError(failure.decode())


class _Utilities:
    """The functions that Triton calls to load a compiled kernel."""

    def load_binary(self, name: str, source: bytes | str, shared: int, device: int) -> tuple:
        kernel = Kernel(source.decode() if isinstance(source, bytes) else source)
        return kernel, kernel, _REGISTERS, 0, 1 << 30

    def unload_module(self, module: Any) -> None:
        """Does nothing: another thread may still be running the kernel."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": MEMORY,
            "max_num_regs": _MOST_REGISTERS,
            "multiprocessor_count": torch.get_num_threads(),
            "bf16_pairs": int(toolchain.multiplies_bf16_pairs()),
            "warpSize": 1,
            "sm_clock_rate": 0,
            "mem_clock_rate": 0,
            "mem_bus_width": 0,
        }


class _DeviceInterface:
    """The parts of ``torch.cuda`` that Triton's testing helpers use."""

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.time = 0.0

        def record(self) -> None:
            self.time = time.perf_counter()

        def elapsed_time(self, end: Any) -> float:
            return (end.time - self.time) * 1e3

    def synchronize(self, *arguments: Any) -> None:
        """Returns at once: a launch returns when its kernel has finished."""

    def current_device(self) -> int:
        return 0


class CPUDriver(DriverBase):
    """Serves the device ``cpu``. Not active by default: :func:`tinynet_engines.cpu.activate` activates it."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        self.utils = _Utilities()
        super().__init__()
        runtime()

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget(TARGET, toolchain.instruction_set(), 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        """Does nothing: there is only one device."""

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_interface(self) -> _DeviceInterface:
        return _DeviceInterface()

    def get_benchmarker(self) -> Callable[..., Any]:
        def benchmark(call: Callable[[], Any], quantiles: Sequence[float] | None = None, **options: Any) -> Any:
            call()
            times = []
            for _ in itertools.repeat(None, 5):
                start = time.perf_counter()
                call()
                times.append((time.perf_counter() - start) * 1e3)
            times.sort()
            return [times[len(times) // 2]] * len(quantiles) if quantiles else times[len(times) // 2]

        return benchmark

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1, dtype=torch.int, device="cpu")

    def clear_cache(self, cache: torch.Tensor) -> None:
        """Does nothing: a CPU's caches are not flushed between runs."""

"""A Triton driver that compiles and records, for a chip that need not be present.

Triton queries its driver for the target, the device's limits, a loader for binaries and a launcher. This driver
answers for the report's chip and loads nothing; its launcher appends to the report. Everything before that
(specialization, tile choice, the compiler, the disk cache) is Triton's own code. Works with Triton 3.6 to 3.9.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.autotuner import Autotuner
from triton.runtime.cache import CacheManager, get_cache_manager
from triton.runtime.errors import OutOfResources

from tinynet_engines.offline import binary as binary_reader
from tinynet_engines.offline import disassembly
from tinynet_engines.offline.binary import Code, declared_registers, read_amdgcn, read_cubins
from tinynet_engines.offline.launch import MOST_THREADS, CompiledKernel, record_launch
from tinynet_engines.offline.report import Report
from tinynet_engines.offline.targets import Target


class InspectDriver(DriverBase):
    """Answers for the report's target and appends each launch to the report."""

    def __init__(self, report: Report):
        self.report = report
        self.target = report.target
        self.tuning = 0
        self.utils = _Utilities(self.target)
        self.launcher_cls = _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return False  # not for Triton's own search: only `inspect` activates it

    def get_current_target(self) -> GPUTarget:
        return GPUTarget(self.target.backend, self.target.architecture, self.target.warp_size)

    def get_current_device(self) -> int:
        return self.target.device_id

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        if self.target.backend == "cuda":
            return divmod(int(self.target.architecture), 10)
        return 9, int(str(self.target.architecture)[4:], 16) >> 4  # gfx942 reports 9.4, as PyTorch does

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        """Measures nothing: whatever compiles and fits is equally fast."""

        def benchmark(kernel_call: Callable[[], None], quantiles: Sequence[float] = (0.5,), **_: Any) -> list[float]:
            self.tuning += 1
            try:
                kernel_call()
            finally:
                self.tuning -= 1
            return [1.0] * len(quantiles)

        return benchmark

    def get_empty_cache_for_benchmark(self) -> None:
        return None

    def clear_cache(self, cache: Any) -> None:
        pass


class _Utilities:
    """What Triton queries about a device in addition to launching."""

    def __init__(self, target: Target):
        self.target = target

    def get_device_properties(self, device: int) -> dict[str, Any]:
        return {
            "max_shared_mem": self.target.shared_per_block,
            "max_num_regs": 65536,
            "multiprocessor_count": self.target.multiprocessors,
            "warpSize": self.target.warp_size,
            "arch": str(self.target.architecture),
            "cooperativeLaunch": 1,
            # Only Triton's performance models of old kernels use clock and bus figures; none is published in this form.
            "sm_clock_rate": 1_500_000,
            "mem_clock_rate": 2_600_000,
            "mem_bus_width": 5120,
        }

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[None, bytes, int, int, int]:
        # No module: when the kernel is collected, Triton would make whatever driver is active then unload it. No limit
        # of threads: a launch of too many is recorded with an error.
        return None, kernel, declared_registers(kernel, self.target), 0, 1 << 30


class _Launcher:
    """Replaces Triton's compiled launcher: created once per compiled kernel, called once per launch."""

    def __init__(self, src: Any, metadata: Any):
        self.src = src
        self.metadata = metadata
        self.kernel: CompiledKernel | None = None

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: bytes,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Callable[[Any], None] | None,
        exit_hook: Callable[[Any], None] | None,
        *arguments: Any,
    ) -> None:
        driver = triton.runtime.driver.active
        if not isinstance(driver, InspectDriver):
            raise RuntimeError("a kernel compiled under tinynet.inspect was launched after the inspection ended")
        if enter_hook is not None:
            enter_hook(launch_metadata)
        if self.kernel is None:
            self.kernel = _compiled_kernel(self.src, self.metadata, function, driver.target)
        limit, threads = driver.target.shared_per_block, self.kernel.num_warps * driver.target.warp_size
        if driver.tuning:  # an autotuner skips what does not fit, as it would on the chip
            if self.kernel.shared_bytes > limit:
                raise OutOfResources(self.kernel.shared_bytes, limit, "shared memory")
            if threads > MOST_THREADS:
                raise OutOfResources(threads, MOST_THREADS, "threads")
        else:
            driver.report.launches.append(
                record_launch(driver.target, self.kernel, (grid_x, grid_y, grid_z), arguments)
            )
        if exit_hook is not None:
            exit_hook(launch_metadata)


_kernels: dict[str, CompiledKernel] = {}


def _compiled_kernel(src: Any, metadata: Any, binary: bytes, target: Target) -> CompiledKernel:
    """The facts of a compiled kernel, determined once per process for each distinct binary."""
    if metadata.hash not in _kernels:
        files = get_cache_manager(metadata.hash).get_group(f"{metadata.name}.json") or {}
        by_stage = {name.rsplit(".", 1)[-1]: path for name, path in files.items()}
        _await_reading(metadata.hash, binary if target.backend == "cuda" else _stage(by_stage, "amdgcn"), target)
        _kernels[metadata.hash] = CompiledKernel(
            function=src.fn,
            signature=dict(src.signature),
            attributes=dict(src.attrs),
            num_warps=metadata.num_warps,
            num_stages=metadata.num_stages,
            dynamic_shared_bytes=metadata.shared,
            scratch_bytes=getattr(metadata, "global_scratch_size", 0) or 0,
            ir=_stage(by_stage, "ttir"),
            read_code=partial(_read, metadata.hash),
        )
    return _kernels[metadata.hash]


class _Unread(NamedTuple):
    """A binary whose facts have not been requested yet, and Triton's cache, in which they will be stored."""

    binary: bytes | str
    target: Target
    store: CacheManager


_unread: dict[str, _Unread] = {}
_codes: dict[str, Code] = {}


def _await_reading(key: str, binary: bytes | str, target: Target) -> None:
    """Takes the facts from Triton's cache, or defers reading the binary, which takes as long as compiling."""
    store = get_cache_manager(key)
    if path := store.get_file(f"tinynet_code_{_reader_version()}.json"):
        _codes[key] = Code.from_dict(json.loads(Path(path).read_text()))
    else:
        _unread[key] = _Unread(binary, target, store)


def _read(key: str) -> Code:
    """The facts of a binary. The first request reads all deferred binaries for the same target."""
    if key not in _codes:
        target = _unread[key].target
        keys = [each for each, waiting in _unread.items() if waiting.target is target]
        binaries: list[Any] = [_unread[each].binary for each in keys]
        codes = read_cubins(binaries, target) if target.backend == "cuda" else map(read_amdgcn, binaries)
        for each, code in zip(keys, codes, strict=True):
            _codes[each] = code
            store = _unread.pop(each).store
            store.put(json.dumps(asdict(code)), f"tinynet_code_{_reader_version()}.json", binary=False)
    return _codes[key]


@cache
def _reader_version() -> str:
    """Changes with the source that reads binaries, so that facts from an older reader are not used."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (binary_reader, disassembly)]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


def _stage(files: dict[str, str], extension: str) -> str:
    if extension not in files:
        raise RuntimeError(
            f"Triton's cache contains no .{extension} of this kernel (TRITON_STORE_BINARY_ONLY set?); inspect needs it"
        )
    return Path(files[extension]).read_text()


@contextmanager
def shared_memory_limit_lifted() -> Iterator[None]:
    """Disables Triton's own check of the shared-memory limit, so that the report can show kernels over it.

    Triton caches the limit by device in `max_shared_mem`, and raises at the first launch over it: the program
    would end there, and its report with it.
    """
    from triton.compiler import compiler

    real = compiler.max_shared_mem

    def unlimited(device: int) -> int:
        driver = triton.runtime.driver.active
        return 1 << 40 if isinstance(driver, InspectDriver) else real(device)

    with mock.patch.object(compiler, "max_shared_mem", unlimited):
        yield


@contextmanager
def tuning_forgotten() -> Iterator[None]:
    """Makes autotuners take the first configuration that compiles and fits, and compile no others.

    Their choices stay out of their caches, whose keys include no chip.
    """
    real_run = Autotuner.run

    def run(self: Autotuner, *args: Any, **kwargs: Any) -> Any:
        saved = dict(self.__dict__)
        self.__dict__.pop("do_bench", None)
        self.__dict__.update(_do_bench=None, cache={}, cache_results=False, _bench=_until_one_fits(self))
        try:
            return real_run(self, *args, **kwargs)
        finally:
            chosen = self.__dict__.get("best_config", self.configs[0])
            self.__dict__.clear()
            self.__dict__.update(saved, best_config=chosen)

    with mock.patch.object(Autotuner, "run", run):
        yield


def _until_one_fits(tuner: Autotuner) -> Callable[..., list[float]]:
    """`tuner._bench`, which after the first configuration that fits calls every other one infinitely slow."""
    bench: Callable[..., Any] = tuner._bench
    found = False

    def bench_until_one_fits(*args: Any, config: Any, **meta: Any) -> list[float]:
        nonlocal found
        times = [math.inf] if found else bench(*args, config=config, **meta)
        found = found or times[0] < math.inf
        return times

    return bench_until_one_fits

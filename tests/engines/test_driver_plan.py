"""Launch plans of Triton's own drivers: on one for a GPU that only records, and on the CPU engine's, which runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from tinynet import nn
from tinynet_engines import cpu
from tinynet_engines.driver_plan import DriverCallSite, planner_of
from tinynet_engines.plans import Planner
from tinynet_kernels import launch

pytestmark = pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter has no drivers")


class Call(NamedTuple):
    """One call of a compiled kernel's launcher."""

    grid: tuple[int, int, int]
    function: bytes
    arguments: list[Any]


class RecordingDriver(DriverBase):
    """Compiles for a GPU; its launchers only record. Tensors lie in the memory of the CPU.

    Triton caches a target by the number of its device, so each driver has its own.
    """

    def __init__(self, backend: str = "cuda", architecture: Any = 90, warp_size: int = 32, device: int = 101) -> None:
        self.utils: Any = self
        self.device = device
        self.target = GPUTarget(backend, architecture, warp_size)
        self.calls: list[Call] = []
        self.launcher_cls = self.launcher  # pyright: ignore[reportAttributeAccessIssue]

    def launcher(self, source: Any, metadata: Any) -> Any:
        kinds = list(source.signature.values())

        def run(x: int, y: int, z: int, stream: int, function: bytes, *rest: Any) -> None:
            passed = [
                argument.data_ptr() if isinstance(argument, torch.Tensor) else argument
                for kind, argument in zip(kinds, rest[4:], strict=True)
                if kind != "constexpr"
            ]
            self.calls.append(Call((x, y, z), function, passed))

        return run

    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple:
        return None, kernel, 0, 0, 1024

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_empty_cache_for_benchmark(self) -> Any:
        raise NotImplementedError

    def clear_cache(self, cache: Any) -> None:
        raise NotImplementedError


def activated(driver: DriverBase) -> Iterator[Any]:
    registry = triton.runtime.driver
    before, planner = registry._active, launch.planner
    registry.set_active(driver)
    yield driver
    registry._active, launch.planner = before, planner


@pytest.fixture
def driver() -> Iterator[RecordingDriver]:
    yield from activated(RecordingDriver())


@pytest.fixture
def amd_driver() -> Iterator[RecordingDriver]:
    yield from activated(RecordingDriver("hip", "gfx942", 64, device=102))


@triton.jit
def affine_kernel(x_ptr, shift_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x_ptr + offset, mask=offset < n, other=0.0) * factor * n
    if shift_ptr is not None:
        y += tl.load(shift_ptr + offset, mask=offset < n, other=0.0)
    tl.store(y_ptr + offset, y, mask=offset < n)


OPTIONS = {"BLOCK": 512, "num_warps": 4}


def recorded(driver: RecordingDriver, planned: Any, run: Any) -> list[Call]:
    launch.planner = planned
    driver.calls.clear()
    run()
    return list(driver.calls)


def test_a_training_step_launches_what_tritons_launcher_does(driver: RecordingDriver) -> None:
    model = nn.Sequential(nn.Linear(24, 32, activation="gelu"), nn.LayerNorm(32), nn.Linear(32, 8))
    x, memory = torch.randn(16, 24), torch.randn(16 * 25)

    def run() -> None:
        for images in (x, memory[1:].view(-1)[: 16 * 24].view(16, 24)):  # the latter misaligned
            model(images).sum().backward()

    planner = planner_of(driver)
    expected = recorded(driver, None, run)
    for _ in range(2):  # plans are created, then used
        calls = recorded(driver, planner, run)
        assert [call.function for call in calls] == [call.function for call in expected]
        assert [call.grid for call in calls] == [call.grid for call in expected]
        for call, other in zip(calls, expected, strict=True):
            numbers = [[each for each in one.arguments if each < 1 << 32] for one in (call, other)]
            assert numbers[0] == numbers[1] and len(call.arguments) == len(other.arguments)


def test_what_triton_compiles_apart_has_its_own_plan(driver: RecordingDriver) -> None:
    planner: Any = planner_of(driver)
    memory = torch.randn(1200)
    functions = []
    for x in (memory[:512], memory[1:513], memory[2:514], memory[:512].half()):
        for n in (1, 16, 17, 2**40):
            arguments = (x, None, memory[600:1112], n, 0.5)
            (expected,) = recorded(driver, None, lambda a=arguments: affine_kernel[1,](*a, **OPTIONS))
            for _ in range(2):
                driver.calls.clear()
                assert planner.launch(affine_kernel, (1,), arguments, OPTIONS)
                assert driver.calls == [expected]
            functions.append(expected.function)
    aligned, misaligned, by_two, half = (functions[start : start + 4] for start in range(0, 16, 4))
    assert aligned[1] != misaligned[1] == by_two[1] and half[1] not in (aligned[1], misaligned[1])
    assert len(set(aligned)) > 2


def test_amd_chips_distinguish_where_memory_ends(amd_driver: RecordingDriver) -> None:
    planner: Any = planner_of(amd_driver)
    short, long = torch.zeros(64), torch.empty(2**31, dtype=torch.int8)[:256].view(torch.float32)
    functions = []
    for x in (short, long, short, long):
        amd_driver.calls.clear()
        assert planner.launch(affine_kernel, (1,), (x, None, short, 64, 0.5), OPTIONS)
        functions.append(amd_driver.calls[0].function)
    assert functions[0] == functions[2] != functions[1] == functions[3]


def test_watched_launches_and_other_drivers_take_tritons_launcher(
    driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner: Any = planner_of(driver)
    x, y = torch.randn(64), torch.zeros(64)

    def run() -> bool:
        return planner.launch(affine_kernel, (1,), (x, None, y, 64, 0.5), OPTIONS)

    assert run()
    with monkeypatch.context() as patch:
        patch.setattr(knobs.runtime, "debug", True)
        assert not run()
    with monkeypatch.context() as patch:
        patch.setattr(knobs.runtime, "add_stages_inspection_hook", lambda *_: ("", ""))
        assert not run()
    with monkeypatch.context() as patch:
        patch.setattr(triton.runtime.driver, "_active", RecordingDriver())
        assert not run()
    hook: Any = print
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        assert not run()
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert run()


def test_results_are_right_where_a_driver_runs_them() -> None:
    """The CPU engine's driver through plans that know nothing of it."""
    if not cpu.is_active():
        nn.ReLU()(torch.zeros(1))  # activates the engine where no GPU is
    if not cpu.is_active():
        pytest.skip("needs the CPU engine")
    registry = triton.runtime.driver
    planner = Planner(lambda *arguments: DriverCallSite(registry.active, *arguments))
    shift = torch.randn(100)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(101).to(dtype)
        for view in (x[:100], x[1:]):
            for n in (1, 17, 100):
                for bias in (None, shift):
                    y = torch.zeros(100, dtype=dtype)
                    grid = (triton.cdiv(n, OPTIONS["BLOCK"]),)
                    assert planner.launch(affine_kernel, grid, (view, bias, y, n, 0.5), OPTIONS)
                    expected = view[:n].float() * 0.5 * n + (0.0 if bias is None else bias[:n])
                    torch.testing.assert_close(y[:n], expected.to(dtype))
                    assert not y[n:].any()


def test_a_problem_binds_again_where_plans_were_forgotten(driver: RecordingDriver) -> None:
    planner: Any = planner_of(driver)
    problem = launch.Problem(affine_kernel, (1,), 64, 0.5, **OPTIONS)
    x = torch.randn(64)

    def run() -> None:
        problem.launch(x, None, x)

    assert len(recorded(driver, planner, run)) == 1
    bound = dict(problem.bound)
    assert len(recorded(driver, planner, run)) == 1 and problem.bound == bound
    planner.clear()
    assert len(recorded(driver, planner, run)) == 1 and problem.bound != bound

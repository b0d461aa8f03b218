# pyright: reportArgumentType=false
"""Launch plans: the same results as Triton's own launcher, and every case that must be left to it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

from tinynet_engines import cpu, plans
from tinynet_engines.cpu.plan import planner
from tinynet_kernels import launch
from tinynet_kernels.launch import Problem

SCALE = tl.constexpr(2.0)


@triton.jit
def scale_kernel(x_ptr, y_ptr, n, factor, extra_ptr, BLOCK: tl.constexpr, HAS_EXTRA: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offset, mask=offset < n, other=0.0)
    if HAS_EXTRA:
        x += tl.load(extra_ptr)
    tl.store(y_ptr + offset, x * factor * n * SCALE, mask=offset < n)


def run(x: torch.Tensor, y: torch.Tensor, n: Any, factor: Any, extra: torch.Tensor | None = None) -> bool:
    constants = {"BLOCK": 64, "HAS_EXTRA": extra is not None, "num_warps": 4}
    return cpu.plan_launch(scale_kernel, (triton.cdiv(int(n), 64),), (x, y, n, factor, extra), constants)


def test_results_follow_the_arguments() -> None:
    """Integers that Triton specializes (1), floats of equal value, dtypes, None and 0-d tensors."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(100).to(dtype)
        for n, factor in ((100, 0.5), (1, 0.5), (1, 2.0), (17, 2), (100, True), (64, 1.0), (64, 1)):
            for extra in (None, torch.tensor(3.0).to(dtype)):
                y = torch.zeros(100, dtype=dtype)
                assert run(x, y, n, factor, extra)
                expected = torch.zeros(100, dtype=dtype)
                scale_kernel[(triton.cdiv(n, 64),)](
                    x, expected, n, factor, extra, BLOCK=64, HAS_EXTRA=extra is not None
                )
                assert torch.equal(y, expected) and y[:n].abs().sum() > 0


def test_misaligned_tensors_share_a_plan() -> None:
    memory = torch.randn(200)
    y = torch.zeros(64)
    for shift in (0, 1, 3):
        assert run(memory[shift : shift + 64], y, 64, 0.5)
        torch.testing.assert_close(y, memory[shift : shift + 64] * 64)


def test_overlapping_arguments_take_the_kernels_careful_variant() -> None:
    y = torch.zeros(64)
    assert run(torch.randn(64), y, 64, 0.5)
    memory = torch.randn(65)
    x = memory[:64].clone()
    assert run(memory[:64], memory[1:], 64, 0.5)
    torch.testing.assert_close(memory[1:], x * 64)


@triton.jit
def through_address_kernel(table_ptr, y_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(tl.load(table_ptr).to(tl.pointer_type(tl.float32)) + lane)
    tl.store(y_ptr + lane, x + tl.load(y_ptr + lane))


def test_overlapping_arguments_of_kernels_that_load_addresses() -> None:
    """The table lies in the memory that is written: its address is loaded before."""
    for shift in (64, 0):
        memory, x = torch.zeros(66), torch.randn(64)
        table = memory[shift : shift + 2].view(torch.int64)
        table[0] = x.data_ptr()
        expected = memory[:64] + x
        assert cpu.plan_launch(through_address_kernel, (1,), (table, memory[:64]), {"BLOCK": 64, "num_warps": 4})
        torch.testing.assert_close(memory[:64], expected)


def test_neighbors_in_memory_do_not_overlap() -> None:
    """The plan was created for tensors that reach further than these do."""
    assert run(torch.randn(400), torch.zeros(400), 48, 0.5)
    memory = torch.randn(96)
    assert run(memory[:48], memory[48:], 48, 0.5)
    torch.testing.assert_close(memory[48:], memory[:48] * 48)


def test_hooks_debugging_and_changed_globals_take_tritons_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(64), torch.zeros(64)
    assert run(x, y, 64, 0.5)
    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(hook)
    try:
        assert not run(x, y, 64, 0.5)
        cpu.launch(scale_kernel, (1,), (x, y, 64, 0.5, None), {"BLOCK": 64, "HAS_EXTRA": False})
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert seen == ["scale_kernel"]
    monkeypatch.setattr(knobs.runtime, "debug", True)
    assert not run(x, y, 64, 0.5)
    monkeypatch.setattr(knobs.runtime, "debug", False)
    monkeypatch.setitem(globals(), "SCALE", tl.constexpr(3.0))
    assert not run(x, y, 64, 0.5)
    monkeypatch.undo()
    assert run(x, y, 64, 0.5)


def test_plans_hold_no_tensors_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(64), torch.zeros(64)
    assert run(x, y, 64, 0.5)
    reference = weakref.ref(x)
    del x
    gc.collect()
    assert reference() is None
    monkeypatch.setattr(plans, "LARGEST_CACHE", 8)
    x = torch.randn(4096)
    y = torch.zeros(4096)
    site = next(site for site in planner.sites.values() if site.kernel is scale_kernel)
    created: dict[tuple, Any] = {}
    for n in range(2, 40):
        assert run(x, y, n, 0.5)
        site.prepare(created, (n,), (1,), (x, y, n, 0.5, None))
        site.launch((n,), ())
    assert 0 < len(created) <= 8 and 0 < len(site.launches) <= 8


def test_problems_share_plans_by_content() -> None:
    variants = [Problem(scale_kernel, (1,), 64, 0.5, HAS_EXTRA=False, BLOCK=64, num_warps=w) for w in (4, 4, 8)]
    types = (torch.Tensor, torch.Tensor)
    bound = [planner.bind(each.kernel, each.grid, types, each.numbers, each.constants) for each in variants]
    assert bound[0] is bound[1] is not bound[2]


@triton.jit
def shift_kernel(x_ptr, shift_ptr, factor, y_ptr, n, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x_ptr + offset, mask=offset < n, other=0.0) * factor
    if shift_ptr is not None:
        y += tl.load(shift_ptr + offset, mask=offset < n, other=0.0)
    tl.store(y_ptr + offset, y, mask=offset < n)


def test_a_problem_follows_the_kinds_of_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent tensors, parameters, integers and floats in turn; and another planner."""
    problem = Problem(shift_kernel, (2,), 100, BLOCK=64)
    x, shift = torch.randn(100), torch.randn(100)
    shifts = None, shift, torch.nn.Parameter(shift)
    for planned in (planner, plans.Planner(planner.create_site)):
        monkeypatch.setattr(launch, "planner", planned)
        for factor in (2, 0.5, True, 4):
            for each in (*shifts, *reversed(shifts)):
                y = torch.full((100,), torch.nan)
                problem.launch(x, each, factor, y)
                assert torch.equal(y, x * factor + (0 if each is None else shift))
        assert problem.generation is planned.generation
        monkeypatch.setattr(shift_kernel, "debug", True)  # what watches a kernel's launches gets Triton's own
        y = torch.full((100,), torch.nan)
        problem.launch(x, shift, 2, y)
        assert torch.equal(y, x * 2 + shift)
        monkeypatch.setattr(shift_kernel, "debug", False)


def test_a_plan_is_created_without_launching() -> None:
    """A kernel that accumulates must run once, not twice, on its first launch."""
    total = torch.zeros(1)
    assert cpu.plan_launch(accumulate_kernel, (3,), (total,), {})
    assert total.item() == 3.0
    assert cpu.plan_launch(accumulate_kernel, (3,), (total,), {})
    assert total.item() == 6.0


@triton.jit
def accumulate_kernel(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


def test_a_failing_kernel_raises() -> None:
    with pytest.raises(RuntimeError, match="must be positive"):
        cpu.launch(assert_kernel, (1,), (torch.zeros(1),), {"debug": True})


@triton.jit
def assert_kernel(x_ptr):
    tl.device_assert(tl.load(x_ptr) > 0, "must be positive")

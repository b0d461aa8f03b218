# pyright: reportArgumentType=false
"""How a grid's programs are divided among threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl

from tinynet_engines.cpu import driver

MOST_WAITS = 1 << 26


@triton.jit
def chain_kernel(turn_ptr, order_ptr, MOST_WAITS: tl.constexpr):
    """Each program waits until all before it are done."""
    program = tl.program_id(0)
    waits = 0
    while (tl.atomic_add(turn_ptr, 0) < program) & (waits < MOST_WAITS):
        waits += 1
    tl.store(order_ptr + program, tl.atomic_add(turn_ptr, 1))


@triton.jit
def mark_kernel(count_ptr):
    program = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
    tl.atomic_add(count_ptr + program, 1)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 5], indirect=True)
@pytest.mark.parametrize("grid", [(1,), (2,), (7,), (64, 3), (5, 4, 3), (1000,)])
def test_every_program_runs_once(grid: tuple[int, ...], threads: int, device: str) -> None:
    size = 1
    for axis in grid:
        size *= axis
    counts = torch.zeros(size + 1, dtype=torch.int32)
    mark_kernel[grid](counts)
    assert counts.tolist() == [1] * size + [0]


@pytest.mark.parametrize("threads", [2, 3, 5], indirect=True)
def test_programs_may_wait_for_earlier_ones(threads: int, device: str) -> None:
    """Also where several threads of Python launch, each with a team of its own."""
    orders = [torch.zeros(24, dtype=torch.int32) for _ in range(4)]

    def run(order: torch.Tensor) -> None:
        torch.set_num_threads(threads)
        for _ in range(3):
            chain_kernel[24,](torch.zeros(1, dtype=torch.int32), order, MOST_WAITS=MOST_WAITS)

    run(orders[0])
    workers = [threading.Thread(target=run, args=(order,)) for order in orders[1:]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(order.tolist() == list(range(24)) for order in orders)


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_without_openmps_thread_numbers(threads: int, device: str) -> None:
    library = driver.runtime().library
    library.tinynet_set_thread_number(None)
    try:
        test_every_program_runs_once((37,), threads, device)
        test_programs_may_wait_for_earlier_ones(threads, device)
    finally:
        driver.runtime.cache_clear()
        driver.runtime()

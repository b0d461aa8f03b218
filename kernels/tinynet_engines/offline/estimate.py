"""An estimate of a launch's time, beside its lower bound: what the bound leaves out is mostly waiting.

    estimate   = launch latency + the longest of
                   chain                the steps of one program, one after the other, for each round of programs
                   fill + bound         the first loads arrive, then the chip runs at its peaks
                   fill + throughput    the first loads arrive, then the busiest multiprocessor never waits
    chain      = rounds (fill + outside + steps x latency of a step)
    throughput = programs of the busiest multiprocessor (outside + steps x time of a step)

- The busiest multiprocessor gets ceil(programs / multiprocessors) programs, and holds `resident` at a time: in rounds.
- A step's instructions, matrix products and shared-memory traffic overlap between programs, so that its time is the
  longest of the three. Within one program they follow each other: its latency is their sum, and a wait for memory.
- The main loop may load `stages - 1` steps ahead, which divides the wait; else it waits once for all the steps that
  the compiler unrolled into one iteration.
- `outside` is the instructions before and after the main loop. `fill` is the latency of device memory.

Of the same work, fewer programs with more steps each take longer, since their chain is longer. Published latencies and
rates are in `targets.py`. Nothing here is fitted to measurements; `docs/tutorials/look-at-a-gpu.md` lists what the
estimate leaves out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinynet_engines.offline.launch import Launch
from tinynet_engines.offline.targets import LAUNCH_LATENCY, SCHEDULERS, SHARED_BYTES_PER_CYCLE

MOST_UNROLLED = 4  # threads that load the same small block look like unrolled steps, so more are not believed


@dataclass(frozen=True)
class Estimate:
    """The parts of an estimate, in seconds.

    Attributes:
        launch: latency of the launch.
        fill: latency of the first loads.
        chain: steps of one program after the other, in rounds of resident programs.
        throughput: work of the busiest multiprocessor without waiting.
        bound: the launch's lower bound; 0 if unknown.
    """

    launch: float
    fill: float
    chain: float
    throughput: float
    bound: float

    @property
    def seconds(self) -> float:
        """The estimate, never below the bound."""
        return self.launch + max(self.chain, self.fill + max(self.bound, self.throughput))


def estimate(launch: Launch) -> Estimate | None:
    """The estimated time of a launch, or None if no program of it fits a multiprocessor."""
    resident, _ = launch.resident
    if not resident:
        return None
    clock = launch.target.pace.clock
    fill = launch.target.pace.memory_latency / clock
    programs = math.ceil(launch.programs / launch.target.multiprocessors)
    rounds = math.ceil(programs / resident)
    steps, step, outside = _steps(launch), _step(launch), _outside(launch)
    return Estimate(
        launch=LAUNCH_LATENCY,
        fill=fill,
        chain=rounds * (fill + outside.latency + steps * step.latency),
        throughput=programs * (outside.time + steps * step.time),
        bound=launch.bound_seconds or 0.0,
    )


@dataclass(frozen=True)
class _Work:
    """Seconds that a part of a program takes: alone on a multiprocessor, and as a share of a busy one."""

    latency: float
    time: float


def _steps(launch: Launch) -> float:
    """Steps of the main loop; where data decides, as many as the declared operations need, or one."""
    loop = launch.main_loop
    if loop.steps is not None:
        return loop.steps
    return max(1.0, (launch.flops or 0) / (launch.programs * loop.flops)) if loop.flops else 1.0


def _instructions(launch: Launch, count: float) -> _Work:
    """A program's warps each issue `count` instructions; one warp keeps one scheduler busy."""
    pace, warps = launch.target.pace, launch.kernel.num_warps
    cycle = 1 / (pace.issue_rate * pace.clock)
    return _Work(count * max(warps, SCHEDULERS) * cycle, count * warps * cycle)


def _outside(launch: Launch) -> _Work:
    """The instructions before and after the main loop."""
    code = launch.kernel.code
    if not _steps(launch):
        return _instructions(launch, code.instructions)
    return _instructions(launch, code.instructions - code.loop_instructions if code.loop_instructions else 0)


def _step(launch: Launch) -> _Work:
    """One step of the main loop."""
    target, loop, code, kernel = launch.target, launch.main_loop, launch.kernel.code, launch.kernel
    steps, unrolled = _steps(launch), _unrolled(launch)
    if not steps:
        return _Work(0.0, 0.0)
    in_step = code.loop_instructions / unrolled if code.loop_instructions else code.instructions / steps
    issue = _instructions(launch, in_step)
    product = loop.flops * target.multiprocessors / target.peak(launch.operand_type)
    traffic = 2 * loop.loaded_bytes if loop.flops else 0  # operands are written to shared memory, then read
    shared = traffic / (SHARED_BYTES_PER_CYCLE * target.pace.clock)
    shared_wait = target.pace.shared_latency / target.pace.clock if loop.flops else 0.0
    alone = shared_wait + issue.latency + product * max(1.0, SCHEDULERS / kernel.num_warps) + shared
    wait = target.pace.memory_latency / target.pace.clock if loop.loaded_bytes else 0.0
    ahead = _steps_ahead(launch)
    latency = max(wait / ahead, alone) if ahead else wait / unrolled + alone
    return _Work(latency, max(issue.time, product, shared))


def _steps_ahead(launch: Launch) -> int:
    """How many steps ahead the main loop loads: Triton pipelines the operands of products."""
    kernel = launch.kernel
    pipelined = kernel.code.asynchronous_copies > 0 or not launch.target.asynchronous_copies
    return kernel.num_stages - 1 if launch.main_loop.flops and pipelined else 0


def _unrolled(launch: Launch) -> int:
    """Steps in one iteration of the compiled loop: what that loads over what a step loads."""
    loop, code = launch.main_loop, launch.kernel.code
    threads = launch.kernel.num_warps * launch.target.warp_size
    loaded = sum(bits * count for bits, count in code.loop_load_bits.items()) * threads // 8
    return min(MOST_UNROLLED, max(1, round(loaded / loop.loaded_bytes))) if loop.loaded_bytes else 1

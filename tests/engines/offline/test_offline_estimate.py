"""The estimate of a launch's time: a value computed by hand, never below the bound, longer for longer chains."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_offline_fill import split_product

import tinynet
from tinynet.models.steps import training_step
from tinynet_engines.offline.binary import Code
from tinynet_engines.offline.estimate import estimate
from tinynet_engines.offline.launch import Launch
from tinynet_engines.offline.steps import MainLoop
from tinynet_engines.offline.targets import TARGETS


def launch_of(
    programs: int, steps: int | None, code: Code | None = None, target: str = "sm_90", num_stages: int = 3
) -> Launch:
    """A launch with round numbers: steps of 64 x 64 x 64 that load 16 KiB, 100 instructions each, 40 besides."""
    code = code or Code(
        registers=128, spill_bytes=0, loop_spills=0, static_shared_bytes=0, instructions=140, loop_instructions=100,
        loop_matrix_instructions=4, matrix_instruction="HGMMA.64x64x16", global_load_bits={128: 8},
        loop_load_bits={128: 8}, asynchronous_copies=8, compare_and_swap=0, full_waits=0,
    )  # fmt: skip
    launch = split_product(1, 1)
    kernel = replace(launch.kernel, read_code=lambda: code, num_warps=4, num_stages=num_stages)
    loop = MainLoop(steps, 2 * 64**3, 2 * 64 * 64 * 2)
    return replace(
        launch, kernel=kernel, target=TARGETS[target], grid=(programs, 1, 1), main_loop=loop,
        flops=programs * (steps or 1) * loop.flops, bytes=programs * 64 * 64 * 4,
    )  # fmt: skip


def seconds(launch: Launch) -> float:
    estimated = estimate(launch)
    assert estimated is not None
    return estimated.seconds


def test_a_value_computed_by_hand():
    """An H100 at 1.98 GHz: 700 cycles from a load to its data, 30 from shared memory.

    A step: 100 instructions of 4 warps, by 4 schedulers: 100 cycles. A product of 524,288 operations at 989.4 / 132
    TFLOP/s: 69.95 ns = 138.5 cycles. 2 x 16,384 bytes of shared memory, 128 per cycle: 256 cycles. Their sum and 30
    cycles of waiting, 524.5, is more than 700 / 2 for the loads, which run two steps ahead. 40 instructions are outside
    of the loop.
    """
    product = 524_288 / (989.4e12 / 132) * 1.98e9
    chain = 700 + 40 + 10 * (30 + 100 + product + 256)
    estimated = estimate(launch_of(4, 10))
    assert estimated is not None
    assert estimated.chain == pytest.approx(chain / 1.98e9)
    assert estimated.throughput == pytest.approx((40 + 10 * 256) / 1.98e9)
    assert estimated.fill == pytest.approx(700 / 1.98e9)
    assert estimated.seconds == pytest.approx(1e-6 + chain / 1.98e9)


def test_loads_that_are_not_ahead_are_waited_for():
    product = 524_288 / (989.4e12 / 132) * 1.98e9
    estimated = estimate(launch_of(4, 10, num_stages=1))
    assert estimated is not None
    assert estimated.chain == pytest.approx((700 + 40 + 10 * (700 + 30 + 100 + product + 256)) / 1.98e9)


def test_many_programs_share_a_multiprocessor():
    """10 programs for the busiest one, which holds 4 at a time: three rounds, or ten times the work of one."""
    launch = launch_of(9 * 132 + 1, 10)
    assert launch.resident[0] == 4
    one, estimated = estimate(launch_of(4, 10)), estimate(launch)
    assert one is not None and estimated is not None
    assert estimated.chain == pytest.approx(3 * one.chain)
    assert estimated.throughput == pytest.approx(10 * one.throughput)
    assert estimated.seconds == pytest.approx(1e-6 + max(estimated.chain, estimated.fill + estimated.throughput))


def test_the_same_work_in_fewer_programs_takes_longer():
    """The same 196 steps, in 98, 28 and 4 programs on 132 multiprocessors."""
    times = [seconds(split_product(programs, steps)) for programs, steps in ((98, 2), (28, 7), (4, 49))]
    assert times[0] < times[1] < times[2] and times[2] > 4 * times[0]
    bounds = [split_product(programs, steps).arithmetic_seconds for programs, steps in ((98, 2), (4, 49))]
    assert bounds[0] == bounds[1]  # which the lower bound does not show


def test_more_steps_or_more_programs_never_take_less():
    steps = [seconds(launch_of(4, count)) for count in range(1, 50)]
    programs = [seconds(launch_of(count, 10)) for count in range(1, 2000, 37)]
    assert all(a < b for a, b in pairwise(steps))
    assert all(a <= b for a, b in pairwise(programs))


def test_steps_that_data_decides_are_counted_by_the_declared_operations():
    known, unknown = launch_of(4, 10), launch_of(4, None)
    assert seconds(replace(unknown, flops=known.flops)) == pytest.approx(seconds(known))


def test_a_launch_that_does_not_fit_has_no_estimate():
    code = launch_of(1, 1).kernel.code
    assert estimate(launch_of(4, 10, replace(code, static_shared_bytes=1 << 20))) is None


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_no_launch_of_a_training_step_is_estimated_below_its_bound(target: str):
    with tinynet.inspect(target) as report:
        training_step("cnn", 128, torch.bfloat16)
    for launch in report.launches:
        assert seconds(launch) >= (launch.bound_seconds or 0.0)
    total = report.total
    assert total.estimated_seconds == pytest.approx(sum(map(seconds, report.launches)))
    assert total.estimated_seconds > total.bound_seconds
    listed = report.to_dict()["launches"]
    assert [each["estimated_seconds"] for each in listed] == list(map(seconds, report.launches))
    assert "estimate " in report.table().split("total: ")[1]


@pytest.mark.parametrize("target", TARGETS)
def test_every_chip_says_where_its_numbers_are_from(target: str):
    chip = TARGETS[target]
    pace, operations = chip.pace, 128 if target == "sm_80" else 256
    assert pace.clock * operations * chip.multiprocessors == pytest.approx(chip.peaks["fp32"], rel=0.01)
    assert pace.shared_latency < pace.memory_latency < 1000
    assert "[1]" in pace.source or "[2]" in pace.source or "assumed" in pace.source


def test_the_documentation_has_every_chips_numbers():
    page = (Path(__file__).parents[3] / "docs" / "tutorials" / "look-at-a-gpu.md").read_text()
    for name, target in TARGETS.items():
        pace = target.pace
        numbers = f"{pace.clock / 1e6:.0f} | {pace.memory_latency} | {pace.shared_latency}"
        assert f"| `{name}` | {numbers} | {pace.source} |" in page

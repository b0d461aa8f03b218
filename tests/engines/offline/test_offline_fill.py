"""The steps of a launch's main loop, and the warning for few programs that each do many."""

import pytest
import torch
from offline_kernels import copy_kernel, data_dependent_kernel, nested_loop_kernel, run, split_product_kernel
from test_offline_ir import kernel

import tinynet
from tinynet import nn
from tinynet.models.steps import training_step
from tinynet_engines.offline.launch import Launch
from tinynet_engines.offline.report import Report
from tinynet_engines.offline.steps import main_loop

BF16 = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def split_product(programs: int, steps: int, target: str = "sm_90", missing: int = 0) -> Launch:
    """A launch of `programs` of `steps` steps each, the last one of fewer."""
    depth = 64 * (programs * steps - missing)
    a, partial = empty(64, depth, dtype=BF16), empty(programs, 64, 64)
    with tinynet.inspect(target) as report:
        run(split_product_kernel, (programs,), a, a, partial, depth, 64 * steps, BLOCK=64, BLOCK_K=64, num_stages=2)
    return report.launches[0]


def warnings(launch: Launch) -> list[str]:
    return [finding.message for finding in launch.findings if finding.kind == "idle"]


@pytest.mark.parametrize("target, multiprocessors", [("sm_90", 132), ("gfx942", 304)])
def test_few_programs_of_many_steps_are_a_warning(target: str, multiprocessors: int):
    launch = split_product(4, 49, target)
    assert launch.main_loop.steps == 49
    assert warnings(launch) == [f"4 programs on {multiprocessors} multiprocessors, with 49 steps one after the other"]
    assert not any(finding.fatal for finding in launch.findings)


@pytest.mark.parametrize("programs, steps", [(200, 49), (66, 49), (4, 8), (1, 1)])
def test_many_programs_or_few_steps_are_none(programs: int, steps: int):
    launch = split_product(programs, steps)
    assert launch.main_loop.steps == steps
    assert not warnings(launch)


def test_half_of_the_multiprocessors_is_the_limit():
    assert warnings(split_product(65, 9)) and not warnings(split_product(66, 9))


def test_steps_are_those_of_the_program_that_does_most():
    assert split_product(3, 49, missing=40).main_loop.steps == 49


def test_a_step_is_an_iteration_with_its_work():
    loop = split_product(4, 49).main_loop
    assert loop.flops == 2 * 64 * 64 * 64
    assert loop.loaded_bytes == 2 * 64 * 64 * 2


def test_a_trip_count_from_memory_is_unknown():
    with tinynet.inspect("sm_90") as report:
        run(data_dependent_kernel, (1,), empty(4096), empty(1, dtype=torch.int32), empty(64), BLOCK=64)
    (launch,) = report.launches
    assert launch.main_loop.steps is None and launch.main_loop.loaded_bytes == 4 * 64
    assert not warnings(launch)


@pytest.mark.parametrize("rows, steps", [(3, 3 * 5), (4, 4 * 5), (5, 5 * 6)])
def test_loops_within_loops_and_known_conditions(rows: int, steps: int):
    with tinynet.inspect("sm_90") as report:
        run(nested_loop_kernel, (1,), empty(10_000), empty(64), rows, 300, LIMIT=4, BLOCK=64)
    assert report.launches[0].main_loop.steps == steps


def test_a_kernel_without_a_loop_has_no_steps():
    with tinynet.inspect("gfx942") as report:
        run(copy_kernel, (1,), empty(1000), empty(1000), 1000, BLOCK=1024)
    (launch,) = report.launches
    assert launch.main_loop.steps == 0 and not warnings(launch)


LOOP = """    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    scf.for %k = %c0 to %n step %c1  : i32 {
      %v = tt.load %x_ptr : !tt.ptr<f32>
    }"""
WHILE = """    scf.while : () -> () {
      %c = tt.load %x_ptr : !tt.ptr<i1>
      scf.condition(%c)
    } do {
      %v = tt.load %x_ptr : !tt.ptr<f32>
      scf.yield
    }"""
CALL = "    tt.call @sums(%x_ptr) : (!tt.ptr<f32>) -> ()"
REMAINDER = """    %pid = tt.get_program_id x : i32
    %r = arith.remsi %pid, %n : i32"""


@pytest.mark.parametrize("body, steps", [
    (LOOP, 40),
    (f"{LOOP}\n{WHILE}", None),
    (f"{LOOP}\n{CALL}", None),
    (f"{REMAINDER}\n{LOOP}".replace("to %n", "to %r"), 39),  # of the middle one of 159 programs
])  # fmt: skip
def test_what_the_ir_does_not_say_is_unknown(body: str, steps: int | None):
    assert main_loop(kernel(body), ((2, 40),), (159, 1, 1)).steps == steps


def recurrent(name: str, target: str) -> Report:
    with tinynet.inspect(target) as report, torch.device("meta"):
        layer = getattr(nn, name)(64, 64, dtype=BF16)
        layer(empty(20, 16, 64, dtype=BF16))[0].backward(empty(20, 16, 64, dtype=BF16))
    return report


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_recurrent_layer_says_why_its_steps_are_serial(name: str, target: str):
    report = recurrent(name, target)
    walks = [
        launch for launch in report.launches if launch.name.startswith(name.lower()) and launch.main_loop.steps == 20
    ]
    for launch in walks:
        (message,) = warnings(launch)
        assert message.endswith(": each time step depends on the one before")
        assert f"warning: {launch.name}: idle: {message}" in report.table()
    if target == "sm_90":
        assert len(walks) == 2


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("batch_size", [128, 512])
@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_training_steps_leave_no_chip_idle(model: str, batch_size: int, target: str):
    """Not even sums of partial results: those of bias gradients, in one program each, took longest of all."""
    with tinynet.inspect(target) as report:
        training_step(model, batch_size, BF16)
    assert [(launch.name, launch.grid) for launch in report.launches if warnings(launch)] == []

"""optimizer: SGD, Adam and AdamW against torch.optim in float64, their state, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
from forced_tiles import GPU, forced_tiles
from helpers import UNIT, assert_close, counted_launches, non_contiguous
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import tinynet
from tinynet import optim
from tinynet.ops import optimizer as operator
from tinynet.ops.optimizer import adam, sgd
from tinynet_kernels.tiles import Target

pytestmark = pytest.mark.kernels

SHAPES = ((1,), (17,), (63, 1), (), (0, 3), (3, 43))
SGD_OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
]
ADAM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "amsgrad": True},
    {"betas": (0.5, 0.9), "eps": 1e-3, "maximize": True, "weight_decay": 0.02},
]
OTHER_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("RMSprop", {}),
    ("RMSprop", {"centered": True, "weight_decay": 0.1, "alpha": 0.9}),
    ("RMSprop", {"momentum": 0.8, "maximize": True}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "maximize": True}),
    ("Adadelta", {"lr": 1.0, "weight_decay": 0.1}),
    ("Adadelta", {"rho": 0.5, "maximize": True}),
    ("Adamax", {"weight_decay": 0.1}),
    ("Adamax", {"betas": (0.5, 0.9), "eps": 1e-3, "maximize": True}),
    ("NAdam", {"weight_decay": 0.1, "momentum_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("RAdam", {"weight_decay": 0.1}),
    ("RAdam", {"betas": (0.5, 0.7), "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
]
CASES = [
    *((name, {"lr": 0.02, **options}) for name, options in OTHER_OPTIONS),
    *(("SGD", {"lr": 0.1, **options}) for options in SGD_OPTIONS),
    *((name, {"lr": 0.02, **options}) for name in ("Adam", "AdamW") for options in ADAM_OPTIONS),
]
ONE_OF_EACH = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("AdamW", {"lr": 0.02, "amsgrad": True}),
    ("RMSprop", {"lr": 0.02, "momentum": 0.5, "centered": True}),
    ("NAdam", {"lr": 0.02}),
]
KERNELS = {"SGD": "sgd_kernel", "Adam": "adam_kernel", "AdamW": "adam_kernel"}  # of others `rule_kernel`


def make(
    device: str, shapes: tuple[tuple[int, ...], ...] = SHAPES, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(sum(len(shape) for shape in shapes))
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def doubled(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(parameter.detach().double()) for parameter in params]


def give_gradients(*lists: list[nn.Parameter], seed: int) -> None:
    """The same random gradients for each list, of several magnitudes, in separate memory."""
    generator = torch.Generator().manual_seed(seed)
    for row in zip(*lists, strict=True):
        gradient = torch.randn(row[0].shape, generator=generator) * 10 ** torch.randn((), generator=generator)
        for parameter in row:
            parameter.grad = gradient.to(row[0].dtype).to(parameter.device, parameter.dtype, copy=True)


def assert_params_close(ours: list[nn.Parameter], exact: list[nn.Parameter], error: float) -> None:
    for index, (parameter, expected) in enumerate(zip(ours, exact, strict=True)):
        assert_close(parameter, expected, error, f"parameter {index}")


def assert_same_params(first: list[nn.Parameter], second: list[nn.Parameter]) -> None:
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"parameter {index} differs"


@pytest.mark.parametrize(("name", "options"), CASES)
def test_twenty_steps_follow_torch(name: str, options: dict[str, Any], device: str) -> None:
    ours = make(device)
    exact = doubled(ours)
    optimizer = getattr(optim, name)(ours, **options)
    expected = getattr(torch.optim, name)(exact, **options)
    with counted_launches() as launches:
        for step in range(20):
            give_gradients(ours, exact, seed=step)
            optimizer.step()
            expected.step()
    assert launches == [KERNELS.get(name, "rule_kernel")] * 20
    assert_params_close(ours, exact, 20 * UNIT[torch.float32])
    for parameter, other in zip(ours, exact, strict=True):
        assert optimizer.state[parameter].keys() == expected.state[other].keys()
        for key, value in expected.state[other].items():
            assert_close(optimizer.state[parameter][key], value, 20 * UNIT[torch.float32], key)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_mixed_dtypes_round_once_a_step(name: str, options: dict[str, Any], device: str) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    ours = [make(device, ((5, 7),), dtype)[0] for dtype in dtypes]
    optimizer = getattr(optim, name)(ours, **options)
    for step in range(3):
        exact = doubled(ours)
        expected = getattr(torch.optim, name)(exact, **options)
        for parameter, other in zip(ours, exact, strict=True):
            state = optimizer.state[parameter]
            expected.state[other] = {
                key: value.double() if value.dim() else value.clone() for key, value in state.items()
            }
        give_gradients(ours, exact, seed=step)
        with counted_launches() as launches:
            optimizer.step()
        expected.step()
        assert len(launches) == 3, "one launch per dtype"
        for parameter, other in zip(ours, exact, strict=True):
            error = 2 * UNIT[parameter.dtype]
            assert_close(parameter, other, error)
            for key, value in expected.state[other].items():
                mine = optimizer.state[parameter][key]
                assert mine.dtype is (torch.float32 if mine.dim() == 0 else parameter.dtype)
                assert_close(mine, value, error, key)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_several_blocks_a_tensor(name: str, options: dict[str, Any], device: str) -> None:
    ours = make(device, ((70001,), (3,), (65536,)))
    exact = doubled(ours)
    give_gradients(ours, exact, seed=0)
    getattr(optim, name)(ours, **options).step()
    getattr(torch.optim, name)(exact, **options).step()
    assert_params_close(ours, exact, 4 * UNIT[torch.float32])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_small_tiles(name: str, options: dict[str, Any], aligned: bool, device: str) -> None:
    """Full blocks and a last partial one of each tensor; full blocks of aligned tensors are loaded without a mask."""
    ours = make(device, ((37,), (3,), (5, 16)))
    exact = doubled(ours)
    target = GPU if aligned else Target("interpreter", "", 1, 1)
    with forced_tiles(flat_block=(16, 4), current_target=target):
        optimizer, expected = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(exact, **options)
        for step in range(2):
            give_gradients(ours, exact, seed=step)
            optimizer.step()
            expected.step()
    assert_params_close(ours, exact, 4 * UNIT[torch.float32])
    for parameter, other in zip(ours, exact, strict=True):
        for key, value in expected.state[other].items():
            assert_close(optimizer.state[parameter][key], value, 4 * UNIT[torch.float32], key)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_state_dict_round_trips(name: str, options: dict[str, Any], device: str) -> None:
    shapes = ((17,), (5, 3))
    ours = make(device, shapes)
    optimizer = getattr(optim, name)(ours, **options)
    for step in range(2):
        give_gradients(ours, seed=step)
        optimizer.step()

    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    in_torch = getattr(torch.optim, name)(theirs, lr=0.5)
    assert in_torch.state_dict()["param_groups"][0].keys() == optimizer.state_dict()["param_groups"][0].keys()
    in_torch.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    back = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    again = getattr(optim, name)(back, lr=0.5)
    again.load_state_dict(copy.deepcopy(in_torch.state_dict()))
    for step in range(2, 4):
        give_gradients(ours, theirs, back, seed=step)
        for each in (optimizer, in_torch, again):
            each.step()
    assert_same_params(ours, back)
    assert_params_close(ours, [nn.Parameter(parameter.detach().double()) for parameter in theirs], 1e-5)


def test_torch_continues_parameters_that_had_no_gradient(device: str) -> None:
    """PyTorch's Adagrad has states from the start, and does not make them later."""
    for steps in (0, 1):
        ours = make(device)
        optimizer, in_torch = optim.Adagrad(ours, initial_accumulator_value=0.5), torch.optim.Adagrad(ours)
        for _ in range(steps):
            ours[0].grad = torch.ones_like(ours[0])
            optimizer.step()
        in_torch.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for parameter in ours:
            parameter.grad = torch.ones_like(parameter)
        in_torch.step()
        assert in_torch.state[ours[1]]["sum"].unique().item() == 1.5


def test_loads_the_state_of_pytorchs_fused_adam(device: str) -> None:
    theirs = make(device, ((9,),))
    fused = torch.optim.AdamW(theirs, fused=True)
    give_gradients(theirs, seed=0)
    fused.step()
    ours = [nn.Parameter(theirs[0].detach().clone())]
    optimizer = optim.AdamW(ours)
    optimizer.load_state_dict(copy.deepcopy(fused.state_dict()))
    assert optimizer.state[ours[0]]["step"].device.type == "cpu"
    give_gradients(ours, theirs, seed=1)
    optimizer.step()
    fused.step()
    assert_params_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_copies_continue_bit_for_bit(name: str, options: dict[str, Any], how: str, device: str) -> None:
    ours = make(device, ((17,), (5, 3)))
    optimizer = getattr(optim, name)(ours, **options)
    give_gradients(ours, seed=0)
    optimizer.step()
    other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    others = other.param_groups[0]["params"]
    assert others[0] is not ours[0]
    for step in (1, 2):
        give_gradients(ours, others, seed=step)
        optimizer.step()
        other.step()
    assert_same_params(ours, others)


def test_groups_with_their_own_options(device: str) -> None:
    ours = make(device, ((17,), (5, 3), (4,)))
    exact = doubled(ours)

    def build(module: Any, params: list[nn.Parameter]) -> Any:
        groups = [{"params": params[:1]}, {"params": params[1], "lr": 0.5, "momentum": 0.0}]
        built = module.SGD(groups, lr=0.1, momentum=0.9)
        built.add_param_group({"params": params[2:], "weight_decay": 0.3})
        return built

    optimizer, expected = build(optim, ours), build(torch.optim, exact)
    for step in range(3):
        give_gradients(ours, exact, seed=step)
        with counted_launches() as launches:
            optimizer.step()
        expected.step()
        assert len(launches) == 3
    assert_params_close(ours, exact, 1e-6)
    named = optim.AdamW([("weight", ours[0]), ("bias", ours[1])])
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]


SCHEDULERS: list[Any] = [
    lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.3),
    lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
    lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=6),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=["step", "cosine", "one_cycle"])
@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_schedulers(name: str, options: dict[str, Any], scheduler: Any, device: str) -> None:
    ours = make(device, ((17,),))
    exact = doubled(ours)
    optimizer = getattr(optim, name)(ours, **options)
    expected = getattr(torch.optim, name)(exact, **options)
    schedules = scheduler(optimizer), scheduler(expected)
    for step in range(6):
        give_gradients(ours, exact, seed=step)
        optimizer.step()
        expected.step()
        if step < 5:
            for schedule in schedules:
                schedule.step()
    for key in ("lr", "momentum", "betas"):
        assert optimizer.param_groups[0].get(key) == expected.param_groups[0].get(key)
    assert_params_close(ours, exact, 1e-5)


def test_grad_scaler_unscales_and_skips_infinite_gradients(device: str) -> None:
    weight = nn.Parameter(torch.ones(5, device=device))
    optimizer = optim.SGD([weight], lr=0.5)
    scaler = torch.amp.GradScaler(device, init_scale=8.0)
    scaler.scale((weight * 2).sum()).backward()
    scaler.unscale_(optimizer)
    assert weight.grad is not None and torch.equal(weight.grad, torch.full_like(weight, 2))
    scaler.step(optimizer)
    scaler.update()
    assert not weight.any()  # 1 - 0.5 * 2
    optimizer.zero_grad()
    assert weight.grad is None
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not weight.any() and scaler.get_scale() == 4.0


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_layouts(name: str, options: dict[str, Any], device: str) -> None:
    ours = make(device, ((4, 3, 5, 2), (6, 8)))
    exact = doubled(ours)
    ours[0].data = ours[0].data.to(memory_format=torch.channels_last)
    ours[1].data = ours[1].data.t().contiguous().t()
    optimizer = getattr(optim, name)(ours, **options)
    expected = getattr(torch.optim, name)(exact, **options)
    with counted_launches() as launches:
        for step in range(4):
            give_gradients(ours, exact, seed=step)  # contiguous
            if step == 1 and ours[0].grad is not None:
                ours[0].grad = ours[0].grad.to(memory_format=torch.channels_last)
            if step == 2:
                ours[0].data = ours[0].data.contiguous()  # the state follows
            optimizer.step()
            expected.step()
    assert len(launches) == 4
    assert_params_close(ours, exact, 1e-5)
    for parameter in ours:
        for key, value in optimizer.state[parameter].items():
            assert value.dim() == 0 or value.stride() == parameter.stride(), key


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_what_the_kernels_do_not_take_goes_through_the_definition(
    name: str, options: dict[str, Any], device: str
) -> None:
    def build(memory: Tensor) -> list[Tensor]:
        parts = memory[:10], memory[5:15], memory[20:40:2]  # two overlap, one has gaps
        return [part.detach().requires_grad_() for part in parts]

    memory = torch.randn(40, device=device)
    exact_memory = memory.double()
    ours, exact = build(memory), build(exact_memory)
    with tinynet.engine("auto"), counted_launches() as launches:
        optimizer = getattr(optim, name)(ours, **options)
        expected = getattr(torch.optim, name)(exact, **options, foreach=False)
        for _ in range(2):
            for parameter, other in zip(ours, exact, strict=True):
                parameter.grad = torch.randn_like(parameter)
                other.grad = parameter.grad.double()
            optimizer.step()
            expected.step()
        doubles = doubled(make(device, ((7,),)))
        doubles[0].grad = torch.ones_like(doubles[0])
        before = doubles[0].detach().clone()
        getattr(optim, name)(doubles, **options).step()
        assert not torch.equal(before, doubles[0])
    assert not launches
    assert_close(memory, exact_memory, 1e-6)


def test_expanded_parameter_is_an_error_as_in_torch(device: str) -> None:
    parameter = torch.zeros(1, device=device).expand(3).requires_grad_()
    parameter.grad = torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match="single memory location"):
        optim.SGD([parameter], lr=1.0).step()


def test_parameters_join_late(device: str) -> None:
    ours = make(device, ((17,), (5, 3), (4,)))
    exact = doubled(ours)
    optimizer, expected = optim.Adam(ours, lr=0.1), torch.optim.Adam(exact, lr=0.1)
    optimizer.step()
    assert not optimizer.state, "nothing has a gradient, so nothing has a state"
    for step, (present, launched) in enumerate([([0], 1), ([0, 1], 2), ([1, 2], 2), ([0, 1, 2], 2)]):
        optimizer.zero_grad()
        expected.zero_grad()
        give_gradients([ours[i] for i in present], [exact[i] for i in present], seed=step)
        with counted_launches() as launches:
            optimizer.step()
        expected.step()
        assert len(launches) == launched, "one launch per step count"
    assert_params_close(ours, exact, 1e-5)


def change_state(optimizer: Any, params: list[nn.Parameter]) -> None:
    name = "momentum_buffer" if "momentum" in optimizer.defaults else "exp_avg"
    optimizer.state[params[1]][name] = torch.full_like(params[1], 0.25)


def change_state_in_place(optimizer: Any, params: list[nn.Parameter]) -> None:
    name = "momentum_buffer" if "momentum" in optimizer.defaults else "exp_avg"
    optimizer.state[params[1]][name].data = torch.full_like(params[1], 0.25)


def change_step_count(optimizer: Any, params: list[nn.Parameter]) -> None:
    if "step" in optimizer.state[params[1]]:
        optimizer.state[params[1]]["step"] = torch.tensor(7.0)


def change_data(optimizer: Any, params: list[nn.Parameter]) -> None:
    params[1].data = torch.full_like(params[1], 0.25)


def change_layout(optimizer: Any, params: list[nn.Parameter]) -> None:
    """The same address and elements in another order."""
    square = params[2]
    square.data = square.data.t()


def change_sharing(optimizer: Any, params: list[nn.Parameter]) -> None:
    memory = torch.ones(9, dtype=params[1].dtype, device=params[1].device)
    params[1].data, params[2].data = memory[:4].view(2, 2), memory[:9].view(3, 3)


def drop_state(optimizer: Any, params: list[nn.Parameter]) -> None:
    del optimizer.state[params[0]]


def load_state(optimizer: Any, params: list[nn.Parameter]) -> None:
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.3
    optimizer.load_state_dict(saved)


def add_group(optimizer: Any, params: list[nn.Parameter]) -> None:
    first = optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": [first], "lr": 0.3})


CHANGES = [
    change_state,
    change_state_in_place,
    change_step_count,
    change_data,
    change_layout,
    change_sharing,
    drop_state,
    load_state,
    add_group,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_what_changes_between_steps_is_noticed(name: str, options: dict[str, Any], change: Any, device: str) -> None:
    ours = make(device, ((17,), (2, 2), (3, 3)))
    exact = doubled(ours)
    optimizer = getattr(optim, name)(ours, **options)
    expected = getattr(torch.optim, name)(exact, **options, foreach=False)
    with tinynet.engine("auto"):
        for step in range(5):
            if step == 2:
                change(optimizer, ours)
                change(expected, exact)
            give_gradients(ours, exact, seed=step)
            optimizer.step()
            expected.step()
    assert_params_close(ours, exact, 1e-5)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_gradients_that_change_between_steps(name: str, options: dict[str, Any], device: str) -> None:
    ours = make(device, ((16,), (4, 4)))
    exact = doubled(ours)
    optimizer = getattr(optim, name)(ours, **options)
    expected = getattr(torch.optim, name)(exact, **options)

    def misaligned(gradient: Tensor) -> Tensor:
        return torch.cat([gradient.flatten()[:1], gradient.flatten()])[1:].view_as(gradient)

    def transposed(gradient: Tensor) -> Tensor:
        return gradient.t().contiguous().t()

    changes = [None, None, misaligned, None, transposed, transposed, non_contiguous, None, "missing", None, None]
    for step, change in enumerate(changes):
        give_gradients(ours, exact, seed=step)
        gradient = ours[1].grad
        assert gradient is not None
        if change == "missing":
            ours[1].grad = exact[1].grad = None
        elif change is not None:
            ours[1].grad = change(gradient)  # pyright: ignore[reportCallIssue]
        optimizer.step()
        expected.step()
    assert_params_close(ours, exact, 1e-5)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_refused_at_a_later_step(name: str, options: dict[str, Any], device: str) -> None:
    ours = make(device, ((3, 3), (4,)))
    optimizer = getattr(optim, name)(ours, **options)
    for step in range(2):
        give_gradients(ours, seed=step)
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"]), [parameter.detach().clone() for parameter in ours]
    ours[0].grad = torch.ones(3, 3, device=device).to_sparse()
    with pytest.raises(RuntimeError, match=r"grads\[0\] is sparse"):
        optimizer.step()
    ours[0].grad = torch.ones(3, 3, device=device)
    state = optimizer.state[ours[1]]
    key = next(key for key in state if key != "step")
    kept, state[key] = state[key], state[key][:3]  # the same address
    with pytest.raises(ValueError, match=r"\[1\] must have its parameter's shape \(4,\), got \(3,\)"):
        optimizer.step()
    state[key] = kept
    for index, values in before[0].items():
        for key, value in values.items():
            assert torch.equal(optimizer.state[ours[index]][key], value), "a refused step changed the state"
    assert_same_params(ours, [nn.Parameter(parameter) for parameter in before[1]])


def narrowed(values: Tensor) -> Tensor:
    """The same values in bfloat16, at the same address."""
    memory = values.flatten().view(torch.bfloat16)[: values.numel()].view(values.shape)
    return memory.copy_(values.clone())


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_dtype_and_engine_change_between_steps(name: str, options: dict[str, Any], device: str) -> None:
    ours = make(device, ((17,), (3, 3)))
    optimizer = getattr(optim, name)(ours, **options)
    for step in range(6):
        if step == 2:
            for parameter in ours:
                parameter.data = narrowed(parameter.data)
                state = optimizer.state[parameter]
                for key in state.keys() - {"step"}:
                    state[key] = narrowed(state[key])
        give_gradients(ours, seed=step)
        exact = doubled(ours)
        give_gradients(exact, seed=step)
        for parameter, other in zip(ours, exact, strict=True):
            assert parameter.grad is not None
            other.grad = parameter.grad.double()
        expected = getattr(torch.optim, name)(exact, **options)
        for parameter, other in zip(ours, exact, strict=True):
            state = optimizer.state[parameter]
            expected.state[other] = {
                key: value.double() if value.dim() else value.clone() for key, value in state.items()
            }
        with counted_launches() as launches, tinynet.engine("reference" if step == 4 else "kernels"):
            optimizer.step()
        expected.step()
        assert len(launches) == (0 if step == 4 else 1)
        assert_params_close(ours, exact, 2 * UNIT[ours[0].dtype])


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_a_step_like_the_last_is_prepared_no_more(
    name: str, options: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []
    groups = operator._groups
    monkeypatch.setattr(operator, "_groups", lambda *given: prepared.append(given) or groups(*given))
    ours = make(device)
    optimizer = getattr(optim, name)(ours, **options)
    for step in range(5):
        give_gradients(ours, seed=step)  # at any address
        optimizer.step()
    assert len(prepared) == 1


def test_the_table_knows_where_wide_loads_are_possible(device: str) -> None:
    from tinynet_kernels.launch import INTERPRETED
    from tinynet_kernels.optimizer import PointerTable

    parameter, memory = torch.zeros(16, device=device), torch.zeros(32, device=device)
    table = PointerTable([[parameter], [memory[:16]]])
    for start, aligned in ((1, False), (4, True), (2, False)):
        assert table.follows([[parameter], [memory[start : start + 16]]])
        assert table.tile.aligned == (aligned and not INTERPRETED)
        assert table.addresses.tolist() == [16, parameter.data_ptr(), memory.data_ptr() + 4 * start]
    assert not table.follows([[memory[:16]], [memory[16:]]])


def test_no_gradient_is_kept(device: str) -> None:
    if tinynet.guard.active() is not None:
        pytest.skip("the guard keeps the tensors of a table alive")
    ours = make(device, ((17,),))
    optimizer = optim.AdamW(ours)
    for step in range(3):
        give_gradients(ours, seed=step)
        optimizer.step()
        assert ours[0].grad is not None
        gradient = weakref.ref(ours[0].grad)
        optimizer.zero_grad()
        assert gradient() is None


@pytest.mark.parametrize("maximize", [False, True])
def test_lion_follows_its_definition(maximize: bool, device: str) -> None:
    """PyTorch has no Lion: the paper's algorithm, in float64."""
    ours = make(device)
    exact = [parameter.detach().double() for parameter in ours]
    averages = [torch.zeros_like(parameter) for parameter in exact]
    optimizer = optim.Lion(ours, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, maximize=maximize)
    with counted_launches() as launches:
        for step in range(10):
            give_gradients(ours, seed=step)
            optimizer.step()
            for index, parameter in enumerate(ours):
                assert parameter.grad is not None
                gradient = parameter.grad.double() * (-1 if maximize else 1)
                update = torch.sign(0.8 * averages[index] + 0.2 * gradient)
                exact[index] = exact[index] - 0.01 * (update + 0.1 * exact[index])
                averages[index] = 0.95 * averages[index] + 0.05 * gradient
    assert launches == ["rule_kernel"] * 10
    for parameter, expected, average in zip(ours, exact, averages, strict=True):
        assert_close(parameter, expected, 20 * UNIT[torch.float32])
        assert_close(optimizer.state[parameter]["exp_avg"], average, 20 * UNIT[torch.float32])


def test_lion_leaves_where_nothing_points_and_passes_nan_on(device: str) -> None:
    parameter = torch.tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    parameter.grad = torch.tensor([0.0, float("nan"), -2.0], device=device)
    optim.Lion([parameter], lr=0.5).step()
    expected = torch.tensor([1.0, float("nan"), 3.5], device=device)
    torch.testing.assert_close(parameter.detach(), expected, equal_nan=True)


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Lion"])
def test_other_rules_in_float64_and_refusals(name: str, device: str) -> None:
    """The definition in plain PyTorch serves float64; what torch.optim refuses is refused."""
    parameter = torch.linspace(-1, 1, 7, dtype=torch.float64, device=device, requires_grad=True)
    other = parameter.detach().clone().requires_grad_()
    rule = getattr(optim, name)
    twin = getattr(torch.optim, name)([other], lr=0.1) if name != "Lion" else None
    optimizer = rule([parameter], lr=0.1)
    for step in range(3):
        parameter.grad = torch.linspace(1, 2, 7, dtype=torch.float64, device=device) * (step - 0.5)
        other.grad = parameter.grad.clone()
        with tinynet.engine("auto"):
            optimizer.step()
        if twin is not None:
            twin.step()
            torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="lr: got -1"):
        rule([parameter], lr=-1.0)
    if "betas" in optimizer.defaults:
        with pytest.raises(ValueError, match="betas"):
            rule([parameter], betas=(0.9, 1.0))


def test_an_empty_parameter_leaves_the_others_to_the_kernels(device: str) -> None:
    params = [torch.zeros(0, 3, device=device, requires_grad=True), torch.ones(5, device=device, requires_grad=True)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = optim.Adam(params, lr=0.5)
    for step in (1, 2):
        with counted_launches() as launches:
            optimizer.step()
        assert launches == ["adam_kernel"]
        torch.testing.assert_close(params[1], torch.full_like(params[1], 1 - 0.5 * step))


def test_nothing_has_a_gradient(device: str) -> None:
    for name, options in ONE_OF_EACH:
        ours = make(device, ((3,),))
        optimizer = getattr(optim, name)(ours, **options)
        optimizer.step()
        give_gradients(ours, seed=0)
        optimizer.step()
        before = ours[0].detach().clone()
        optimizer.zero_grad()
        optimizer.step()
        assert torch.equal(ours[0], before)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_reruns_are_bitwise_equal_wherever_gradients_lie(name: str, options: dict[str, Any], device: str) -> None:
    results = []
    for in_place in (False, True, False):
        ours = make(device, ((17,), (129,)))
        optimizer = getattr(optim, name)(ours, **options)
        for step in range(3):
            kept = [parameter.grad for parameter in ours]
            give_gradients(ours, seed=step)
            if in_place and step:
                for parameter, gradient in zip(ours, kept, strict=True):
                    assert gradient is not None and parameter.grad is not None
                    parameter.grad = gradient.copy_(parameter.grad)
            gradients = [parameter.grad.clone() for parameter in ours if parameter.grad is not None]
            optimizer.step()
            for parameter, gradient in zip(ours, gradients, strict=True):
                assert parameter.grad is not None and torch.equal(parameter.grad, gradient), "gradient was changed"
        results.append(ours)
    assert_same_params(results[0], results[1])
    assert_same_params(results[0], results[2])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_not_a_number_and_infinity(device: str) -> None:
    for name, options in (("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True}), ("AdamW", {"eps": 0.0})):
        ours = [nn.Parameter(torch.ones(4, device=device))]
        exact = doubled(ours)
        optimizer, expected = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(exact, **options)
        for values in ([float("nan"), float("inf"), 0.0, 1.0], [1.0, 1.0, 0.0, -1.0]):
            ours[0].grad = torch.tensor(values, device=device)
            exact[0].grad = ours[0].grad.double()
            optimizer.step()
            expected.step()
        assert_params_close(ours, exact, 1e-6)
        for key, value in expected.state[exact[0]].items():
            if key != "exp_avg":  # PyTorch's lerp turns a later finite gradient into NaN; inf stays inf here
                assert_close(optimizer.state[ours[0]][key], value, 1e-6, key)
    infinite = nn.Parameter(torch.full((3,), float("inf"), device=device))
    infinite.grad = torch.ones_like(infinite)
    optim.SGD([infinite], lr=0.1).step()  # weight decay 0 must not compute inf * 0
    assert infinite.isposinf().all()


def test_profilers_and_global_hooks_see_a_step(device: str) -> None:
    parameter = torch.nn.Parameter(torch.randn(5, device=device))
    optimizer = optim.AdamW([parameter])
    parameter.grad = torch.randn_like(parameter)
    profile = torch.autograd.profiler.profile()
    with profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#AdamW.step", "Optimizer.zero_grad#AdamW.zero_grad"} <= names
    assert parameter.grad is None
    called = []
    handle = register_optimizer_step_post_hook(lambda *_: called.append("after"))
    try:
        optimizer.step()
    finally:
        handle.remove()
    optimizer.step()
    assert called == ["after"]
    parameter.grad = torch.ones_like(parameter)
    optimizer.zero_grad(set_to_none=False)
    assert parameter.grad is not None and not parameter.grad.any()


def test_closure_hooks_and_tensor_learning_rate(device: str) -> None:
    weight = nn.Parameter(torch.tensor([3.0], device=device))
    optimizer = optim.SGD([weight], lr=torch.tensor(0.25))
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 9.0
    assert called == ["before", "after"]
    assert weight.item() == 1.5
    optimizer.param_groups[0]["lr"].fill_(0.5)
    optimizer.step(closure)
    assert weight.item() == 0.0


def test_compiled_model_with_the_step_outside(device: str) -> None:
    from tinynet.ops.linear import linear

    weight = nn.Parameter(torch.randn(3, 16, device=device))
    eager = nn.Parameter(weight.detach().clone())
    x = torch.randn(5, 16, device=device)
    compiled = torch.compile(lambda w: linear(x, w).square().sum(), fullgraph=True, backend="aot_eager")
    optimizer, expected = optim.SGD([weight], lr=0.01), torch.optim.SGD([eager], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        expected.zero_grad()
        compiled(weight).backward()
        (x @ eager.t()).square().sum().backward()
        optimizer.step()
        expected.step()
    assert_close(weight, eager, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH)
def test_a_graph_from_before_the_step_is_refused(
    name: str, options: dict[str, Any], dtype: torch.dtype, device: str
) -> None:
    first, second = (nn.Parameter(torch.rand(5, 5, device=device, dtype=dtype)) for _ in range(2))
    optimizer = getattr(optim, name)([first, second], **options)
    with tinynet.engine("auto" if dtype is torch.float64 else "kernels"):
        for step in range(3):  # the first one prepares what the later ones reuse
            optimizer.zero_grad()
            loss = (first @ second).sum()  # each one's gradient reads the other
            loss.backward(retain_graph=True)
            states = [value for state in optimizer.state.values() for value in state.values()]
            tensors = first, second, *states
            versions = [tensor._version for tensor in tensors]
            optimizer.step()
            assert all(tensor._version > before for tensor, before in zip(tensors, versions, strict=True)), step
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def test_functional_steps(device: str) -> None:
    parameter, gradient = torch.ones(3, device=device), torch.full((3,), 2.0, device=device)
    buffers: list[Tensor | None] = [None]
    options = {"lr": 0.5, "dampening": 0.5, "weight_decay": 0.0, "nesterov": False, "maximize": False}
    sgd([parameter], [gradient], buffers, momentum=0.5, **options)
    assert buffers[0] is not None and torch.equal(buffers[0], gradient) and not parameter.any()
    with pytest.raises(ValueError, match=r"grads\[0\] must have its parameter's shape \(3,\), got \(4,\)"):
        sgd([parameter], [torch.ones(4, device=device)], [], momentum=0.0, **options)
    with pytest.raises(ValueError, match="got 2 grads for 1 params"):
        sgd([parameter], [gradient, gradient], [], momentum=0.0, **options)
    with pytest.raises(ValueError, match="got 0 state_steps for 1 params"):
        adam(
            [parameter], [gradient], [gradient], [gradient], [], [], amsgrad=False, beta1=0.9, beta2=0.9, lr=0.1,
            weight_decay=0.0, eps=1e-8, maximize=False, decoupled_weight_decay=False,
        )  # fmt: skip


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SGD", {"lr": -1.0}, "lr: got -1.0"),
        ("SGD", {"lr": NAN}, "lr: got nan"),
        ("SGD", {"lr": torch.ones(2)}, "lr: got a tensor of shape"),
        ("SGD", {"lr": "fast"}, "lr: got 'fast'"),
        ("SGD", {"momentum": INFINITY}, "momentum: got inf"),
        ("SGD", {"dampening": NAN}, "dampening: got nan"),
        ("SGD", {"nesterov": True}, "nesterov: needs momentum"),
        ("SGD", {"differentiable": True}, "differentiable: "),
        ("SGD", {"fused": True, "foreach": True}, "fused and foreach"),
        ("Adam", {"eps": -1e-8}, "eps: got -1e-08"),
        ("Adam", {"weight_decay": INFINITY}, "weight_decay: got inf"),
        ("AdamW", {"betas": (0.9, 1.0)}, r"betas\[1\]: got 1.0"),
        ("AdamW", {"betas": (NAN, 0.9)}, r"betas\[0\]: got nan"),
        ("AdamW", {"betas": 0.9}, "betas: got 0.9"),
    ],
)
def test_refuses_options(name: str, options: dict[str, Any], message: str) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)([parameter], **options)
    optimizer = getattr(optim, name)([nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate", "ignore:Sparse invariant")
def test_refuses_parameters_and_gradients(device: str) -> None:
    parameter = nn.Parameter(torch.zeros(3, 2, device=device))
    with pytest.raises(ValueError, match="given twice"):
        optim.SGD([parameter, parameter])
    with pytest.raises(TypeError, match="complex"):
        optim.SGD([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="empty parameter list"):
        optim.SGD([])
    optimizer = optim.Adam([parameter])
    parameter.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2)).to(device)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_refuses_foreign_state_and_keeps_its_own(device: str) -> None:
    ours = make(device, ((3, 2),))
    optimizer = optim.AdamW(ours, lr=0.1)
    give_gradients(ours, seed=0)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    other = make(device, ((4,),))
    give_gradients(other, seed=0)
    of_other_shape = optim.AdamW(other)
    of_other_shape.step()
    with pytest.raises(ValueError, match=r"state exp_avg: got shape \(4,\) for a parameter of shape \(3, 2\)"):
        optimizer.load_state_dict(of_other_shape.state_dict())
    with pytest.raises(ValueError, match="eps: got None"):
        optimizer.load_state_dict(torch.optim.SGD(ours).state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["exp_avg"], before["state"][0]["exp_avg"])


def test_strided_gradient_is_read_through_its_strides(device: str) -> None:
    parameter = nn.Parameter(torch.ones(3, 4, device=device))
    gradient = torch.randn(3, 4, device=device)
    parameter.grad = non_contiguous(gradient).detach()
    with counted_launches() as launches:
        optim.SGD([parameter], lr=1.0).step()
    assert launches == ["sgd_kernel"]
    assert_close(parameter, 1 - gradient.double(), 1e-6)

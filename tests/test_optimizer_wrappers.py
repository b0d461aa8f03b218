"""LAMB and Muon against the papers' formulas in float64, Lookahead, EMA and groups by rule."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from forced_tiles import GPU, forced_tiles
from helpers import UNIT, assert_close, counted_launches
from test_optimizer import doubled, give_gradients, make
from torch import Tensor

import tinynet
from tinynet import nn, optim
from tinynet.ops.muon import orthogonalize
from tinynet_kernels.tiles import GemmTile, Target

pytestmark = pytest.mark.kernels

LAMB_OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3},
    {"weight_decay": 0.02, "maximize": True},
]


def lamb(parameters: list[Tensor], averages: list[tuple[Tensor, Tensor]], step: int, **options: Any) -> None:
    """Algorithm 2 of You et al. 2020, with the identity for phi."""
    (beta1, beta2), decay = options.get("betas", (0.9, 0.999)), options.get("weight_decay", 0.0)
    for parameter, (m, v) in zip(parameters, averages, strict=True):
        assert parameter.grad is not None
        gradient = -parameter.grad if options.get("maximize") else parameter.grad
        m.copy_(beta1 * m + (1 - beta1) * gradient)
        v.copy_(beta2 * v + (1 - beta2) * gradient**2)
        update = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + options.get("eps", 1e-6)) + decay * parameter
        norm, update_norm = parameter.norm(), update.norm()
        ratio = norm / update_norm if norm > 0 and update_norm > 0 else 1.0
        parameter.data -= options["lr"] * ratio * update.detach()


@pytest.mark.parametrize("options", LAMB_OPTIONS)
def test_lamb_follows_its_algorithm(options: dict[str, Any], device: str) -> None:
    ours = make(device)
    ours[1].data.zero_()  # a step of Adam's own length
    exact = doubled(ours)
    averages = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in exact]
    optimizer = optim.LAMB(ours, lr=0.02, **options)
    with counted_launches() as launches:
        for step in range(10):
            give_gradients(ours, exact, seed=step)
            optimizer.step()
            lamb(list(exact), averages, step + 1, lr=0.02, **options)
    assert launches == ["lamb_moments_kernel", "lamb_ratio_kernel", "lamb_step_kernel"] * 10
    for parameter, other, (m, v) in zip(ours, exact, averages, strict=True):
        assert_close(parameter, other, 40 * UNIT[torch.float32])
        assert_close(optimizer.state[parameter]["exp_avg"], m, 20 * UNIT[torch.float32], "exp_avg")
        assert_close(optimizer.state[parameter]["exp_avg_sq"], v, 20 * UNIT[torch.float32], "exp_avg_sq")


@pytest.mark.parametrize("target", [GPU, Target("interpreter", "", 1, 1 << 30)])
def test_lamb_in_small_tiles(target: Target, device: str) -> None:
    """Several blocks of a tensor, added by several rounds; full ones of aligned memory have no mask."""
    ours = make(device, ((90,), (3,), (5, 16), (0,)))
    exact = doubled(ours)
    averages = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in exact]
    with forced_tiles(flat_block=(16, 4), current_target=target, BLOCK_SUMS=4):
        optimizer = optim.LAMB(ours, lr=0.1, eps=0.0)
        for step in range(2):
            give_gradients(ours, exact, seed=step)
            optimizer.step()
            lamb(list(exact), averages, step + 1, lr=0.1, eps=0.0)
    for parameter, other in zip(ours, exact, strict=True):
        assert_close(parameter, other, 20 * UNIT[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_lamb_in_other_dtypes(dtype: torch.dtype, device: str) -> None:
    ours = make(device, ((129,), (3, 5)), dtype)
    exact = doubled(ours)
    averages = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in exact]
    give_gradients(ours, exact, seed=0)
    with tinynet.engine("auto"):
        optim.LAMB(ours, lr=0.1, weight_decay=0.1).step()
    lamb(list(exact), averages, 1, lr=0.1, weight_decay=0.1)
    for parameter, other in zip(ours, exact, strict=True):
        assert_close(parameter, other, 1e-12 if dtype is torch.float64 else 2 * UNIT[dtype])


@pytest.mark.parametrize("shape", [(3, 17, 63), (2, 40, 24), (1, 1, 5)])
def test_orthogonalize(shape: tuple[int, int, int], device: str) -> None:
    """Newton and Schulz's iteration in float64, through small tiles and the rule's."""
    matrices = torch.randn(shape, device=device)
    a, b, c = 3.4445, -4.775, 2.0315
    exact = matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = exact @ exact.mT
        exact = a * exact + (b * gram + c * gram @ gram) @ exact
    with counted_launches() as launches:
        result = orthogonalize(matrices, dtype=None)
    assert launches == ["batched_product_kernel"] * 15
    assert_close(result, exact, 1e-4)
    with forced_tiles(linear_tile=GemmTile(16, 16, 16, 4, 1), GROUP=2):
        assert_close(orthogonalize(matrices, dtype=None), exact, 1e-4)
    singular = torch.linalg.svdvals(orthogonalize(matrices).double())
    assert singular.min() > 0.3 and singular.max() < 1.4


@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False, "momentum": 0.5, "weight_decay": 0.0}, {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}],
)
def test_muon_follows_torch(options: dict[str, Any], device: str) -> None:
    """Matrices: bfloat16 products in another order, so only about as close as PyTorch is to float64."""
    ours = make(device, ((33, 17), (33, 17), (16, 40), (0, 3)))
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours[:3]]
    start = [parameter.detach().clone() for parameter in theirs]
    optimizer, expected = optim.Muon(ours, lr=0.1, **options), torch.optim.Muon(theirs, lr=0.1, **options)
    for step in range(3):
        give_gradients(ours[:3], theirs, seed=step)
        with counted_launches() as launches:
            optimizer.step()
        expected.step()
    assert launches == ["batched_product_kernel"] * 3 * options.get("ns_steps", 5) * 2, "one product for two parameters"
    for parameter, other, before in zip(ours, theirs, start, strict=False):
        assert (parameter - other).norm() < 0.02 * (other - before).norm()
        buffers = optimizer.state[parameter]["momentum_buffer"], expected.state[other]["momentum_buffer"]
        assert_close(*buffers, 4 * UNIT[torch.float32])
    states = copy.deepcopy(optimizer.state_dict())
    again = optim.Muon(make(device, tuple(parameter.shape for parameter in ours)))
    again.load_state_dict(states)
    assert again.param_groups[0]["lr"] == 0.1
    states["param_groups"][0]["params"].pop()
    expected.load_state_dict(states)


def test_muon_of_filters_is_muon_of_their_matrices(device: str) -> None:
    filters = make(device, ((8, 3, 3, 3), (6, 5, 2)))
    filters[0].data = filters[0].data.to(memory_format=torch.channels_last)
    matrices = [torch.nn.Parameter(each.detach().flatten(1).clone()) for each in filters]
    optimizers = optim.Muon(filters, lr=0.1), torch.optim.Muon(matrices, lr=0.1)
    for step in range(2):
        give_gradients(filters, seed=step)
        for matrix, each in zip(matrices, filters, strict=True):
            assert each.grad is not None
            matrix.grad = each.grad.flatten(1).clone()
        for optimizer in optimizers:
            optimizer.step()
    for matrix, each in zip(matrices, filters, strict=True):
        assert (each.flatten(1) - matrix).norm() < 0.01 * matrix.norm()


def test_muon_refuses(device: str) -> None:
    matrix, vector = make(device, ((3, 4), (5,)))
    with pytest.raises(ValueError, match=r"shape \(5,\), but Muon orthogonalizes matrices and filters"):
        optim.Muon([matrix, vector])
    optimizer = optim.Muon([matrix])
    with pytest.raises(ValueError, match="Muon orthogonalizes"):
        optimizer.add_param_group({"params": [vector]})
    assert len(optimizer.param_groups) == 1
    refused: list[tuple[dict[str, Any], str]] = [
        ({"ns_steps": 100}, "ns_steps: got 100"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients: got"),
        ({"adjust_lr_fn": "other"}, "adjust_lr_fn: got 'other'"),
        ({"lr": -1.0}, "lr: got -1.0"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            optim.Muon([matrix], **options)


@pytest.mark.parametrize("library", [optim, torch.optim])
def test_lookahead_follows_its_algorithm(library: Any, device: str) -> None:
    """Algorithm 1 of Zhang et al. 2019 around SGD with momentum, whose buffers go on."""
    ours = make(device)
    exact = doubled(ours)
    inner = torch.optim.SGD(exact, lr=0.1, momentum=0.9)
    slow = [parameter.detach().clone() for parameter in exact]
    optimizer = optim.Lookahead(library.SGD(ours, lr=0.1, momentum=0.9), k=3, alpha=0.4)
    for step in range(7):
        give_gradients(ours, exact, seed=step)
        optimizer.step()
        inner.step()
        if step % 3 == 2:
            for weight, parameter in zip(slow, exact, strict=True):
                weight += 0.4 * (parameter.detach() - weight)
                parameter.data.copy_(weight)
    for parameter, other in zip(ours, exact, strict=True):
        assert_close(parameter, other, 20 * UNIT[torch.float32])


def test_lookahead_with_schedulers_scalers_and_states(device: str) -> None:
    def build() -> tuple[list[torch.nn.Parameter], optim.Lookahead, Any]:
        params = make(device, ((17,), (5, 3)))
        optimizer = optim.Lookahead(optim.AdamW([{"params": params[:1]}, {"params": params[1:], "lr": 0.2}]), k=2)
        return params, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)

    ours, optimizer, schedule = build()
    scaler = torch.amp.GradScaler(device)

    def step(params: list[torch.nn.Parameter], wrapped: optim.Lookahead, scheduler: Any, seed: int) -> None:
        give_gradients(params, seed=seed)
        wrapped.step()
        scheduler.step()

    for seed in range(3):
        step(ours, optimizer, schedule, seed)
    assert [group["lr"] for group in optimizer.optimizer.param_groups] == pytest.approx([1e-4, 0.02])
    again, other, other_schedule = build()
    for mine, parameter in zip(again, ours, strict=True):
        mine.data.copy_(parameter.detach())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_schedule.load_state_dict(schedule.state_dict())
    loaded = pickle.loads(pickle.dumps(optimizer))
    copied = loaded.param_groups[0]["params"] + loaded.param_groups[1]["params"]
    for seed in range(3, 6):
        step(ours, optimizer, schedule, seed)
        step(again, other, other_schedule, seed)
    assert loaded.count == 3 and loaded.param_groups is loaded.optimizer.param_groups
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, copied, strict=True))
    scaler.scale((ours[0] ** 2).sum() + (ours[1] ** 2).sum()).backward()
    scaler.step(optimizer)
    optimizer.zero_grad()
    assert ours[0].grad is None and optimizer.count == 7
    optimizer.add_param_group({"params": make(device, ((4,),))})
    assert len(optimizer.slow) == len(optimizer.optimizer.param_groups) == 3
    with pytest.raises(ValueError, match="without 'lookahead'"):
        optimizer.load_state_dict(optimizer.optimizer.state_dict())
    with pytest.raises(ValueError, match="other shapes"):
        optimizer.load_state_dict(other.state_dict())
    refused: list[tuple[dict[str, Any], str]] = [({"k": 0}, "k: got 0"), ({"alpha": 0.0}, "alpha: got 0.0")]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            optim.Lookahead(optimizer.optimizer, **options)


def test_moving_average_of_a_model(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(device)
    average = optim.EMA(model, decay=0.75)
    assert average(torch.ones(2, 3, device=device)).shape == (2, 4)
    exact = None
    for _ in range(4):
        model(torch.randn(5, 3, device=device)).sum()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        average.update_parameters(model)
        state = {name: value.double() for name, value in model.state_dict().items()}
        exact = state if exact is None else {name: 0.75 * exact[name] + 0.25 * state[name] for name in state}
    assert exact is not None
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            assert_close(value, exact[name], 8 * UNIT[torch.float32], name)
        else:
            assert value == 4
    assert pickle.loads(pickle.dumps(average)).n_averaged == 4
    with pytest.raises(ValueError, match="decay: got 1.5"):
        optim.EMA(model, decay=1.5)


def test_groups_by_rule(device: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm((8, 5, 5)), nn.Flatten(), nn.Linear(200, 4), nn.LSTM(4, 2)
    )
    model[4].bias.requires_grad_(False)
    decaying, others = optim.parameter_groups(model, weight_decay=0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [names[each] for each in decaying["params"]] == ["0.weight", "4.weight", "5.weight_ih_l0", "5.weight_hh_l0"]
    assert {names[each] for each in others["params"]} == {
        "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "5.bias_ih_l0", "5.bias_hh_l0",
    }  # fmt: skip
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    optimizer = optim.SGD(optim.parameter_groups(model, 0.1), lr=1.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert len(optim.parameter_groups(nn.BatchNorm1d(3), 0.1)) == 1


def test_names_that_are_absent_say_so() -> None:
    with pytest.raises(AttributeError, match=r"tinynet.optim has no LBFGS yet; torch.optim.LBFGS works beside it"):
        _ = optim.LBFGS  # pyright: ignore[reportAttributeAccessIssue]

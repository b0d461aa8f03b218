"""Runs of layers that are recorded on the CPU engine: they compute the bits of the layers called one after another, and
notice every change that these depend on."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tinynet
from tinynet import nn
from tinynet.graphs.memory import Lifetime, arranged
from tinynet.graphs.recorded import Recorded
from tinynet.nn.joins import Added, call_joined
from tinynet.nn.recorded_runs import call_in_turn
from tinynet_kernels import launch
from tinynet_kernels.activation_spec import Activation

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("on_the_cpu_engine")]
Last = torch.channels_last


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).to(memory_format=Last) if len(shape) == 4 else x.to(dtype)


def block(**options: Any) -> nn.Sequential:
    layers = nn.Conv2d(5, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, **options), nn.ReLU(), nn.Conv2d(16, 7, 1)
    return nn.Sequential(*layers, nn.BatchNorm2d(7))


def one_by_one(model: Any, *inputs: Tensor) -> Tensor:
    """The layers of a sequence called as in its first calls."""
    return call_joined(list(model), *inputs)


def step(call: Callable[[Any, Tensor], Tensor], model: Any, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The output, the gradients and the buffers after a forward and a backward."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    model.zero_grad()
    y = call(model, x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 1)).to(y.dtype))
    assert x.grad is not None
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **buffers}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].stride() == tensor.stride(), name


def recorded(model: Any, x: Tensor) -> Any:
    """The model after so many steps that the next one is recorded or runs a recording."""
    for _ in range(2):
        step(nn.Sequential.__call__, model, x)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Sequential], Tensor]] = {
    "convolutions and norms": (block, images(3, 5, 9, 11)),
    "images in contiguous memory": (block, images(3, 5, 9, 11).contiguous()),
    "winograd": (
        lambda: nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1), nn.MaxPool2d(2)
        ),
        images(2, 16, 16, 16),
    ),
    "depthwise and grouped": (
        lambda: nn.Sequential(
            *(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.ReLU6(), nn.Conv2d(24, 24, 3, 2, 1, groups=24)),
            *(nn.BatchNorm2d(24), nn.ReLU6(), nn.Conv2d(24, 12, 1, groups=4), nn.BatchNorm2d(12)),
        ),
        images(2, 8, 13, 12),
    ),
    "norm first": (
        lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.GroupNorm(2, 8), nn.SiLU()),
        images(2, 6, 7, 9),
    ),
    "linear layers": (
        lambda: nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24), nn.Tanh()),
        images(3, 7, 24),
    ),
    "sequences and volumes": (
        lambda: nn.Sequential(nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ELU()),
        images(2, 6, 31),
    ),
    "many convolutions": (
        lambda: nn.Sequential(*(nn.Conv2d(5, 5, 3, padding=1, activation="tanh") for _ in range(11))),
        images(2, 5, 8, 8),
    ),
    "pools": (
        lambda: nn.Sequential(
            *(nn.Conv2d(5, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 6, 1), nn.AvgPool2d(2)),
            *(nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)),
        ),
        images(3, 5, 13, 14),
    ),
    "frozen norms": (lambda: block().eval(), images(3, 5, 9, 11)),
    "statistics of the batch alone": (lambda: block(track_running_stats=False), images(3, 5, 9, 11)),
    "nothing that is trained": (lambda: block(affine=False).requires_grad_(False), images(3, 5, 9, 11)),
    "bf16": (lambda: block().to(torch.bfloat16), images(3, 5, 9, 11, dtype=torch.bfloat16)),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", MODELS)
def test_a_recording_computes_the_bits_of_the_layers_one_after_another(name: str, runs: list[Recorded]) -> None:
    create, x = MODELS[name]
    torch.manual_seed(0)
    ours = create()
    other, theirs = copy.deepcopy(ours), tinynet.revert(copy.deepcopy(ours), verbose=False).double()
    for call in range(5):
        given = x + call * torch.ones((), dtype=x.dtype) / 8
        found = step(nn.Sequential.__call__, ours, given, call)
        assert bool(runs) is (call >= 2)
        assert_same(found, step(one_by_one, other, given, call))
        if name != "many convolutions":  # which have an activation of their own
            exact = step(torch.nn.Sequential.__call__, theirs, given.double(), call)
            for key in found.keys() - {"0.bias", "3.bias", "6.bias"}:  # which are 0 before a norm, but for rounding
                assert_close(found[key], exact[key], 0.1 if x.dtype is torch.bfloat16 else 1e-2, key)
    with torch.no_grad():
        expected = one_by_one(other.eval(), x)
        ours.eval()
        for _ in range(4):
            y = ours(x)
            assert torch.equal(y, expected)
            assert y.stride() == expected.stride()
    assert len({id(run) for run in runs}) >= 2  # of training and of inference


def test_additions_are_inputs(runs: list[Recorded]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
    )
    other = copy.deepcopy(model)

    def call(call_steps: Callable[..., Tensor], model: Any, x: Tensor) -> Tensor:
        return call_steps([*model, Added(x), nn.ReLU()], x)

    for seed in range(4):
        found = step(lambda model, x: call(call_in_turn, model, x), model, images(2, 6, 8, 9, seed=seed), seed)
        assert_same(
            found, step(lambda model, x: call(call_joined, model, x), other, images(2, 6, 8, 9, seed=seed), seed)
        )
    assert len(runs) == 2


def test_dropout_draws_other_numbers_in_each_call(runs: list[Recorded]) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.Dropout(0.2))
    other, x = copy.deepcopy(model), images(4, 8)
    outputs = []
    for call in range(5):
        found = []
        for each, function in ((model, nn.Sequential.__call__), (other, one_by_one)):
            torch.manual_seed(call)
            found.append(step(function, each, x))
        assert_same(*found)
        outputs.append(found[0]["y"])
    assert len(runs) == 3
    assert not torch.equal(outputs[3], outputs[4])


def _load(model: Any) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.mul_(1.5)


def _replace_parameters(model: Any) -> None:
    for layer in model:
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None:
                setattr(layer, name, nn.Parameter(parameter.detach() * 1.25))


def _replace_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.75


def _replace_buffers(model: Any) -> None:
    model.load_state_dict({k: v.clone() + 1 for k, v in model.state_dict().items()}, assign=True)
    model.requires_grad_()


def _transpose(model: Any) -> None:
    model[3].weight.data = torch.randn(16, 7, 1, 1).transpose(0, 1)


def _patch(model: Any) -> None:
    layer = model[2]
    layer.forward = lambda x: torch.nn.functional.relu(x) * 2


CHANGES: dict[str, Callable[[Any], object]] = {
    "values": _load,
    "parameters": _replace_parameters,
    "data": _replace_data,
    "buffers": _replace_buffers,
    "strides of a weight": _transpose,
    "another weight": lambda model: setattr(model[3], "weight", nn.Parameter(torch.randn(9, 16, 1, 1)[:7])),
    "no bias": lambda model: setattr(model[3], "bias", None),
    "eps": lambda model: setattr(model[1], "eps", 0.5),
    "momentum": lambda model: setattr(model[4], "momentum", 0.9),
    "average of all batches": lambda model: setattr(model[4], "momentum", None),
    "stride": lambda model: setattr(model[0], "stride", (2, 2)),
    "padding mode": lambda model: setattr(model[0], "padding_mode", "circular"),
    "activation": lambda model: setattr(model[4], "activation", Activation("tanh")),
    "other module": lambda model: model.__setitem__(2, nn.Tanh()),
    "frozen norm": lambda model: model[1].eval(),
    "evaluation": lambda model: model.eval(),
    "frozen weight": lambda model: model[0].requires_grad_(False),
    "frozen last weight": lambda model: model[3].weight.requires_grad_(False),
    "forward": _patch,
    "hook": lambda model: model[2].register_forward_hook(lambda module, args, y: y * 3),
    "backward hook": lambda model: model[1].register_full_backward_hook(lambda module, grads, _: (grads[0] * 2,)),
    "input of a layer": lambda model: model[3].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "bfloat16": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.every_case
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_layer_is_noticed(change: str) -> None:
    torch.manual_seed(2)
    x = images(3, 5, 9, 11)
    model = recorded(block(), x)
    step(nn.Sequential.__call__, model, x)
    other = copy.deepcopy(model)
    for changed in (model, other):
        torch.manual_seed(3)
        CHANGES[change](changed)
    x = x.to(model[0].weight.dtype)
    for seed in range(4):
        assert_same(step(nn.Sequential.__call__, model, x, seed), step(one_by_one, other, x, seed))


@pytest.mark.every_case
@pytest.mark.parametrize(
    "x",
    [
        images(2, 5, 9, 11),
        images(3, 5, 11, 9),
        images(3, 5, 9, 11).contiguous(),
        images(3, 5, 18, 11)[:, :, ::2],
        images(4, 5, 9, 11)[1:],
        images(1, 5, 9, 11).expand(3, 5, 9, 11),
        images(3, 5, 9, 11).double().float().flip(0),
    ],
)
def test_inputs_of_other_forms(x: Tensor) -> None:
    torch.manual_seed(4)
    model = recorded(block(), images(3, 5, 9, 11))
    other = copy.deepcopy(model)
    for call in range(3):
        assert_same(step(nn.Sequential.__call__, model, x, call), step(one_by_one, other, x, call))


@pytest.mark.every_case
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_for_which_a_kernel_computes_again(value: float) -> None:
    create, x = MODELS["winograd"]
    torch.manual_seed(5)
    model = create()
    other = copy.deepcopy(model)
    for call in range(4):
        given = x.clone(memory_format=torch.preserve_format)
        if call == 3:
            given[1, 3, 5, 6] = value
        found, expected = step(nn.Sequential.__call__, model, given), step(one_by_one, other, given)
        for name, tensor in expected.items():
            assert torch.equal(found[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name


def test_several_forwards_before_a_backward_and_several_backwards(runs: list[Recorded]) -> None:
    torch.manual_seed(6)
    model = recorded(block(), images(3, 5, 9, 11))
    other = copy.deepcopy(model)
    totals = []
    for each, call in ((model, nn.Sequential.__call__), (other, one_by_one)):
        each.zero_grad()
        outputs = [call(each, images(3, 5, 9, 11, seed=seed).requires_grad_()) for seed in range(3)]
        loss = sum(((y * y).sum() for y in outputs), torch.zeros(()))
        loss.backward(retain_graph=True)
        loss.backward()
        totals.append([p.grad for p in each.parameters()])
    assert len(runs) >= 3
    for ours, theirs in zip(*totals, strict=True):
        assert torch.equal(ours, theirs)


def test_upstream_gradients_of_any_layout_are_not_written(runs: list[Recorded]) -> None:
    torch.manual_seed(7)
    model = recorded(block(), images(3, 5, 9, 11))
    other = copy.deepcopy(model)
    for grad in (torch.randn(3, 7, 11, 9).transpose(2, 3), torch.ones(()).expand(3, 7, 9, 11), images(3, 7, 9, 11)):
        before = grad.clone()
        found = []
        for each, call in ((model, nn.Sequential.__call__), (other, one_by_one)):
            x = images(3, 5, 9, 11).requires_grad_()
            found.append(torch.autograd.grad(call(each, x), [x, *each.parameters()], grad))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert torch.equal(grad, before)
    assert runs


def test_second_derivatives_and_batched_gradients() -> None:
    torch.manual_seed(8)
    x = images(2, 5, 6, 7)
    model = recorded(nn.Sequential(nn.Conv2d(5, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 1)), x)
    exact = tinynet.revert(copy.deepcopy(model), verbose=False).double()
    found = []
    for each, given in ((model, x), (exact, x.double())):
        given = given.clone().requires_grad_()
        parameters = list(each.parameters())
        y = each(given)
        before = {name: buffer.clone() for name, buffer in each.named_buffers()}
        (dx,) = torch.autograd.grad((y * y).sum(), given, create_graph=True)
        second = torch.autograd.grad((dx * dx).sum(), [given, *parameters[:3]])
        assert all(torch.equal(before[name], buffer) for name, buffer in each.named_buffers())
        y = each(given)
        many = torch.stack([y.detach(), y.detach() * 2])
        found.append([dx.detach(), *second, *torch.autograd.grad(y, parameters, many, is_grads_batched=True)])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, 1e-3)


def test_second_derivatives_with_random_numbers(runs: list[Recorded]) -> None:
    torch.manual_seed(15)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Dropout(0.5), nn.Linear(24, 4), nn.RReLU(), nn.Tanh())
    for call in range(5):
        x = images(5, 8, seed=call).requires_grad_()
        y = model(x)
        after = torch.get_rng_state()
        (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert_close(dx, first, 1e-5)
        (batched,) = torch.autograd.grad(y, x, torch.ones(1, *y.shape), is_grads_batched=True)
        assert_close(batched[0], first, 1e-5)
        assert torch.equal(torch.get_rng_state(), after)
    assert runs


def test_changes_in_place_between_forward_and_backward_are_refused() -> None:
    model = recorded(block(), images(3, 5, 9, 11))
    x = images(3, 5, 9, 11).requires_grad_()
    y = model(x)
    with torch.no_grad():
        model[3].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = model(x)
    with torch.no_grad():
        model[3].bias.mul_(2)  # no gradient reads it
    y.sum().backward()
    versions = [buffer._version for buffer in model.buffers()]
    model(x)
    assert all(buffer._version > version for buffer, version in zip(model.buffers(), versions, strict=True))


def test_results_may_be_changed_in_place_where_the_layers_allow_it() -> None:
    model = recorded(block(), images(3, 5, 9, 11))
    y = model(images(3, 5, 9, 11).requires_grad_())
    y += 1
    y.sum().backward()
    ending = recorded(nn.Sequential(nn.Conv2d(5, 4, 3), nn.Sigmoid()), images(3, 5, 9, 11))
    y = ending(images(3, 5, 9, 11).requires_grad_())
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradient_checkpointing(runs: list[Recorded]) -> None:
    torch.manual_seed(9)
    model = block()
    other = copy.deepcopy(model)
    for call in range(5):
        found = []
        for each in (model, other):
            each.zero_grad()
            x = images(3, 5, 9, 11, seed=call).requires_grad_()
            y: Any = checkpoint(each, x, use_reentrant=False) if each is model else one_by_one(each, x)
            y.square().sum().backward()
            found.append([x.grad, *(p.grad for p in each.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_who_watches_launches_or_operators_sees_all_of_them(runs: list[Recorded]) -> None:
    x = images(3, 5, 9, 11).requires_grad_()
    model = recorded(block(), x.detach())
    model(x)
    assert runs
    runs.clear()
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() > 0
    seen: list[Any] = []
    launch.observers.append(lambda *each: seen.append(each))
    try:
        model(x)
    finally:
        launch.observers.pop()
    assert len(seen) >= 3
    with torch.profiler.profile() as profile:
        model(x)
    assert any("convolution" in event.key or "conv" in event.key for event in profile.key_averages())
    with tinynet.engine("reference"):
        model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
    torch.func.vmap(model.eval())(x[None])
    model.train()
    assert not runs
    model(x)
    assert len(runs) == 1


def test_defaults_and_inference_mode(runs: list[Recorded]) -> None:
    torch.manual_seed(14)
    x = images(3, 5, 9, 11)
    model = block().eval()
    with torch.no_grad():
        expected = one_by_one(model, x)
    for _ in range(4):
        with torch.inference_mode():
            assert torch.equal(model(x), expected)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.no_grad():
            assert torch.equal(model(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(runs) == 3


def test_precision_and_threads_are_those_of_the_call(runs: list[Recorded]) -> None:
    create, x = MODELS["winograd"]
    torch.manual_seed(10)
    model = recorded(create(), x)
    other = copy.deepcopy(model)
    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(step(nn.Sequential.__call__, model, x), step(one_by_one, other, x))
    finally:
        torch.use_deterministic_algorithms(False)
    try:
        torch.set_num_threads(1)
        assert_same(step(nn.Sequential.__call__, model, x), step(one_by_one, other, x))
    finally:
        torch.set_num_threads(before)


def test_threads_share_a_recording() -> None:
    torch.manual_seed(11)
    model = recorded(block().eval(), images(3, 5, 9, 11))
    inputs = [images(3, 5, 9, 11, seed=seed) for seed in range(8)]
    expected = [one_by_one(model, x).detach() for x in inputs]
    failures: list[int] = []

    def work(position: int) -> None:
        for _ in range(5):
            if not torch.equal(model(inputs[position]), expected[position]):
                failures.append(position)

    threads = [threading.Thread(target=work, args=(position,)) for position in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_copies_of_a_recorded_model_have_their_own_parameters() -> None:
    torch.manual_seed(12)
    x = images(3, 5, 9, 11)
    model = recorded(block(), x)
    step(nn.Sequential.__call__, model, x)
    other = pickle.loads(pickle.dumps(model))
    third = copy.deepcopy(model)
    with torch.no_grad():
        third[0].weight.zero_()
    for _ in range(4):
        assert_same(step(nn.Sequential.__call__, other, x), step(nn.Sequential.__call__, model, x))
    assert step(nn.Sequential.__call__, third, x)["y"].isfinite().all()
    assert third[0].weight.count_nonzero() == 0


def test_a_recorded_model_is_freed() -> None:
    model = recorded(block(), images(3, 5, 9, 11))
    model[0].register_state_dict_post_hook(lambda *_, layer=model[0]: None)
    step(nn.Sequential.__call__, model, images(3, 5, 9, 11))
    layer = weakref.ref(model[0])
    del model
    gc.collect()
    assert layer() is None


def test_a_recorded_model_can_be_recorded_in_a_graph() -> None:
    torch.manual_seed(13)
    x = images(3, 5, 9, 11)
    model = block().eval()
    with torch.no_grad():
        for _ in range(4):
            expected = model(x)
        graph = tinynet.graphed(model, x)
        assert torch.equal(graph(x), expected)


def test_memory_is_shared_by_tensors_of_different_times_alone() -> None:
    lifetimes = [Lifetime(100, 0, 3), Lifetime(64, 1, 2), Lifetime(300, 3, 5), Lifetime(10, 4, 4), Lifetime(90, 5, 9)]
    offsets, size = arranged(lifetimes)
    placed = list(zip(offsets, lifetimes, strict=True))
    for position, (start, one) in enumerate(placed):
        assert start % 64 == 0
        assert start + one.size <= size
        for other_start, other in placed[:position]:
            if one.first <= other.last and other.first <= one.last:
                assert start + one.size <= other_start or other_start + other.size <= start
    assert size < sum(life.size for life in lifetimes)

"""Sequential: chains of Linear layers, pooling convolutions, and modules that must still be called."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_close, convolution_precision, counted_launches, tolerance
from torch.nn.utils import parametrizations, prune

import tinynet
from tinynet import nn
from tinynet.nn.joins import Added
from tinynet.nn.recorded_runs import call_in_turn
from tinynet_kernels.tiles import current_target

pytestmark = pytest.mark.kernels


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with convolution_precision("ieee"):
        yield


def make(device: str) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(24, 20, activation="gelu"),
        nn.Linear(20, 12, activation="tanh"),
        nn.Tanh(),
        nn.Linear(12, 9),
    )
    return model.to(device), torch.randn(7, 4, 6, device=device, requires_grad=True)


def one_by_one(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for module in model:
        x = module(x)
    return x


def gradients(y: torch.Tensor, model: nn.Sequential, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(
        y, (x, *model.parameters()), torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)
    )


def test_is_its_modules_one_after_another(device: str) -> None:
    model, x = make(device)
    assert isinstance(model, torch.nn.Sequential) and isinstance(model[1:3], nn.Sequential)
    with counted_launches() as launches:
        y = model(x)
        actual = gradients(y, model, x)
    expected_y = one_by_one(model, x)
    torch.testing.assert_close(y, expected_y, rtol=0, atol=0)
    for found, expected in zip(actual, gradients(expected_y, model, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # One chain of two layers, and one of one: a pre-pass for the last activation of the former. The latter has none,
    # so that its bias needs one unless one launch computes all gradients.
    assert sum(launches.count(f"linear_{kind}_kernel") for kind in ("forward", "few_rows")) == 3
    joined = launches.count("linear_backward_kernel")
    assert joined in (0, 3) and launches.count("activation_backward_kernel") == (1 if joined else 2)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_a_layer_run(kind: str, device: str) -> None:
    model, x = make(device)
    calls = []

    def hook(*arguments: Any) -> None:
        calls.append(arguments[0])

    handle = getattr(model[1], f"register_{kind}_hook")(hook)
    gradients(model(x), model, x)
    assert calls == [model[1]]
    handle.remove()
    gradients(model(x), model, x)
    assert len(calls) == 1


def test_global_hooks_run(device: str) -> None:
    model, x = make(device)
    calls = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        model(x)
    finally:
        handle.remove()
    assert all(module in calls for module in model)


def test_a_replaced_forward_and_a_parametrization_are_respected(device: str) -> None:
    model, x = make(device)
    model[1].forward = lambda input: torch.zeros(len(input), 20, device=device)
    assert torch.equal(model[:2](x), torch.zeros(7, 20, device=device))

    class Doubled(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    model, x = make(device)
    before = model[4](torch.ones(3, 12, device=device)) - model[4].bias
    torch.nn.utils.parametrize.register_parametrization(model[4], "weight", Doubled())
    after = nn.Sequential(model[4])(torch.ones(3, 12, device=device)) - model[4].bias
    torch.testing.assert_close(after, 2 * before)


LAYERS = (nn.Linear, nn.Conv2d, nn.MaxPool2d)


def one_of_each(device: str) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 8), nn.Linear(8, 2))
    return model.to(device), torch.randn(2, 1, 8, 8, device=device)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("attribute", ["forward", "__call__"])
def test_what_replaces_a_class_method_is_called(
    layer: type[torch.nn.Module], attribute: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    model, x = one_of_each(device)
    expected, calls, original = model(x), [], getattr(layer, attribute)

    def replacement(self: torch.nn.Module, *arguments: Any) -> Any:
        calls.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(layer, attribute, replacement)
    torch.testing.assert_close(model(x), expected)
    assert calls == [module for module in model if type(module) is layer]


def test_a_patched_module_call_sees_every_layer(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    model, x = one_of_each(device)
    calls, original = [], torch.nn.Module.__call__
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda self, x: calls.append(self) or original(self, x))
    model(x)
    assert calls == [model, *model]


@pytest.mark.parametrize("layer", [0, 1, 4])
def test_a_compiled_layer_is_called(layer: int, device: str) -> None:
    model, x = one_of_each(device)
    calls: list[int] = []
    model[layer].compile(backend=lambda graph, _: lambda *inputs: calls.append(layer) or graph(*inputs))
    model(x)
    assert calls == [layer]


@pytest.mark.parametrize("layer", LAYERS)
def test_subclasses_are_called(layer: type[torch.nn.Module], device: str) -> None:
    model, x = one_of_each(device)
    calls = []

    class Watched(layer):
        def __call__(self, *arguments: Any) -> Any:
            calls.append(self)
            return super().__call__(*arguments)

    for module in model:
        if type(module) is layer:
            module.__class__ = Watched
    model(x)
    assert calls == [module for module in model if type(module) is Watched]


REWRITES = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_rewritten_weights_are_computed_with(rewrite: str, device: str) -> None:
    model, x = one_of_each(device)
    model.eval()  # each call in training refines a spectral norm
    before = model(x)
    for layer in (0, 3):
        REWRITES[rewrite](model[layer])
    if rewrite == "weight_norm":  # so far the same weights
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
    after = model(x)
    torch.testing.assert_close(after, one_by_one(model, x))
    assert not torch.allclose(after, before)


def test_functional_call(device: str) -> None:
    model, x = one_of_each(device)
    other, _ = one_of_each(device)
    state = {name: value * 2 for name, value in model.state_dict().items()}
    other.load_state_dict(state)
    torch.testing.assert_close(torch.func.functional_call(model, state, (x,)), other(x))


def test_weight_names_and_state_are_torch_nns(device: str) -> None:
    model, _ = make(device)
    layers = (torch.nn.Linear(24, 20), torch.nn.Linear(20, 12), torch.nn.Tanh(), torch.nn.Linear(12, 9))
    theirs = torch.nn.Sequential(torch.nn.Flatten(), *layers).to(device)
    theirs.load_state_dict(model.state_dict())
    model.load_state_dict(theirs.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_compiled_fullgraph(device: str) -> None:
    model, x = make(device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_empty(device: str) -> None:
    x = torch.randn(3, device=device)
    assert nn.Sequential()(x) is x


# A pooling convolution has its own tiles, which may add in another order: 54 products in the second one.
POOLED_ERROR = tolerance(torch.float32, 6 * 9)


def convolutions(pool: torch.nn.Module, device: str, side: int = 9) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, activation="relu"),
        pool,
        nn.Conv2d(6, 17, 3, padding_mode="reflect", padding=1, activation="gelu"),
        nn.MaxPool2d(2),
    )
    return model.to(device), torch.randn(3, 1, side, side + 4, device=device, requires_grad=True)


def test_a_convolution_pools_for_the_layer_after_it(device: str) -> None:
    model, x = convolutions(nn.MaxPool2d((2, 2), 2), device)
    with counted_launches() as launches:
        y = model(x)
        actual = gradients(y, model, x)
    assert "max_pool_forward_kernel" not in launches
    expected_y = one_by_one(model, x)
    assert_close(y, expected_y, POOLED_ERROR)
    for found, expected in zip(actual, gradients(expected_y, model, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    one = x[0].detach()
    assert_close(model(one), one_by_one(model, one), POOLED_ERROR)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2)],
    ids=str,
)
def test_other_windows_are_layers_of_their_own(pool: torch.nn.Module, device: str) -> None:
    model, x = convolutions(pool, device)
    with counted_launches() as launches:
        y = model(x)
    assert sum("pool_forward" in name for name in launches) == 1  # the last is joined
    assert_close(y, one_by_one(model, x), POOLED_ERROR)


def test_indices_and_hooks_of_a_pooling_layer_are_kept(device: str) -> None:
    model, x = convolutions(nn.MaxPool2d(2), device)
    pool = nn.MaxPool2d(2, return_indices=True)
    y, indices = nn.Sequential(model[0], pool)(x)
    expected, expected_indices = pool(model[0](x))
    assert torch.equal(y, expected) and torch.equal(indices, expected_indices)
    for layer in (0, 1):
        calls = []
        handle = model[layer].register_forward_hook(lambda module, *_, calls=calls: calls.append(module))
        model(x)
        handle.remove()
        assert calls == [model[layer]]


def convolution_and_norm(device: str, **norm: Any) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 20, 3, 2, 1), nn.BatchNorm2d(20, **norm), nn.ReLU()]
    layers += [nn.Conv2d(20, 24, 1, bias=False), nn.BatchNorm2d(24, activation="silu", **norm)]
    layers += [nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24, **norm), nn.LeakyReLU(0.2)]
    model = nn.Sequential(*layers).to(device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, torch.randn(5, 3, 17, 13, device=device, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_convolutions_leave_statistics_for_the_norm_in_training(norm: dict, dtype: torch.dtype, device: str) -> None:
    model, x = convolution_and_norm(device, **norm)
    separate = copy.deepcopy(model)
    model, separate, x = model.to(dtype), separate.to(dtype), x.detach().to(dtype).requires_grad_()
    error = 20 * tolerance(dtype, 64)
    for _ in range(2):  # the second step has other running statistics
        with counted_launches() as launches:
            y = model(x)
            actual = gradients(y, model, x)
        # A CPU's linear layer of pixels leaves them to the normalization.
        expected = 2 if current_target().kind == "cpu" else 3
        assert launches.count("merge_statistics_kernel") == expected and launches.count("normalize_kernel") == 3
        assert launches.count("norm_statistics_kernel") <= 3 - expected
        assert "activation_forward_kernel" not in launches
        expected_y = one_by_one(separate, x)
        assert_close(y, expected_y, error, "output")
        for found, expected in zip(actual, gradients(expected_y, separate, x), strict=True):
            # A bias before a normalization has gradient 0 but for the rounding of a sum over all pixels.
            assert_close(found.double() + 1, expected.double() + 1, 10 * error, "gradient")
        for found, expected in zip(model.buffers(), separate.buffers(), strict=True):
            assert_close(found, expected, error, "buffer")


def results_of(layers: list[Any], x: torch.Tensor, added: torch.Tensor | None, joined: bool) -> list[torch.Tensor]:
    """The output of a convolution, a norm, an addition and a function; first and second derivatives; the buffers."""
    convolution, norm, function = layers
    if joined:
        steps = [convolution, norm, *([] if added is None else [Added(added)]), function]
        y = call_in_turn(steps, x)
        name = type(y.grad_fn).__name__
        assert name == "ConvolutionNormFunctionBackward", name
    else:
        z = norm(convolution(x))
        y = function(z if added is None else z + added)
    leaves = [x, *convolution.parameters(), *norm.parameters(), *([] if added is None else [added])]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    upstream = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view(y.shape)
    first = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    total = torch.stack([each.square().sum() for each in again]).sum()
    second = torch.autograd.grad(total, leaves, materialize_grads=True)
    return [y, *first, *second, *norm.buffers()]


TOGETHER: dict[str, Any] = {
    "plain": (nn.Conv2d(6, 18, 3, 2, 1), nn.BatchNorm2d(18), nn.Identity(), False),
    "pixels": (nn.Conv2d(6, 18, 1, bias=False), nn.BatchNorm2d(18, momentum=None), nn.ReLU(), False),
    "residual": (nn.Conv2d(6, 18, 3, padding=1), nn.BatchNorm2d(18), nn.SiLU(), True),
    "residual, output": (nn.Conv2d(6, 18, 1), nn.BatchNorm2d(18, affine=False), nn.Tanh(), True),
    "groups": (nn.Conv2d(6, 6, 5, padding="same", groups=6), nn.BatchNorm2d(6), nn.GELU(), False),
    "no statistics": (nn.Conv2d(6, 18, 3), nn.BatchNorm2d(18, track_running_stats=False), nn.ReLU(), False),
}


@pytest.mark.parametrize("frozen", [None, "x", "convolution", "norm"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("case", list(TOGETHER))
def test_a_convolution_and_its_norm_train_in_one_function(
    case: str, channels_last: bool, frozen: str | None, device: str
) -> None:
    """First and second derivatives as of float64, of whatever needs one; statistics are updated as in the layers."""
    torch.manual_seed(4)
    *layers, has_residual = copy.deepcopy(TOGETHER[case])
    layers = [layer.to(device) for layer in layers]
    for parameter in layers[1].parameters():
        torch.nn.init.normal_(parameter, 1.0, 0.3)
    x = torch.randn(3, 6, 9, 7, device=device, requires_grad=frozen != "x")
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = x.detach().contiguous(memory_format=order).requires_grad_(frozen != "x")
    layers[0].requires_grad_(frozen != "convolution")
    layers[1].requires_grad_(frozen != "norm")
    added = torch.randn_like(layers[0](x)).requires_grad_() if has_residual else None
    exact_layers = copy.deepcopy(layers)
    exact_layers = [layer.double() for layer in exact_layers]
    exact_added = None if added is None else added.detach().double().requires_grad_()
    exact_x = x.detach().double().requires_grad_(x.requires_grad)
    found = results_of(layers, x, added, joined=True)
    with tinynet.engine("reference"):
        exact = results_of(exact_layers, exact_x, exact_added, joined=False)
    assert len(found) == len(exact)
    largest = max(float(expected.abs().max()) for expected in exact)
    for ours, expected in zip(found, exact, strict=True):
        # A bias before a normalization has gradient 0 but for the rounding of sums.
        scale = max(float(expected.abs().max()), 0.1 * largest)
        assert (ours.double() - expected).abs().max() <= 5e-4 * scale


def test_layers_that_do_not_train_in_one_function_are_called(device: str) -> None:
    """What it refuses is computed by the layers: results are theirs, and so are errors."""
    torch.manual_seed(5)
    x = torch.randn(2, 3, 6, 5, device=device, requires_grad=True)

    def model(channels: int = 8, **options: Any) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 8, 3, **options), nn.BatchNorm2d(channels)).to(device)

    circular = model(padding=1, padding_mode="circular")
    assert type(circular(x).grad_fn).__name__ != "ConvolutionNormFunctionBackward"
    assert_close(circular(x), one_by_one(circular, x), 1e-5)
    broadcast = torch.randn(8, 1, 1, device=device)
    layers = list(model())
    assert_close(call_in_turn([*layers, Added(broadcast)], x), layers[1](layers[0](x)) + broadcast, 1e-5)
    plain = model()
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        assert_close(plain(x), one_by_one(plain, x), 0.05)
    with torch.no_grad():
        assert_close(plain(x), one_by_one(plain, x), 1e-5)
    with pytest.raises(ValueError, match="batch_norm: weight must be"):
        model(channels=4)(x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model()(x[:1, :, :3, :3])


def test_a_changed_parameter_is_noticed_by_the_joined_backward(device: str) -> None:
    model, x = convolution_and_norm(device)
    before = [buffer._version for buffer in model[:2].buffers()]
    y = model[:2](x)
    assert [buffer._version for buffer in model[:2].buffers()] == [version + 1 for version in before]
    with torch.no_grad():
        next(model[1].parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_normalize_in_evaluation(dtype: torch.dtype, device: str) -> None:
    model, x = convolution_and_norm(device)
    model(x)
    model.eval().to(dtype)
    x = x.detach().to(dtype)
    with counted_launches() as launches, torch.no_grad():
        y = model(x)
    kernels = [name for name in launches if name not in ("transpose_kernel", "pad_lines_kernel")]
    if current_target().kind == "cpu":
        expected_kinds = "convolution_patches_forward", "convolution_forward", "depthwise_rows_forward"
    else:
        expected_kinds = "convolution_few_channels", "convolution_forward", "single_channel_forward"
    assert kernels == [f"{kind}_kernel" for kind in expected_kinds]
    with tinynet.engine("reference"):
        exact = one_by_one(copy.deepcopy(model).double(), x.double())
    assert_close(y, exact, 20 * tolerance(dtype, 64), "output")
    with counted_launches() as launches:
        y = model(x.requires_grad_())
        actual = gradients(y, model, x)
    assert launches.count("normalize_kernel") == 3
    expected_y = one_by_one(model, x)
    for found, expected in zip(actual, gradients(expected_y, model, x), strict=True):
        assert_close(found, expected, 20 * tolerance(dtype, 64), "gradient")


def test_joined_layers_with_a_hook_are_called(device: str) -> None:
    model, x = convolution_and_norm(device)
    called: list[Any] = []
    for module in model:
        handle = module.register_forward_hook(lambda module, *_: called.append(module))
        y = model(x)
        handle.remove()
        assert called.pop() is module
        assert_close(y, one_by_one(model, x), 20 * tolerance(torch.float32, 64), "output")


def test_a_norm_of_other_channels_is_refused(device: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(4)).to(device)
    for training in (True, False):
        with pytest.raises(ValueError, match="batch_norm: "):
            model.train(training)(torch.randn(2, 3, 4, 4, device=device))
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))(torch.randn(3, 4, 4))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.LayerNorm(12), (3, 5, 12)),
        (lambda: nn.RMSNorm(12), (3, 5, 12)),
        (lambda: nn.GroupNorm(3, 12), (3, 12, 5)),
        (lambda: nn.BatchNorm1d(12), (6, 12)),
        (lambda: nn.BatchNorm3d(4), (3, 4, 2, 3, 5)),
    ],
    ids=["LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "BatchNorm3d"],
)
def test_norms_compute_the_activation_after_them(norm: Any, shape: tuple[int, ...], device: str) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(norm(), nn.GELU(), nn.Tanh()).to(device)
    x = torch.randn(shape, device=device, requires_grad=True)
    with counted_launches() as launches:
        y = model(x)
    assert launches.count("activation_forward_kernel") == 1  # tanh
    expected_y = one_by_one(model, x)
    assert_close(y, expected_y, tolerance(torch.float32, 64), "output")
    for found, expected in zip(gradients(y, model, x), gradients(expected_y, model, x), strict=True):
        assert_close(found, expected, 20 * tolerance(torch.float32, 64), "gradient")


FOLLOWED = {
    "convolution": (lambda: (nn.Conv2d(3, 5, 3), nn.ReLU()), (2, 3, 7, 6)),
    "convolution of signals": (lambda: (nn.Conv1d(3, 5, 3), nn.GELU()), (2, 3, 9)),
    "convolution of volumes": (lambda: (nn.Conv3d(2, 3, 2), nn.SiLU()), (2, 2, 4, 5, 3)),
    "convolution and pool": (lambda: (nn.Conv2d(3, 5, 3), nn.Identity(), nn.Tanh(), nn.MaxPool2d(2)), (2, 3, 9, 8)),
    "linear layers": (lambda: (nn.Linear(6, 5), nn.LeakyReLU(0.3), nn.Linear(5, 4), nn.Sigmoid()), (3, 7, 6)),
    "nested": (lambda: (torch.nn.Sequential(nn.Conv2d(3, 5, 1)), nn.Sequential(nn.Hardswish())), (2, 3, 5, 4)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_layers_compute_the_activation_after_them(name: str, device: str) -> None:
    torch.manual_seed(5)
    layers, shape = FOLLOWED[name]
    model, x = nn.Sequential(*layers()).to(device), torch.randn(shape, device=device, requires_grad=True)
    with counted_launches() as launches:
        y = model(x)
        actual = gradients(y, model, x)
    assert "activation_forward_kernel" not in launches and "max_pool_forward_kernel" not in launches
    expected_y = one_by_one(model, x)
    assert_close(y, expected_y, tolerance(torch.float32, 64))
    for found, expected in zip(actual, gradients(expected_y, model, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    model[-1].register_forward_hook(lambda *_: None)
    if name != "convolution and pool":
        with counted_launches() as launches:
            model(x)
        assert "activation_forward_kernel" in launches


@pytest.mark.parametrize("kind", ["same", "broadcast", "of another dtype"])
def test_a_norm_adds_a_tensor_that_it_can_read(kind: str, device: str) -> None:
    norm, x = nn.BatchNorm2d(4).to(device), torch.randn(3, 4, 5, 6, device=device)
    other = {"same": x + 1, "broadcast": x[:1], "of another dtype": x.to(torch.bfloat16)}[kind]
    with counted_launches() as launches:
        y = call_in_turn([norm, Added(other), nn.ReLU()], x)
    assert ("activation_forward_kernel" in launches) is (kind != "same")
    expected = torch.relu(torch.nn.functional.batch_norm(x, None, None, training=True) + other)
    assert_close(y, expected, 1e-5)

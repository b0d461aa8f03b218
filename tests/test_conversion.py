"""convert and revert: models written in torch.nn compute the same through tinynet, and keep all that they are."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, counted_launches
from torch import Tensor, nn

import tinynet
from tinynet.conversion.layers import TWINS
from tinynet_kernels.launch import INTERPRETED
from tinynet_kernels.tiles import current_target

pytestmark = pytest.mark.kernels


class Residual(nn.Module):
    """A residual block whose calls share one ReLU."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        short = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.downsample = short if stride != 1 or channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ConvNormActivation(nn.Sequential):
    """A subclass of Sequential without a forward of its own."""


class Inverted(nn.Module):
    """An inverted residual block: depthwise convolution, squeeze-excite, linear bottleneck across a Sequential."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = ConvNormActivation(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.Hardswish())
        depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.Hardswish(inplace=True))
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), nn.Hardsigmoid()
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.gate(self.excite(F.relu(self.squeeze(self.pool(y)), inplace=True))) * y
        return x + self.project(y)


class LayerNorm2d(nn.LayerNorm):
    """As torchvision's wrapper, whose name it takes below."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


LayerNorm2d.__module__ = "torchvision.models.convnext"


class Next(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels))
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.scale * y


class Prenorm(nn.Module):
    """Two sums that a LayerNorm reads, the first of which is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12, bias=False)
        self.mix, self.up, self.down = nn.Linear(12, 12), nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


def images(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: nn.Sequential(Residual(3, 8), Residual(8, 12, 2), Residual(12, 12)), (3, 3, 13, 9)),
    "inverted": (lambda: images(Inverted(8, 16), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2)), (3, 3, 20, 24)),
    "next": (lambda: images(Next(8), LayerNorm2d(8), nn.Conv2d(8, 8, 2, 2)), (2, 3, 20, 17)),
    "prenorm": (lambda: nn.Sequential(Prenorm(), Prenorm()), (2, 7, 12)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Conv2d(8, 5, 1), nn.Identity()
        ),
        (3, 3, 11, 10),
    ),
}


def built(name: str, device: str) -> tuple[Any, Tensor]:
    torch.manual_seed(3)
    make, shape = MODELS[name]
    model = make().to(device)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, torch.randn(shape, device=device)


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, gradients of input and parameters, and buffers after a step in training."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    upstream = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
    gradients = torch.autograd.grad(y, (x, *model.parameters()), upstream)
    return [y, *gradients, *[buffer for buffer in model.buffers() if buffer.is_floating_point()]]


def assert_same(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """As close to float64 as PyTorch, but for a factor and the noise of sums that are zero."""
    largest = max(expected.abs().max().item() for expected in exact)
    for found, other, expected in zip(ours, theirs, exact, strict=True):
        own = expected.abs().max().item()
        # A bias before a batch norm has a gradient of zero, whose noise is that of the terms which cancel.
        scale = largest / 10 if own < 1e-12 * largest else max(own, 1e-2)
        allowed = 8 * (other.double() - expected).abs().max().item() + 2e-6 * scale
        assert (found.double() - expected).abs().max().item() <= allowed


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_computes_what_torch_does(name: str, fuse: bool, device: str) -> None:
    theirs, x = built(name, device)
    exact = copy.deepcopy(theirs).double()
    ours = tinynet.convert(theirs, fuse, verbose=False, inplace=False)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (True, True, False):
        for model in (theirs, ours, exact):
            model.train(training)
        with counted_launches() as launches:
            found = results(ours, x)
        assert launches
        assert_same(found, results(theirs, x), results(exact, x.double()))
    with torch.no_grad():
        assert_same([ours(x)], [theirs(x)], [exact(x.double())])


def kernels_of(model: nn.Module, x: Tensor) -> list[str]:
    model(x)  # which traces and compiles
    with counted_launches() as launches:
        model(x)
    return launches


def test_residual_blocks_with_a_shared_relu_are_joined(device: str) -> None:
    model, x = built("residual", device)
    tinynet.convert(model, verbose=False)
    with torch.no_grad():
        launches = kernels_of(model, x)
    of_pixels = current_target().kind == "cpu"  # one convolution leaves statistics to its norm there
    assert launches.count("normalize_kernel") == launches.count("merge_statistics_kernel") + of_pixels == 8
    assert launches.count("norm_statistics_kernel") <= of_pixels and "activation_forward_kernel" not in launches
    model.eval()
    with torch.no_grad():
        launches = kernels_of(model, x)
    # Those with a residual; convolutions normalize for the others.
    assert launches.count("normalize_kernel") == 3 and "activation_forward_kernel" not in launches
    joined = model.conversion.joined
    assert ("0.conv2", "0.bn2", "residual", "0.relu") in joined and ("0.conv1", "0.bn1", "0.relu") in joined
    assert ("1.downsample.0", "1.downsample.1") in joined


def test_sequences_are_joined_across_their_ends(device: str) -> None:
    model, x = built("inverted", device)
    tinynet.convert(model, verbose=False)
    launches = kernels_of(model, x)
    assert "activation_forward_kernel" not in launches[: launches.index("merge_statistics_kernel")]
    joined = model.conversion.joined
    assert ("1.project.0", "1.project.1", "residual") in joined
    assert ("1.squeeze", "relu()") in joined and ("1.excite", "1.gate") in joined


def test_sums_and_layer_norms_are_joined(device: str) -> None:
    model, x = built("prenorm", device)
    tinynet.convert(model, verbose=False)
    joined = model.conversion.joined
    assert ("residual", "0.norm2") in joined and ("1.up", "gelu_tanh()", "1.down") in joined
    assert "activation_forward_kernel" not in kernels_of(model, x)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_run(kind: str, device: str) -> None:
    model, x = built("residual", device)
    before, after = [], []
    block: Any = model[0]
    block.relu.inplace = False  # of which PyTorch's backward hooks allow nothing
    getattr(block.bn1, f"register_{kind}_hook")(lambda module, *_: before.append(module))
    expected = results(copy.deepcopy(model), x)
    tinynet.convert(model, verbose=False)
    handle = getattr(block.relu, f"register_{kind}_hook")(lambda module, *_: after.append(module))
    getattr(block, f"register_{kind}_hook")(lambda module, *_: after.append(module))
    found = results(model, x)
    assert before.count(block.bn1) == 1 and after.count(block.relu) == 2 and after.count(block) == 1
    handle.remove()
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert_close(a, b, 1e-4)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's, whose name it takes below."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


BatchNormAct2d.__module__ = "timm.layers.norm_act"


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Identity(), nn.LeakyReLU(0.3), nn.Softmax2d()], ids=str)
def test_norms_with_an_activation_of_their_own(act: nn.Module, device: str) -> None:
    torch.manual_seed(0)
    theirs: Any = nn.Sequential(nn.Conv2d(3, 5, 3), BatchNormAct2d(5, act)).to(device)
    x = torch.randn(2, 3, 6, 7, device=device)
    ours: Any = tinynet.convert(theirs, verbose=False, inplace=False)
    known = not isinstance(act, nn.Softmax2d)
    assert isinstance(ours[1], BatchNormAct2d) is not known and ("1" in ours.conversion.left) is not known
    if known:
        launches = kernels_of(copy.deepcopy(ours), x)
        assert "merge_statistics_kernel" in launches and "activation_forward_kernel" not in launches
    exact = copy.deepcopy(theirs).double()
    assert_same(results(ours, x), results(theirs, x), results(exact, x.double()))
    tinynet.revert(ours, verbose=False)
    assert type(ours[1]) is BatchNormAct2d and type(ours[1].act) is type(act)


def test_a_model_is_freed_without_the_garbage_collector(device: str) -> None:
    model, x = built("inverted", device)
    model = tinynet.convert(model, verbose=False)
    model(x)
    found = weakref.ref(model[1])
    gc.disable()
    try:
        del model
        assert found() is None
    finally:
        gc.enable()


def test_everything_else_stays_as_it_is(device: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.table.weight
            self.shared = nn.Linear(6, 6)
            self.layers = nn.ModuleList([self.shared, nn.Tanh(), self.shared])

        def forward(self, x: Tensor) -> Tensor:
            y = self.table(x)
            for layer in self.layers:
                y = layer(y)
            return self.head(y)

    model: Any = Tied().to(device)
    model.shared.eval()
    model.table.weight.requires_grad_(False)
    model.head.custom = "kept"
    parameters, x = list(model.parameters()), torch.randint(0, 11, (3, 5), device=device)
    expected = model(x)
    assert tinynet.convert(model, verbose=False) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.head.weight is model.table.weight and not model.head.weight.requires_grad
    assert model.layers[0] is model.layers[2] is model.shared and not model.shared.training and model.training
    assert model.head.custom == "kept" and type(model.head) is tinynet.nn.Linear
    assert_close(model(x), expected, 1e-6)


def test_channels_last_weights_are_the_same_parameters(device: str) -> None:
    model, x = built("inverted", device)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    tinynet.convert(model, verbose=False)
    weight: Any = model[0].weight
    assert weight is parameters[0] and weight.is_contiguous(memory_format=torch.channels_last)
    before = weight.detach().clone()
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)
    tinynet.revert(model, verbose=False)
    assert weight is model[0].weight and weight.is_contiguous()
    other = tinynet.convert(built("inverted", device)[0], channels_last=False, verbose=False)
    assert other[0].weight.is_contiguous()


@pytest.mark.parametrize("groups", [1, 4])
def test_outputs_are_channels_last(groups: int, device: str) -> None:
    """Also of convolutions whose weights lie in both orders: of one tap, or of one input channel."""
    layers = [nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 4, 1, groups=groups)]
    for layer in layers:
        x = torch.randn(2, layer.in_channels, 5, 6, device=device, requires_grad=True)
        expected, before = layer.to(device)(x), layer.weight.detach().clone()
        y = tinynet.convert(layer, verbose=False)(x)
        assert y.stride() == expected.contiguous(memory_format=torch.channels_last).stride()
        upstream = torch.randn_like(expected)
        gradients = torch.autograd.grad(y, (x, layer.weight), upstream)
        tinynet.revert(layer, verbose=False)
        assert layer.weight.stride() == before.stride() and torch.equal(layer.weight, before)
        theirs = torch.autograd.grad(expected, (x, layer.weight), upstream)
        assert_close(y, expected, 1e-5)
        for ours, other in zip(gradients, theirs, strict=True):
            assert_close(ours, other, 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_revert_gives_the_torch_model_back(name: str, device: str) -> None:
    model, x = built(name, device)
    model.eval()
    before, expected = [type(module) for module in model.modules()], model(x)
    attributes = [set(vars(module)) for module in model.modules()]
    tinynet.revert(tinynet.convert(model, verbose=False), verbose=False)
    assert [type(module) for module in model.modules()] == before
    assert [set(vars(module)) - {"conversion"} for module in model.modules()] == attributes
    assert torch.equal(model(x), expected)


def test_own_models_become_torch_nns_where_they_can() -> None:
    model = tinynet.nn.Sequential(tinynet.nn.Linear(3, 4), tinynet.nn.Linear(4, 2, activation="gelu"))
    copied = tinynet.revert(model, verbose=False, inplace=False)
    assert type(copied) is nn.Sequential and type(copied[0]) is nn.Linear and type(model[0]) is tinynet.nn.Linear
    assert type(copied[1]) is tinynet.nn.Linear
    assert vars(copied)["conversion"].left == {"1": "torch.nn has no counterpart of activation=gelu"}


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("name", ["residual", "inverted"])
def test_copies(name: str, copied: str, device: str) -> None:
    model, x = built(name, device)
    tinynet.convert(model, verbose=False)
    model.eval()
    expected = model(x)
    if copied == "torch.save":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    else:
        other = copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(other(x), expected)
    nn.init.zeros_(next(other.parameters()))
    assert torch.equal(model(x), expected) and not torch.equal(other(x), expected)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrized_layers(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 4)).to(device)
    nn.utils.parametrize.register_parametrization(model[2], "weight", Doubled())
    x = torch.randn(3, 6, device=device)
    expected = results(model, x)
    tinynet.convert(model, verbose=False)
    assert isinstance(model[0], tinynet.nn.Linear) and nn.utils.parametrize.is_parametrized(model[0])
    for found, wanted in zip(results(model, x), expected, strict=True):
        assert_close(found, wanted, 1e-5)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    tinynet.revert(model, verbose=False)
    assert not isinstance(model[0], tinynet.nn.Linear) and torch.equal(model(x), expected[0])
    nn.utils.parametrize.remove_parametrizations(tinynet.convert(model, verbose=False)[2], "weight")
    assert type(model[2]) is tinynet.nn.Linear
    assert_close(model(x), expected[0], 1e-5)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


class Named(nn.Linear):
    """A subclass that overrides nothing."""


def test_subclasses_are_left_unless_asked_for(device: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(Scaled(5, 4), Named(4, 3)).to(device)
    x = torch.randn(2, 5, device=device)
    expected = model(x)
    tinynet.convert(model, verbose=False)
    assert type(model[0]) is Scaled and type(model[1]) is Named
    assert "subclass of Linear" in str(model.conversion)
    tinynet.convert(model, verbose=False, subclasses=[Scaled])
    assert isinstance(model[0], Scaled) and isinstance(model[0], tinynet.nn.Linear) and type(model[1]) is Named
    tinynet.convert(model, verbose=False, subclasses=True)
    assert isinstance(model[1], Named) and isinstance(model[1], tinynet.nn.Linear)
    assert sum(name.startswith("linear_") for name in kernels_of(model, x)) == 2
    assert_close(model(x), expected, 1e-6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(model[0]) and torch.equal(other(x), model(x))
    tinynet.revert(model, verbose=False)
    assert type(model[0]) is Scaled and type(model[1]) is Named


def test_lazy_layers(device: str) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).to(
        device
    )
    tinynet.convert(model, verbose=False)
    assert model(torch.randn(2, 3, 6, 6, device=device)).shape == (2, 3)
    assert type(model[0]) is tinynet.nn.Conv2d and type(model[4]) is tinynet.nn.Linear
    tinynet.revert(model, verbose=False)
    assert type(model[0]) is nn.Conv2d and type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind: Any, device: str) -> None:
    torch.manual_seed(0)
    layer, x = kind(5, 6, 2, bidirectional=True, batch_first=True).to(device), torch.randn(3, 7, 5, device=device)
    expected = layer(x)[0]
    tinynet.convert(layer, verbose=False)
    assert type(layer) is TWINS[kind]
    assert_close(layer(x)[0], expected, 1e-5)
    assert torch.equal(tinynet.revert(layer, verbose=False)(x)[0], expected) and type(layer) is kind


def test_bags_and_losses(device: str) -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(9, 4, mode="sum").to(device)
    rows = torch.randint(0, 9, (3, 5), device=device)
    expected = bag(rows)
    assert_close(tinynet.convert(bag, verbose=False)(rows), expected, 1e-6)
    x, y = torch.randn(6, 5, device=device), torch.randint(0, 5, (6,), device=device)
    for loss in (nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.rand(5).to(device)), nn.MultiMarginLoss()):
        wanted = loss(x, y)
        assert_close(tinynet.convert(loss, verbose=False)(x, y), wanted, 1e-5)
        assert type(loss).__module__.startswith("tinynet.")
    distance = tinynet.convert(nn.TripletMarginWithDistanceLoss(), verbose=False)
    assert type(distance.distance_function) is tinynet.nn.PairwiseDistance


def test_what_stays_is_reported(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    quantization: Any = torch.ao.quantization

    class Odd(nn.Module):
        quantized: Any
        replaced: Any

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.quantized = torch.ao.nn.qat.Linear(4, 4, qconfig=quantization.default_qconfig)
            self.sparse = nn.Embedding(5, 4, sparse=True)
            self.replaced = nn.Linear(4, 4)
            self.replaced.forward = lambda x: x
            self.pad = nn.ZeroPad2d(1)
            self.complex = nn.Linear(2, 2, dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    model: Any = Odd().to(device)
    x = torch.randn(2, 3, 4, device=device)
    expected = model(x)
    tinynet.convert(model)
    left = model.conversion.left
    assert set(left) == {"attention", "quantized", "sparse", "replaced", "complex"}
    printed = capsys.readouterr().out
    assert "attention: tinynet.nn has no MultiheadAttention" in printed and "sparse: sparse gradients" in printed
    assert torch.equal(model(x), expected)
    with pytest.raises(TypeError, match=r"convert: model must be a torch.nn.Module, got int"):
        tinynet.convert(3)  # pyright: ignore[reportArgumentType]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.linear(x)) if x.sum() > 0 else x


class Random(Untraceable):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.linear(x)) if torch.rand(()) < 2 else x


class Storing(Untraceable):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.relu(self.linear(x))
        return self.seen


@pytest.mark.parametrize("kind", [Untraceable, Random, Storing])
def test_what_cannot_be_traced_is_called_layer_by_layer(kind: Any, device: str) -> None:
    model, x = kind().to(device), torch.rand(2, 4, device=device)
    expected = model(x)
    tinynet.convert(model, verbose=False)
    assert "called layer by layer: the model: " in str(model.conversion)
    assert set(vars(model)) <= {*vars(kind()), "seen", "conversion"} and type(model.linear) is tinynet.nn.Linear
    assert_close(model(x), expected, 1e-6)


COMPILED_LATER = """
import sys, torch, tinynet

class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) + torch.rand(())

tinynet.convert(Noisy(), verbose=False)
print("torch._dynamo" in sys.modules)
norm = torch.compile(tinynet.nn.LayerNorm(4), backend="eager", fullgraph=True)
print(tuple(norm(torch.randn(3, 4)).shape))
"""


def test_the_compiler_works_after_a_trace() -> None:
    """In a process of its own, since the compiler learns once what the functions of `math` are."""
    answer = subprocess.run([sys.executable, "-c", COMPILED_LATER], capture_output=True, text=True)
    assert answer.stdout.split("\n")[:2] == ["False", "(3, 4)"], answer.stderr


class Options(nn.Module):
    """A forward that depends on an attribute, the mode and the structure of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu, self.halved = nn.Linear(4, 4), nn.ReLU(), False

    def forward(self, x: Any, *, factor: float = 1.0) -> Tensor:
        x = x if isinstance(x, Tensor) else torch.cat(x)
        y = self.relu(self.linear(x)) * factor
        y = F.dropout(y, 1.0, self.training)
        return y / 2 if self.halved else y


def test_a_traced_forward_follows_attributes_mode_and_arguments(device: str) -> None:
    torch.manual_seed(0)
    theirs: Any = Options().to(device).eval()
    x = torch.randn(3, 4, device=device)
    ours = tinynet.convert(theirs, verbose=False, inplace=False)
    assert "activation_forward_kernel" not in kernels_of(ours, x)
    for change in (lambda model: None, lambda model: setattr(model, "halved", True), lambda model: model.train()):
        for model in (theirs, ours):
            change(model)
        assert_close(ours(x), theirs(x), 1e-6)
        assert_close(ours([x, x[:1]], factor=3.0), theirs([x, x[:1]], factor=3.0), 1e-6)
    for model in (theirs, ours):
        model.eval()
        model.relu = nn.GELU()
    assert_close(ours(x), theirs(x), 1e-6)


class Concatenated(nn.Module):
    """A layer of lists of features, as those of a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)

    def forward(self, features: Any, scale: Any = 1.0) -> Tensor:
        flat = [x for each in features for x in (each if isinstance(each, list) else [each])]
        return self.conv(F.relu(self.norm(torch.cat(flat, 1)))) * scale


def test_arguments_may_be_lists_of_tensors(device: str) -> None:
    """Each structure of the arguments is traced for itself: one traced for another list would read other tensors."""
    theirs = Concatenated().to(device).eval()
    ours: Any = tinynet.convert(theirs, verbose=False, inplace=False)
    a, b, c = (torch.randn(2, 4, 5, 5, device=device) for _ in range(3))
    ab = torch.cat((a, b), 1)
    scale = torch.tensor(3.0, device=device)
    calls: list[tuple[Any, ...]] = [
        ([a, b, c],),
        ((a, b, c),),
        ([ab, c],),
        ([c, ab],),
        ([[a, b], c],),
        ([a, b, c], scale),
    ]
    for arguments in (*calls, *calls, ([a, b, c], 2.0), ([a, b, c], 3.0)):
        with torch.no_grad():
            assert_close(ours(*arguments), theirs(*arguments), 1e-5)
    with torch.no_grad(), counted_launches() as launches:
        ours([a, b, c])
    assert launches[0] == "normalize_kernel" and "activation_forward_kernel" not in launches


def test_a_layer_that_writes_to_what_is_read_again_still_does(device: str) -> None:
    class Preactivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.relu(x) + 2 * x

    model: Any = Preactivated().to(device)
    x = torch.randn(5, 4, device=device)
    expected = model(x)
    tinynet.convert(model, verbose=False)
    assert_close(model(x), expected, 1e-6)
    assert model.conversion.left == {"relu": "it writes to an input that is read again"}


def test_a_traced_forward_follows_what_a_method_of_a_child_reads(device: str) -> None:
    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = 2.0

        def scaled(self, x: Tensor) -> Tensor:
            return self.factor * x

    class Parent(Untraceable):
        def __init__(self) -> None:
            super().__init__()
            self.child = Child()

        def forward(self, x: Tensor) -> Tensor:
            return self.child.scaled(self.relu(self.linear(x)))

    model, x = Parent().to(device), torch.rand(2, 4, device=device)
    tinynet.convert(model, verbose=False)
    assert "activation_forward_kernel" not in kernels_of(model, x)
    y = model(x)
    model.child.factor = 6.0
    assert_close(model(x), 3 * y, 1e-6)


@pytest.mark.parametrize("name", ["residual", "prenorm"])
def test_captured(name: str, device: str) -> None:
    model, x = built(name, device)
    tinynet.convert(model, verbose=False)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert_close(torch.export.export(model, (x,)).module()(x), expected, 1e-5)
        assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected, 1e-5)
        assert_close(torch.fx.symbolic_trace(model)(x), expected, 1e-5)
        traced: Any = torch.jit.trace(model, x)
        assert_close(traced(x), expected, 1e-5)


def test_autocast(device: str) -> None:
    theirs, x = built("residual", device)
    ours = tinynet.convert(theirs, verbose=False, inplace=False)
    with torch.autocast(device, dtype=torch.bfloat16):
        y, expected = ours(x), theirs(x)
    assert y.dtype is expected.dtype
    assert_close(y, expected, 0.05)


def test_every_layer_with_a_twin_is_known() -> None:
    for original, twin in TWINS.items():
        assert original.__name__ == twin.__name__ and original.__module__.startswith("torch.nn.")
    assert {nn.Conv2d, nn.LSTM, nn.LazyLinear, nn.CrossEntropyLoss, nn.Dropout} <= set(TWINS)


class Wrapper(nn.Module):
    """A convolution, its norm and its activation, as many model zoos wrap them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Wrappers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = Wrapper(4, 8), nn.Sequential(Wrapper(8, 6), Wrapper(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.first(x))


def test_modules_within_modules_run_as_one_recording(device: str) -> None:
    if device != "cpu" or INTERPRETED:
        pytest.skip("records on the CPU engine")
    torch.manual_seed(0)
    model: Any = Wrappers()
    theirs = copy.deepcopy(model).double()
    ours = tinynet.convert(model, verbose=False)

    def names_of_nodes() -> list[str]:
        """Trains a step in both and compares; returns the autograd functions of ours, from the last to the first."""
        x = torch.randn(2, 4, 5, 6).requires_grad_()
        exact = x.detach().double().requires_grad_()
        y, expected = ours(x), theirs(exact)
        names, node = [], y.grad_fn
        while node is not None and node.next_functions:
            names.append(node.name())
            node = node.next_functions[0][0]
        y.square().sum().backward()
        expected.square().sum().backward()
        assert_close(y, expected, 1e-5)
        assert x.grad is not None
        assert exact.grad is not None
        assert_close(x.grad, exact.grad, 1e-4)
        return names

    for _ in range(2):
        assert names_of_nodes() == ["ConvolutionNormFunctionBackward"] * 3
    for _ in range(3):
        names = names_of_nodes()
    assert names == ["_RecordedFunctionBackward"]
    seen: list[Any] = []
    for each, out in ((ours, seen), (theirs, [])):  # a hook of a module within is called
        each.branch[0].register_forward_hook(lambda module, args, y, out=out: out.append(y) or y * 2)
    for _ in range(4):
        names = names_of_nodes()
    assert len(seen) == 4
    assert len(names) > 1
    for each in (ours, theirs):  # so is a forward in the place of a wrapper's
        each.first.forward = lambda x, each=each: each.first.bn(each.first.conv(x)).tanh()
    for _ in range(4):
        names_of_nodes()
    for each in (ours, theirs):  # and another layer within one
        each.branch[1].conv = nn.Conv2d(6, 4, 1, bias=False).to(each.branch[1].conv.weight.dtype)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(4):
        names_of_nodes()

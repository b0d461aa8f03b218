"""The layers for the Hugging Face Hub: their layout, and models of torch.nn that compute with them."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/ runs from the checkout

from scripts.hub_layers import __main__ as command

# Loads the layers as the package `kernels` does, into models of torch.nn; in a process of its own, without tinynet.
PROGRAM = """
import copy, sys
from pathlib import Path
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

repository, device, loader = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
assert "tinynet" not in sys.modules


class Block(nn.Module):
    def __init__(self, channels, after, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.short = nn.Conv2d(channels, after, 1, stride)

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.short(x)).relu()


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, padding_mode="reflect"), nn.GELU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(nn.GroupNorm(2, 8), Block(8, 16, 2))
        self.head = nn.Sequential(nn.LayerNorm(16), nn.RMSNorm(16), nn.Linear(16, 5))
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x, labels):
        return self.loss(self.head(self.blocks(self.stem(x)).mean((2, 3))), labels)


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(16, 8)
        self.head, self.loss = nn.Linear(8, 3), nn.MSELoss()

    def forward(self, x, lengths, hx, target):
        y, (h, c) = self.lstm(x, hx)
        packed = pack_padded_sequence(y, lengths, batch_first=True, enforce_sorted=False)
        packed, h_gru = self.gru(packed)
        alone, _ = self.gru(y[0])
        return self.loss(self.head(packed.data), target) + h.square().mean() + c.mean() + h_gru.mean() + alone.mean()


def layers_by_kernels(model):
    from kernels import LocalLayerRepository, Mode, kernelize, replace_kernel_forward_from_hub, use_kernel_mapping
    from kernels.layer import KernelizeFallback

    names = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith("torch.nn")}
    names.discard("Sequential")
    for name in names:
        replace_kernel_forward_from_hub(getattr(nn, name), name)
    kind = {"cuda": "rocm" if torch.version.hip else "cuda"}.get(device, device)
    mapping = {name: {kind: LocalLayerRepository(repository, layer_name=name)} for name in names}
    with use_kernel_mapping(mapping):
        return kernelize(model, mode=Mode.TRAINING, device=kind, use_fallback=KernelizeFallback.NONE)


def layers_by_hand(model):
    import importlib.util, types

    variant = repository / "build" / f"torch-{device}"
    spec = importlib.util.spec_from_file_location("any_name_at_all", variant / "__init__.py")
    package = sys.modules["any_name_at_all"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    for module in model.modules():
        layer = getattr(package.layers, type(module).__name__, None)
        if layer is not None:
            module.forward = types.MethodType(layer.forward, module)
    return model


LAYERS = {"kernels": layers_by_kernels, "hand": layers_by_hand}[loader]


def check(model, *inputs):
    model, inputs = model.to(device), [x.to(device) if torch.is_tensor(x) and x.dim() > 1 else x for x in inputs]
    ours = LAYERS(copy.deepcopy(model))
    losses = []
    for each in (model, ours):
        loss = each(*inputs)
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for (name, theirs), mine in zip(model.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=lambda text: name + text)
    for (name, theirs), mine in zip(model.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text: name + text)
    return ours


torch.manual_seed(0)
ours = check(ResNet(), torch.randn(4, 3, 20, 20), torch.tensor([0, 1, 4, 2]).to(device))
assert "any_name_at_all" in type(ours).__module__ or ours.stem[0].forward.__func__ is not nn.Conv2d.forward
lengths, hx = torch.tensor([5, 3, 4]), (torch.randn(2, 3, 8).to(device), torch.randn(2, 3, 8).to(device))
check(Sequences(), torch.randn(3, 5, 6), lengths, hx, torch.randn(12, 3))
small = LAYERS(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.LayerNorm(5)).to(device))
compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
compiled(torch.randn(3, 6, device=device)).sum().backward()
assert "tinynet" not in sys.modules
print("launched", [name for name in sys.modules if name.endswith("tinynet_kernels.linear")])
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "repository"
    command.write(folder)
    return folder


def run(repository: Path, device: str, loader: str) -> None:
    """Runs the program with engine "kernels", so that nothing passes on plain PyTorch by accident."""
    environment = {**os.environ, "TINYNET_ENGINE": "kernels"}
    without_us = [path for path in environment.pop("PYTHONPATH", "").split(os.pathsep) if path and not _has_us(path)]
    environment["PYTHONPATH"] = os.pathsep.join(without_us)
    arguments = [sys.executable, "-c", PROGRAM, str(repository), device, loader]
    ran = subprocess.run(arguments, cwd=repository, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "tinynet_kernels.linear" in ran.stdout


def _is_installed(package: str) -> bool:
    """Whether pip has installed it; a folder of that name could be imported too."""
    return any(distribution.name == package for distribution in importlib.metadata.distributions())


def _has_us(path: str) -> bool:
    return any((Path(path) / name).exists() for name in ("tinynet", "tinynet_kernels"))


@pytest.mark.kernels
def test_models_of_torch_nn_compute_with_the_layers(repository: Path, device: str) -> None:
    run(repository, device, "hand")


@pytest.mark.kernels
@pytest.mark.skipif(not _is_installed("kernels"), reason="the package kernels is not installed")
def test_kernelize_replaces_the_forwards(repository: Path, device: str) -> None:
    run(repository, device, "kernels")


def test_the_layout_is_that_of_a_kernel_repository(repository: Path) -> None:
    identities = set()
    for backend in command.BACKENDS:
        variant = repository / "build" / f"torch-{backend}"
        metadata = json.loads((variant / "metadata.json").read_text())
        assert metadata["backend"] == {"type": backend} and metadata["name"] == command.NAME
        identities.add(metadata["id"])
        operators = (variant / "tinynet" / "ops" / "operator.py").read_text()
        assert f'\nNAMESPACE = "{metadata["id"]}"' in operators
        for path in variant.rglob("*.py"):
            for line in path.read_text().splitlines():
                assert not line.strip().startswith(("from tinynet", "import tinynet")), (path, line)
    assert len(identities) == len(command.BACKENDS)
    card = (repository / "README.md").read_text()
    assert "`Linear`" in card and "`LSTM`" in card and (repository / "LICENSE").exists()


def test_layers_are_stateless_and_have_the_signatures_of_torch_nn() -> None:
    """What `kernels` checks when it replaces a forward."""
    from scripts.hub_layers import layers

    plain = {name for name, _ in inspect.getmembers(torch.nn.Module)}
    for name in layers.__all__:
        layer, theirs = getattr(layers, name), getattr(torch.nn, name)
        assert layer.__init__ is torch.nn.Module.__init__
        assert {each for each, _ in inspect.getmembers(layer)} - plain == {"has_backward", "can_torch_compile"}
        ours, expected = (inspect.signature(each.forward).parameters.values() for each in (layer, theirs))
        assert [each.kind for each in ours] == [each.kind for each in expected]
        assert [each.name for each in ours] == [each.name for each in expected]


def test_losses_of_the_layers_are_those_of_torch_nn() -> None:
    from scripts.hub_layers import layers

    torch.manual_seed(0)
    x, y = torch.rand(6, 5), torch.rand(6, 5)
    labels = torch.randint(0, 5, (6,))
    for loss, operands in (
        (torch.nn.NLLLoss(torch.rand(5), ignore_index=2), (x.log_softmax(1), labels)),
        (torch.nn.CrossEntropyLoss(torch.rand(5), label_smoothing=0.2, reduction="sum"), (x, labels)),
        (torch.nn.MSELoss(reduction="sum"), (x, y)),
        (torch.nn.L1Loss(), (x, y)),
        (torch.nn.SmoothL1Loss(beta=0.3), (x, y)),
        (torch.nn.HuberLoss(delta=0.3), (x, y)),
        (torch.nn.BCELoss(torch.rand(5)), (x, y)),
        (torch.nn.BCEWithLogitsLoss(torch.rand(5), pos_weight=torch.rand(5)), (x, y)),
        (torch.nn.KLDivLoss(reduction="batchmean", log_target=True), (x.log(), y.log())),
    ):
        layer = getattr(layers, type(loss).__name__)
        torch.testing.assert_close(layer.forward(loss, *operands), loss(*operands))

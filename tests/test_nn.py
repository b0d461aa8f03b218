"""tinynet.nn against torch.nn: signatures, initialization, state_dict both ways, copies; and absent layers."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch

import tinynet
from tinynet import nn

# How to build each compute layer, and an input for it.
LAYERS: dict[str, tuple[dict, tuple[int, ...]]] = {
    "Linear": ({"in_features": 5, "out_features": 3}, (4, 5)),
    "Conv2d": ({"in_channels": 3, "out_channels": 4, "kernel_size": 3, "padding": 1}, (2, 3, 5, 6)),
    "MaxPool2d": ({"kernel_size": 2}, (2, 3, 5, 6)),
    "AvgPool2d": ({"kernel_size": 2}, (2, 3, 5, 6)),
    "AdaptiveAvgPool2d": ({"output_size": 2}, (2, 3, 5, 6)),
    "RNN": ({"input_size": 5, "hidden_size": 6}, (3, 4, 5)),
    "LSTM": ({"input_size": 5, "hidden_size": 6, "proj_size": 2}, (3, 4, 5)),
    "GRU": ({"input_size": 5, "hidden_size": 6, "bidirectional": True}, (3, 4, 5)),
    "RNNCell": ({"input_size": 5, "hidden_size": 6}, (4, 5)),
    "LSTMCell": ({"input_size": 5, "hidden_size": 6}, (4, 5)),
    "GRUCell": ({"input_size": 5, "hidden_size": 6}, (4, 5)),
    "CrossEntropyLoss": ({"label_smoothing": 0.1}, (4, 5)),
    "MSELoss": ({}, (4, 5)),
    "NLLLoss": ({"ignore_index": 2}, (4, 5)),
    "NLLLoss2d": ({}, (4, 5)),
    "MultiMarginLoss": ({"p": 2}, (4, 5)),
    "MultiLabelMarginLoss": ({}, (4, 5)),
    "CosineSimilarity": ({}, (4, 5)),
    "PairwiseDistance": ({"p": 1.0}, (4, 5)),
    "CosineEmbeddingLoss": ({"margin": 0.1}, (4, 5)),
    "TripletMarginLoss": ({"swap": True}, (4, 5)),
    "TripletMarginWithDistanceLoss": ({"swap": True}, (4, 5)),
    "CTCLoss": ({"zero_infinity": True}, (8, 4, 5)),
    "LinearCrossEntropyLoss": ({"in_features": 5, "num_classes": 3, "bias": True}, (4, 5)),
    "Dropout": ({"p": 0.0}, (4, 5)),
    "Embedding": ({"num_embeddings": 7, "embedding_dim": 3}, (4, 5)),
    "GLU": ({}, (4, 6)),
    "PReLU": ({"num_parameters": 5}, (4, 5)),
    **dict.fromkeys(
        (
            *("ReLU", "LeakyReLU", "ReLU6", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "LogSigmoid"),
            *("Tanh", "Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "Hardshrink", "Softshrink"),
            "Tanhshrink",
        ),
        ({}, (4, 5)),
    ),
}
if not hasattr(torch.nn, "LinearCrossEntropyLoss"):  # PyTorch before 2.13
    del LAYERS["LinearCrossEntropyLoss"]
# What a layer takes beside its input.
MORE_ARGUMENTS: dict[str, Callable[[], list]] = {
    **dict.fromkeys(("CrossEntropyLoss", "MSELoss"), lambda: [torch.randn(4, 5).softmax(1)]),
    **dict.fromkeys(("NLLLoss", "NLLLoss2d", "MultiMarginLoss"), lambda: [torch.tensor([0, 1, 4, 3])]),
    "MultiLabelMarginLoss": lambda: [torch.tensor([[0, 3, -1, 1, 1]] * 4)],
    **dict.fromkeys(("CosineSimilarity", "PairwiseDistance"), lambda: [torch.randn(4, 5)]),
    "CosineEmbeddingLoss": lambda: [torch.randn(4, 5), torch.tensor([1, -1, 1, -1])],
    **dict.fromkeys(
        ("TripletMarginLoss", "TripletMarginWithDistanceLoss"), lambda: [torch.randn(4, 5), torch.randn(4, 5)]
    ),
    "CTCLoss": lambda: [torch.randint(1, 5, (4, 3)), (8, 8, 8, 8), (3, 2, 1, 0)],
    "LinearCrossEntropyLoss": lambda: [torch.tensor([0, 1, 2, 0])],
}
RE_EXPORTED = ("Flatten", "Identity", "Module", "ModuleDict", "ModuleList", "Parameter", "Unflatten")


def compute_layers() -> list[str]:
    return [
        name
        for name in nn.__all__
        if inspect.isclass(getattr(nn, name))
        and getattr(nn, name).__module__.startswith("tinynet")
        and name != "Sequential"
    ]


def build(name: str, **more: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and PyTorch's, each from the same seed."""
    arguments = {**LAYERS[name][0], **more}
    torch.manual_seed(3)
    ours = getattr(nn, name)(**arguments)
    torch.manual_seed(3)
    return ours, getattr(torch.nn, name)(**arguments)


def test_every_compute_layer_is_listed_here() -> None:
    assert sorted(compute_layers()) == sorted(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_signature_is_torch_nns_plus_our_keywords(name: str) -> None:
    def parameters(cls: type) -> list[tuple]:
        signature = inspect.signature(cls.__init__)
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [(p.name, p.default) for p in signature.parameters.values() if p.kind not in kinds]

    ours = [p for p in parameters(getattr(nn, name)) if p[0] not in ("activation", "pool", "recompute")]
    assert ours == parameters(getattr(torch.nn, name))


@pytest.mark.parametrize("name", LAYERS)
def test_initialization_and_state_dict_both_ways(name: str) -> None:
    ours, theirs = build(name)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    for key in state:
        assert torch.equal(state[key], expected[key]), key
    ours.load_state_dict(expected, strict=True)
    theirs.load_state_dict(state, strict=True)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles(name: str) -> None:
    ours, theirs = build(name)
    shape = LAYERS[name][1]
    arguments = [torch.randint(0, 5, shape) if name == "Embedding" else torch.randn(shape)]
    arguments += MORE_ARGUMENTS.get(name, lambda: [])()
    expected = theirs(*arguments)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(*arguments), expected)


def test_parameters_on_meta_and_in_bfloat16() -> None:
    layer = nn.Linear(3, 4, device="meta", dtype=torch.bfloat16, activation="relu")
    assert layer.weight.is_meta and layer.weight.dtype is torch.bfloat16
    assert layer(torch.empty(2, 3, device="meta", dtype=torch.bfloat16)).shape == (2, 4)


def test_activation_is_shown_and_checked() -> None:
    layer = nn.Linear(3, 4, activation=tinynet.Activation("leaky_relu", negative_slope=0.2))
    assert "activation=Activation('leaky_relu', negative_slope=0.2)" in repr(layer)
    assert "activation=relu" in repr(nn.Linear(3, 4, activation="relu"))
    with pytest.raises(ValueError, match="activation: got 'rule'"):
        nn.Linear(3, 4, activation="rule")


@pytest.mark.parametrize("name", RE_EXPORTED)
def test_containers_are_pytorchs(name: str) -> None:
    assert getattr(nn, name) is getattr(torch.nn, name)


def test_absent_layers_say_so() -> None:
    with pytest.raises(AttributeError, match=r"tinynet\.nn has no Transformer yet"):
        _ = nn.Transformer
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = nn.Nonsense


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [*LAYERS, "Sequential"])
def test_scripting_is_refused_in_a_sentence(name: str) -> None:
    layer = nn.Sequential(nn.ReLU()) if name == "Sequential" else build(name)[0]
    for module in (layer, torch.nn.Sequential(torch.nn.Identity(), layer)):
        with pytest.raises(RuntimeError, match=rf"^{name}: torch\.jit\.script cannot compile .* torch\.export"):
            torch.jit.script(module)


def test_importing_tinynet_touches_no_triton() -> None:
    import subprocess
    import sys

    code = "import sys, tinynet, tinynet.nn; assert 'triton' not in sys.modules, 'triton was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)

"""tinynet.nn against torch.nn: signatures, initialization, state_dict both ways, copies; and absent layers."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tinynet
from tinynet import functional, nn

# How to build each compute layer, and an input for it.
LAYERS: dict[str, tuple[dict, tuple[int, ...]]] = {
    "Linear": ({"in_features": 5, "out_features": 3}, (4, 5)),
    "Bilinear": ({"in1_features": 5, "in2_features": 5, "out_features": 3}, (4, 5)),
    "Upsample": ({"scale_factor": 2, "mode": "bilinear"}, (2, 3, 5, 6)),
    "UpsamplingBilinear2d": ({"size": 7}, (2, 3, 5, 6)),
    "Conv2d": ({"in_channels": 3, "out_channels": 4, "kernel_size": 3, "padding": 1}, (2, 3, 5, 6)),
    "Conv1d": ({"in_channels": 3, "out_channels": 4, "kernel_size": 3}, (2, 3, 6)),
    "Conv3d": ({"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 2}, (2, 3, 4, 5, 6)),
    "ConvTranspose1d": ({"in_channels": 3, "out_channels": 4, "kernel_size": 3}, (2, 3, 6)),
    "ConvTranspose2d": ({"in_channels": 3, "out_channels": 4, "kernel_size": 2, "stride": 2}, (2, 3, 5, 6)),
    "ConvTranspose3d": ({"in_channels": 3, "out_channels": 4, "kernel_size": 3}, (2, 3, 2, 3, 4)),
    "BatchNorm1d": ({"num_features": 5}, (4, 5)),
    "BatchNorm2d": ({"num_features": 3, "momentum": None}, (2, 3, 5, 6)),
    "BatchNorm3d": ({"num_features": 3, "affine": False}, (2, 3, 4, 5, 6)),
    "LazyBatchNorm1d": ({}, (4, 5)),
    "LazyBatchNorm2d": ({}, (2, 3, 5, 6)),
    "LazyBatchNorm3d": ({}, (2, 3, 4, 5, 6)),
    "InstanceNorm1d": ({"num_features": 3}, (2, 3, 5)),
    "InstanceNorm2d": ({"num_features": 3, "affine": True}, (2, 3, 5, 6)),
    "InstanceNorm3d": ({"num_features": 3, "track_running_stats": True}, (2, 3, 4, 5, 6)),
    "LazyInstanceNorm1d": ({}, (2, 3, 5)),
    "LazyInstanceNorm2d": ({}, (2, 3, 5, 6)),
    "LazyInstanceNorm3d": ({}, (2, 3, 4, 5, 6)),
    **{f"MaxPool{axes}d": ({"kernel_size": 2}, (2, 3, 6, 5, 4)[: 2 + axes]) for axes in (1, 2, 3)},
    **{f"AvgPool{axes}d": ({"kernel_size": 2}, (2, 3, 6, 5, 4)[: 2 + axes]) for axes in (1, 2, 3)},
    **{f"LPPool{axes}d": ({"norm_type": 2, "kernel_size": 2}, (2, 3, 6, 5, 4)[: 2 + axes]) for axes in (1, 2, 3)},
    **{f"AdaptiveAvgPool{axes}d": ({"output_size": 2}, (2, 3, 6, 5, 4)[: 2 + axes]) for axes in (1, 2, 3)},
    **{f"AdaptiveMaxPool{axes}d": ({"output_size": 2}, (2, 3, 6, 5, 4)[: 2 + axes]) for axes in (1, 2, 3)},
    **{f"MaxUnpool{axes}d": ({"kernel_size": 2}, (2, 3, 6, 5, 4)[: 2 + axes]) for axes in (1, 2, 3)},
    **{
        f"FractionalMaxPool{axes}d": (
            {"kernel_size": 2, "output_size": 2, "_random_samples": torch.rand(2, 3, axes)},
            (2, 3, 6, 5, 4)[: 2 + axes],
        )
        for axes in (2, 3)
    },
    "RNN": ({"input_size": 5, "hidden_size": 6}, (3, 4, 5)),
    "LSTM": ({"input_size": 5, "hidden_size": 6, "proj_size": 2}, (3, 4, 5)),
    "GRU": ({"input_size": 5, "hidden_size": 6, "bidirectional": True}, (3, 4, 5)),
    "RNNCell": ({"input_size": 5, "hidden_size": 6}, (4, 5)),
    "LSTMCell": ({"input_size": 5, "hidden_size": 6}, (4, 5)),
    "GRUCell": ({"input_size": 5, "hidden_size": 6}, (4, 5)),
    "CrossEntropyLoss": ({"label_smoothing": 0.1}, (4, 5)),
    "MSELoss": ({}, (4, 5)),
    **dict.fromkeys(("Dropout", "AlphaDropout"), ({"p": 0.0}, (4, 5))),
    "Dropout1d": ({"p": 1.0}, (4, 5, 6)),
    **dict.fromkeys(("Dropout2d", "FeatureAlphaDropout"), ({"p": 1.0}, (2, 3, 5, 6))),
    "Dropout3d": ({"p": 1.0}, (2, 3, 2, 4, 5)),
    "BCELoss": ({"weight": torch.ones(5)}, (4, 5)),
    "BCEWithLogitsLoss": ({"pos_weight": torch.ones(5)}, (4, 5)),
    "GaussianNLLLoss": ({"full": True}, (4, 5)),
    "HingeEmbeddingLoss": ({"margin": 0.5}, (4, 5)),
    "HuberLoss": ({"delta": 0.5}, (4, 5)),
    "KLDivLoss": ({"log_target": True, "reduction": "batchmean"}, (4, 5)),
    "L1Loss": ({}, (4, 5)),
    "MarginRankingLoss": ({"margin": 0.5}, (4, 5)),
    "MultiLabelSoftMarginLoss": ({"weight": torch.ones(5)}, (4, 5)),
    "PoissonNLLLoss": ({"full": True}, (4, 5)),
    "SmoothL1Loss": ({"beta": 0.5}, (4, 5)),
    "SoftMarginLoss": ({}, (4, 5)),
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
    "Embedding": ({"num_embeddings": 7, "embedding_dim": 3}, (4, 5)),
    "EmbeddingBag": ({"num_embeddings": 7, "embedding_dim": 3}, (4, 5)),
    "GLU": ({}, (4, 6)),
    "GroupNorm": ({"num_groups": 2, "num_channels": 6}, (4, 6, 3)),
    "LayerNorm": ({"normalized_shape": 6}, (4, 6)),
    "LocalResponseNorm": ({"size": 3}, (2, 5, 3)),
    "LogSoftmax": ({"dim": 1}, (4, 6)),
    "PReLU": ({"num_parameters": 5}, (4, 5)),
    "RReLU": ({"lower": 0.3, "upper": 0.3}, (4, 5)),
    "Threshold": ({"threshold": 0.1, "value": 20.0}, (4, 5)),
    "RMSNorm": ({"normalized_shape": 6}, (4, 6)),
    "Softmax": ({"dim": 1}, (4, 6)),
    "Softmax2d": ({}, (2, 3, 4, 5)),
    "Softmin": ({"dim": 1}, (4, 6)),
    **dict.fromkeys(
        (
            *("ReLU", "LeakyReLU", "ReLU6", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "LogSigmoid"),
            *("Tanh", "Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "Hardshrink", "Softshrink"),
            "Tanhshrink",
        ),
        ({}, (4, 5)),
    ),
}
# Lazy layers: their arguments, and an input.
LAZY: dict[str, tuple[dict, tuple[int, ...]]] = {
    "LazyConv1d": ({"out_channels": 4, "kernel_size": 3}, (2, 3, 6)),
    "LazyConv2d": ({"out_channels": 4, "kernel_size": 3}, (2, 3, 5, 6)),
    "LazyConv3d": ({"out_channels": 4, "kernel_size": 3}, (2, 3, 4, 5, 6)),
    "LazyConvTranspose1d": ({"out_channels": 4, "kernel_size": 3}, (2, 3, 6)),
    "LazyConvTranspose2d": ({"out_channels": 4, "kernel_size": 3}, (2, 3, 5, 6)),
    "LazyConvTranspose3d": ({"out_channels": 4, "kernel_size": 3}, (2, 3, 2, 3, 4)),
    "LazyLinear": ({"out_features": 3}, (4, 5)),
}
RE_EXPORTED = [
    *("Buffer", "Flatten", "Identity", "Module", "ModuleDict", "ModuleList", "Parameter", "ParameterDict"),
    *("ParameterList", "RNNBase", "RNNCellBase", "Unflatten"),
    *("ChannelShuffle", "Fold", "PixelShuffle", "PixelUnshuffle", "Unfold", "UpsamplingNearest2d"),
    *(
        f"{kind}Pad{axes}d"
        for kind in ("Circular", "Constant", "Reflection", "Replication", "Zero")
        for axes in (1, 2, 3)
    ),
]
if not hasattr(torch.nn, "LinearCrossEntropyLoss"):  # PyTorch before 2.13
    del LAYERS["LinearCrossEntropyLoss"]
else:
    RE_EXPORTED.append("LinearCrossEntropyOptions")
# What a layer takes beside its input.
MORE_ARGUMENTS: dict[str, Callable[[], list]] = {
    **dict.fromkeys(
        [name for name in LAYERS if name.endswith("Loss")],
        lambda: [torch.randn(4, 5).softmax(1)],
    ),
    **dict.fromkeys(("GaussianNLLLoss", "MarginRankingLoss"), lambda: [torch.rand(4, 5), torch.rand(4, 5)]),
    "Bilinear": lambda: [torch.randn(4, 5)],
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


def compute_layers() -> list[str]:
    return [
        name
        for name in nn.__all__
        if inspect.isclass(getattr(nn, name))
        and getattr(nn, name).__module__.startswith("tinynet")
        and name not in ("Sequential", *LAZY)
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
    def parameters(cls: type, without: tuple[str, ...] = ()) -> list[tuple]:
        signature = inspect.signature(cls.__init__)
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        found = [(p.name, p.default) for p in signature.parameters.values() if p.kind not in kinds]
        return [p for p in found if p[0] not in without]

    theirs, own = getattr(torch.nn, name), ("activation", "pool", "recompute")
    other: tuple[str, ...] = ()
    if issubclass(theirs, torch.nn.RNNBase):  # whose subclasses hand on whatever they get
        theirs, own, other = torch.nn.RNNBase, (*own, "nonlinearity", "proj_size"), ("mode", "proj_size")
    assert parameters(getattr(nn, name), own) == parameters(theirs, other)


@pytest.mark.parametrize("name", LAYERS)
def test_initialization_and_state_dict_both_ways(name: str) -> None:
    ours, theirs = build(name)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    for key in state:
        if not torch.nn.parameter.is_lazy(expected[key]):
            assert torch.equal(state[key], expected[key]), key
    ours.load_state_dict(expected, strict=True)
    theirs.load_state_dict(state, strict=True)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles(name: str) -> None:
    ours, theirs = build(name)
    shape = LAYERS[name][1]
    arguments = [torch.randint(0, 5, shape) if name.startswith("Embedding") else torch.randn(shape)]
    if name in ("BCELoss", "GaussianNLLLoss"):
        arguments = [torch.rand(shape)]
    if name.startswith("MaxUnpool"):
        arguments.append(torch.arange(arguments[0][0, 0].numel()).view(shape[2:]).expand(shape))
    arguments += MORE_ARGUMENTS.get(name, lambda: [])()
    expected = theirs(*arguments)
    if name.startswith("Lazy"):
        ours(*arguments)  # a parameter without a shape cannot be copied
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(*arguments), expected)


@pytest.mark.parametrize("name", LAZY)
def test_lazy_layers_become_ours(name: str) -> None:
    arguments, shape = LAZY[name]
    x, full = torch.randn(shape), getattr(nn, name.removeprefix("Lazy"))
    torch.manual_seed(3)
    ours = getattr(nn, name)(**arguments, activation="relu")
    assert isinstance(ours, full) and "activation=relu" in repr(ours)
    y = ours(x)  # through our layer in the first call too
    assert type(ours) is full
    torch.manual_seed(3)
    theirs = getattr(torch.nn, name)(**arguments)
    torch.testing.assert_close(y, theirs(x).relu())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), y)


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
def test_what_only_holds_or_moves_numbers_is_pytorchs(name: str) -> None:
    assert getattr(nn, name) is getattr(torch.nn, name)


def test_every_module_is_a_layer_or_pytorchs() -> None:
    modules = [name for name in nn.__all__ if inspect.isclass(getattr(nn, name))]
    assert sorted(modules) == sorted([*LAYERS, *LAZY, *RE_EXPORTED, "Sequential"])


def test_functions_take_pytorchs_arguments() -> None:
    """Those of its functions that Python can tell; a function of ours may take more arguments after them."""

    def parameters(function: Any) -> list[tuple[str, Any]]:
        return [(each.name, each.default) for each in inspect.signature(function).parameters.values()]

    compared = 0
    for name in functional.__all__:
        theirs = getattr(torch.nn.functional, name, None)
        if inspect.isfunction(theirs) and "kwargs" not in inspect.signature(theirs).parameters:
            expected = parameters(theirs)
            assert parameters(getattr(functional, name))[: len(expected)] == expected, name
            compared += 1
    assert compared > 20


def test_readme_lists_every_absent_layer() -> None:
    """Compared for the classes of the installed PyTorch: others have more or fewer."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    paragraph = next(text for text in readme.split("\n\n") if text.startswith("Not implemented yet"))
    listed = re.findall(r"`(\w+)`", paragraph)
    assert listed == sorted(set(listed))
    theirs = set(torch.nn.modules.__all__)
    assert theirs & set(listed) == theirs - set(nn.__all__)


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

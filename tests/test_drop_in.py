"""What programs written for torch.nn find under tinynet's names, and the sentences for what is absent."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import counted_launches
from torch.nn.utils.rnn import pack_sequence

import tinynet
from tinynet import functional, nn, optim

ABSENT = (  # functions that compute, for which there is no kernel yet
    *("affine_grid", "grid_sample", "grouped_mm", "multi_head_attention_forward", "normalize", "pdist"),
    *("scaled_dot_product_attention", "scaled_grouped_mm", "scaled_mm"),
)


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("nn.functional", functional),
        ("nn.init", torch.nn.init),
        ("nn.parameter", torch.nn.parameter),
        ("nn.utils.rnn", torch.nn.utils.rnn),
        ("nn.utils.parametrize", torch.nn.utils.parametrize),
        ("nn.utils.parametrizations", torch.nn.utils.parametrizations),
        ("optim.lr_scheduler", torch.optim.lr_scheduler),
        ("optim.swa_utils", torch.optim.swa_utils),
    ],
)
def test_modules_import_as_in_pytorch(name: str, same_as: Any) -> None:
    assert importlib.import_module(f"tinynet.{name}") is same_as
    found: Any = tinynet
    for part in name.split("."):
        found = getattr(found, part)
    assert found is same_as


def test_utilities_and_classes() -> None:
    utils, modules = (importlib.import_module(f"tinynet.nn.{name}") for name in ("utils", "modules"))
    ours = {"clip_grad_norm_", "clip_grad_value_"}
    assert all(
        (getattr(utils, name) is getattr(torch.nn.utils, name)) != (name in ours)
        for name in torch.nn.utils.__all__  # pyright: ignore[reportAttributeAccessIssue]
    )
    assert modules.Linear is nn.Linear and nn.modules is modules  # pyright: ignore
    assert isinstance(nn.BatchNorm2d(3), modules.batchnorm._BatchNorm)


def test_every_function_of_pytorch_is_there_or_says_why_not() -> None:
    helpers = {"torch._jit_internal", "torch.overrides", "torch._C", "typing", "collections.abc", "pybind11_builtins"}
    for name in dir(F):
        theirs: Any = getattr(F, name)
        if name.startswith("_") or not callable(theirs) or isinstance(theirs, type):
            continue
        if getattr(theirs, "__module__", None) in helpers or name == "assert_int_or_pair":
            continue  # what its own code is made of
        assert (name in functional.__all__) != (name in ABSENT), name


@pytest.mark.parametrize("name", ABSENT)
def test_absent_functions(name: str) -> None:
    if not hasattr(F, name):
        pytest.skip(f"this PyTorch has no {name}")
    for line in (
        f"functional.{name}",
        f"from tinynet.functional import {name}",
        f"from tinynet.nn.functional import {name}",
    ):
        with pytest.raises((AttributeError, ImportError), match=f"tinynet.functional has no {name} yet; torch.nn"):
            exec(line)


def test_absent_classes_and_optimizers() -> None:
    for line, error, sentence in (
        ("nn.Transformer", AttributeError, "tinynet.nn has no Transformer yet; torch.nn.Transformer works beside it"),
        ("from tinynet.nn import Transformer", ImportError, "tinynet.nn has no Transformer yet"),
        ("from tinynet.nn.modules import Transformer", ImportError, "tinynet.nn.modules has no Transformer yet"),
        ("optim.Rprop", AttributeError, "tinynet.optim has no Rprop yet"),
        ("from tinynet.optim import Rprop", ImportError, "tinynet.optim has no Rprop yet"),
        ("nn.Lineaar", AttributeError, "module 'tinynet.nn' has no attribute 'Lineaar'"),
        ("from tinynet.nn import Lineaar", ImportError, "cannot import name 'Lineaar'"),
        ("tinynet.engin", AttributeError, "no attribute 'engin'"),
    ):
        with pytest.raises(error, match=sentence):
            exec(line)
    assert not hasattr(nn, "Transformer") and not hasattr(optim, "Rprop")


@pytest.mark.kernels
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("relu_", ()), ("leaky_relu_", (0.3,)), ("elu_", (0.5,)), ("selu_", ()), ("celu_", (2.0,))),
        *(("hardtanh_", (-0.5, 0.7)), ("threshold_", (0.1, 2.0)), ("rrelu_", (0.2, 0.2, True))),
    ],
)
def test_activations_in_place(name: str, arguments: tuple[Any, ...], differentiable: bool, device: str) -> None:
    leaf = torch.randn(4, 9, device=device, requires_grad=differentiable)
    results = []
    for module in (functional, F):
        x = leaf.clone()
        y = getattr(module, name)(x, *arguments)
        assert y.data_ptr() == x.data_ptr()
        torch.testing.assert_close(x, y)
        results.append([y, *(torch.autograd.grad(y.square().sum(), leaf) if differentiable else ())])
    torch.testing.assert_close(*results)
    if differentiable:
        with pytest.raises(RuntimeError, match="leaf Variable"):
            getattr(functional, name)(leaf, *arguments)


@pytest.mark.kernels
def test_pools_with_indices(device: str) -> None:
    x = torch.randn(2, 3, 9, 8, device=device)
    for name, arguments in (("max_pool2d_with_indices", (2,)), ("adaptive_max_pool2d_with_indices", (3,))):
        torch.testing.assert_close(getattr(functional, name)(x, *arguments), getattr(F, name)(x, *arguments))
    options: Any = {"kernel_size": 2, "output_size": 3, "_random_samples": torch.rand(2, 3, 2, device=device)}
    expected = F.fractional_max_pool2d_with_indices(x, **options)
    torch.testing.assert_close(functional.fractional_max_pool2d_with_indices(x, **options), expected)


@pytest.mark.kernels
def test_other_functions(device: str) -> None:
    x, weight, bias = (
        torch.randn(7, 2, 5, device=device),
        torch.randn(3, 5, 4, device=device),
        torch.randn(4, device=device),
    )
    with counted_launches() as launches:
        torch.testing.assert_close(functional.conv_tbc(x, weight, bias, 1), torch.conv_tbc(x, weight, bias, 1))
    assert launches
    for hard in (False, True):
        results = []
        for function in (functional.gumbel_softmax, F.gumbel_softmax):
            torch.manual_seed(0)
            results.append(function(x, tau=0.7, hard=hard, dim=1))
        torch.testing.assert_close(*results)
    images = torch.randn(1, 2, 4, 5, device=device)
    with pytest.warns(UserWarning, match="deprecated"):
        torch.testing.assert_close(
            functional.upsample_bilinear(images, scale_factor=2),
            F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=True),
        )


@pytest.mark.kernels
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
def test_recurrent_functions(name: str, batch_first: bool, device: str) -> None:
    torch.manual_seed(0)
    options: Any = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    if name == "lstm":
        options["proj_size"] = 3
    kind = {"rnn_tanh": torch.nn.RNN, "rnn_relu": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
    layer = kind(4, 6, **options, **({"nonlinearity": "relu"} if name == "rnn_relu" else {})).to(device)
    x = torch.randn(5, 3, 4, device=device)
    batch = x.shape[0 if batch_first else 1]
    h = torch.randn(4, batch, 3 if name == "lstm" else 6, device=device)
    state: Any = (h, torch.randn(4, batch, 6, device=device)) if name == "lstm" else h
    weights = list(layer.parameters())
    with counted_launches() as launches:
        actual = getattr(functional, name)(x, state, weights, True, 2, 0.0, False, True, batch_first)
    assert launches
    torch.testing.assert_close(actual, getattr(torch, name)(x, state, weights, True, 2, 0.0, False, True, batch_first))
    if not batch_first:
        packed = pack_sequence([x[:4, 0], x[:3, 1], x[:1, 2]])
        given = packed.data, packed.batch_sizes, state, weights, True, 2, 0.0, False, True
        torch.testing.assert_close(getattr(functional, name)(*given), getattr(torch, name)(*given))
    with pytest.raises(TypeError, match="expected 9 arguments, got 3"):
        getattr(functional, name)(x, state, weights)
    with pytest.raises(ValueError, match="params cannot be divided"):
        getattr(functional, name)(x, state, weights[1:], True, 2, 0.0, False, True, batch_first)


def test_describe(device: str) -> None:
    assert tinynet.describe().startswith("engine: ") and tinynet.describe(device) == tinynet.describe()
    with tinynet.engine("reference"):
        assert "as requested" in tinynet.describe()


PROGRAM = """
import tinynet
import tinynet.nn as nn
import tinynet.nn.functional as F
from tinynet import optim
from tinynet.nn.utils.rnn import pack_sequence
from tinynet.optim.lr_scheduler import StepLR

model = nn.Sequential(nn.Linear(3, 4, activation="gelu"), nn.Lineaar(4, 2))  # wrong
tinynet.engin("reference")  # wrong
tinynet.engine("reference")
rnn = nn.LSTM(3, 4, batchfirst=True)  # wrong
rnn = nn.GRU(3, 4, batch_first=True)
optimizer = optim.SGD(model.parameters(), lr=0.1)
StepLR(optimizer, 10)
optim.SDG(model.parameters(), lr=0.1)  # wrong
F.relu(F.linnear(model, model))  # wrong
nn.init.kaiming_normal_(nn.Linear(3, 4).weight)
nn.Linear(3, 4, activation=nn.ReLU())
"""


def test_type_checkers_see_what_is_wrong(tmp_path: Path) -> None:
    """pyright finds an error in each marked line of a user's program, and in no other."""
    pytest.importorskip("pyright")
    path, root = tmp_path / "program.py", Path(__file__).parents[1]
    path.write_text(PROGRAM)
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(f'{{"extraPaths": ["{root}", "{root / "kernels"}"], "include": ["program.py"]}}')
    command = [sys.executable, "-m", "pyright", "--project", str(settings), "--pythonpath", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    found = {int(line.split(":")[1]) for line in run.stdout.splitlines() if " - error: " in line}
    marked = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}
    assert found == marked, run.stdout

"""Exported files: they load where tinynet cannot be imported, and compute the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_close
from torch import Tensor

import tinynet
from tinynet import nn

pytestmark = pytest.mark.kernels

# Run without tinynet: its folders are not on the path, and an import of it is an error.
PROGRAM = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("tinynet"):
            raise AssertionError(name)
sys.meta_path.insert(0, Absent())
import torch
file, batch, result = sys.argv[1:]
x = torch.load(batch)
if file.endswith(".onnx"):
    from onnx.reference import ReferenceEvaluator
    session = ReferenceEvaluator(file)
    y = torch.from_numpy(session.run(None, {session.input_names[0]: x.numpy()})[0])
elif "package" in file:
    y = torch._inductor.aoti_load_package(file)(x)
else:
    y = torch.export.load(file).module()(x)
torch.save(y.detach(), result)
"""


def images() -> torch.nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1, activation="gelu", pool=2), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, groups=3), nn.GroupNorm(2, 6, activation="silu"), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(6, 9, activation="tanh"), nn.LayerNorm(9), nn.Linear(9, 4), nn.Softmax(1)),
    )


class Sequences(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.flatten(1).unsqueeze(2))[0][:, -1])


MODELS = {"images": (images, (3, 1, 10, 8)), "sequences": (Sequences, (2, 4, 2))}


def built(name: str) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A model, an example and its result."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    model(x)  # moves running statistics
    model.eval()
    with torch.no_grad():
        return model, x, model(x)


def loaded_elsewhere(file: Path, x: Tensor) -> Tensor:
    batch, result = file.with_name("batch.pt"), file.with_name("result.pt")
    torch.save(x, batch)
    paths = [path for path in sys.path if path and not (Path(path) / "tinynet").exists()]
    paths = [path for path in paths if not (Path(path) / "tinynet_kernels").exists()]
    setting = f"import sys; sys.path[:] = {paths!r}\n"
    command = [sys.executable, "-c", setting + PROGRAM, str(file), str(batch), str(result)]
    subprocess.run(command, check=True, cwd=file.parent)
    return torch.load(result)


@pytest.mark.parametrize("name", MODELS)
def test_program(name: str, tmp_path: Path) -> None:
    model, x, expected = built(name)
    file = tinynet.export(model.train(), x, tmp_path / "model.pt2")
    assert model.training
    assert_close(loaded_elsewhere(file, x), expected, 1e-5)


def test_program_of_other_batches(tmp_path: Path) -> None:
    model, x, expected = built("images")
    batch = torch.export.Dim("batch", min=2, max=64)
    file = tinynet.export(model, (x,), tmp_path / "model.pt2", dynamic_shapes=({0: batch},))
    assert_close(loaded_elsewhere(file, x[:2]), expected[:2], 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, x, expected = built(name)
    file = tinynet.export(model, x, str(tmp_path / "model.onnx"))
    assert_close(loaded_elsewhere(file, x), expected, 1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_package(tmp_path: Path) -> None:
    from torch._inductor import config

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4, activation="relu")), torch.randn(3, 5)
    with config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):  # compiles in half the time
        file = tinynet.export(model, x, tmp_path / "package.pt2", format="aotinductor")
    assert_close(loaded_elsewhere(file, x), model(x), 1e-5)


@pytest.mark.parametrize("dynamo", [True, False])
def test_torch_onnx_export_stands_on_the_reference(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, x, expected = built("images")
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), str(file), dynamo=dynamo, verbose=False)
    assert_close(loaded_elsewhere(file, x), expected, 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_jit_trace_records_plain_operators(name: str, tmp_path: Path) -> None:
    model, x, expected = built(name)
    traced = torch.jit.trace(model, x)
    assert "tinynet::" not in str(traced.inlined_graph)  # pyright: ignore[reportAttributeAccessIssue]
    assert_close(traced(x), expected, 1e-5)  # pyright: ignore[reportCallIssue]


def test_tensorboard_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    model, x, _ = built("images")
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(model, x)
    assert b"aten::_convolution" in next(tmp_path.glob("events.*")).read_bytes()


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = built("images")
    with pytest.raises(ValueError, match=r"export: got the path 'model.bin', expected a path in .onnx or .pt2"):
        tinynet.export(model, x, "model.bin")
    with pytest.raises(ValueError, match=r"export: got format 'tflite'"):
        tinynet.export(model, x, "model.pt2", format="tflite")
    with pytest.raises(ValueError, match=r"export: path must end in .pt2 for format 'program', got 'model.onnx'"):
        tinynet.export(model, x, "model.onnx", format="program")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="export: writing ONNX needs onnx and onnxscript: pip install"):
        tinynet.export(model, x, tmp_path / "model.onnx")

"""prelu against PyTorch in float64: one slope or one for each channel, in both memory orders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance

from tinynet import nn
from tinynet.ops.prelu import prelu, prelu_operator

pytestmark = pytest.mark.kernels

SHAPES = [((5, 8), 8), ((5, 8), 1), ((3, 6, 4, 5), 6), ((3, 6, 4, 5), 1), ((7,), 1), ((2, 50, 3), 50), ((30, 3, 70), 3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, slopes", SHAPES)
def test_forward_and_gradients(shape: tuple[int, ...], slopes: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(slopes, device=device, dtype=dtype, requires_grad=True)
    inputs = [torch.randn(shape, device=device, dtype=dtype)]
    inputs.append(non_contiguous(inputs[0]))
    if len(shape) == 4:
        inputs.append(inputs[0].contiguous(memory_format=torch.channels_last))
    for x in inputs:
        # A slope's gradient is a sum whose terms cancel: their rounding is larger beside it than beside one of them.
        allowed = tolerance(dtype), 16 * tolerance(dtype, x.numel() // slopes)
        launches = check_against_reference(
            prelu, F.prelu, x.requires_grad_(), weight, error=allowed[0], gradient_errors=allowed
        )
        assert launches[:2] == ["prelu_kernel"] * 2
        assert prelu(x, weight).stride() == F.prelu(x, weight).stride()


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_computes_only_wanted_gradients(wanted: tuple[bool, bool], device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, device=device, requires_grad=wanted[0])
    weight = torch.randn(4, device=device, requires_grad=wanted[1])
    check_against_reference(prelu, F.prelu, x, weight, error=1e-5)


@pytest.mark.parametrize("shape", [(9, 70), (3, 5, 70)])
def test_small_tiles(shape: tuple[int, ...], device: str) -> None:
    torch.manual_seed(0)
    with forced_tiles(rows_and_columns=(2, 16, 4)):
        x, weight = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape[1], device=device)
        check_against_reference(prelu, F.prelu, x, weight.requires_grad_(), error=1e-5)


def test_module_registered_operator_and_compile(device: str) -> None:
    x = torch.randn(4, 6, 3, device=device, requires_grad=True)
    layer = nn.PReLU(6, init=0.3).to(device)
    torch.library.opcheck(prelu_operator.forward, (x, layer.weight, True))
    saved = [x.detach(), layer.weight.detach()]
    torch.library.opcheck(prelu_operator.backward, ([torch.randn_like(x)], saved, [True, True]))
    with counted_launches() as launches:
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        y.sum().backward()
    assert launches[:2] == ["prelu_kernel"] * 2
    torch.testing.assert_close(y, F.prelu(x, layer.weight))
    with torch.autocast(device, torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16


def test_refuses(device: str) -> None:
    x = torch.randn(2, 3, 4, device=device)
    with pytest.raises(ValueError, match=r"prelu: weight must be \[1\] or \[3\] for this input, got \(4,\)"):
        prelu(x, torch.randn(4, device=device))
    with pytest.raises(TypeError, match="weight has dtype"):
        prelu(x, torch.randn(3, device=device, dtype=torch.float64))

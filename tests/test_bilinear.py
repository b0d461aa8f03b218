"""bilinear: products of all pairs of features, against PyTorch in float64, with a fused activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, assert_close, check_against_reference, non_contiguous, tolerance

from tinynet import nn
from tinynet.ops.bilinear import bilinear

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(17,), (3, 5), ()])
@pytest.mark.parametrize(("I1", "I2", "K"), [(1, 1, 1), (5, 7, 9), (17, 3, 20)])
def test_forward_and_gradients(
    leading: tuple[int, ...], I1: int, I2: int, K: int, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(I1)
    shapes = ((*leading, I1), (*leading, I2), (K, I1, I2), (K,))
    x1, x2, weight, bias = (torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes)
    error = 4 * tolerance(dtype, max(I1 * I2, K, 17))
    check_against_reference(bilinear, F.bilinear, x1, x2, weight, bias, error=error)
    check_against_reference(bilinear, F.bilinear, non_contiguous(x1), x2, weight.detach(), None, error=error)


def test_module_with_activation_and_autocast(device: str) -> None:
    layer = nn.Bilinear(5, 4, 6, activation="relu", device=device)
    twin = torch.nn.Bilinear(5, 4, 6, device=device)
    twin.load_state_dict(layer.state_dict(), strict=True)
    assert "activation=relu" in repr(layer)
    x1, x2 = torch.randn(7, 5, device=device), torch.randn(7, 4, device=device)
    assert_close(layer(x1, x2), twin(x1, x2).relu(), 1e-5)
    with torch.autocast(device, torch.bfloat16):
        assert layer(x1, x2).dtype is torch.float32
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x1, x2), layer(x1, x2), 1e-6)


def test_refuses_and_empty(device: str) -> None:
    x1, x2, weight = (
        torch.ones(2, 3, device=device),
        torch.ones(2, 4, device=device),
        torch.ones(5, 3, 4, device=device),
    )
    cases: list[tuple[str, Any]] = [
        ("same leading dimensions", (x1, x2[:1], weight)),
        ("last dimension of input2", (x1, x1, weight)),
        ("weight must be", (x1, x2, weight[0])),
        ("bias must be", (x1, x2, weight, x1[0])),
    ]
    for match, operands in cases:
        with pytest.raises(ValueError, match=match):
            bilinear(*operands)
    with pytest.raises(TypeError, match="input2 has dtype"):
        bilinear(x1, x2.bfloat16(), weight)
    assert bilinear(x1[:0], x2[:0], weight).shape == (0, 5)

"""glu against PyTorch in float64, along every dimension."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance

from tinynet import nn
from tinynet.ops.glu import glu, glu_operator

pytestmark = pytest.mark.kernels

SHAPES = [((5, 8), -1), ((3, 6, 4, 5), 1), ((7, 2), 1), ((4,), 0), ((2, 3, 130), -1), ((2, 50, 3), -2), ((6, 5), 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, dim", SHAPES)
def test_forward_and_gradient(shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: str) -> None:
    for x in (
        torch.randn(shape, device=device, dtype=dtype),
        non_contiguous(torch.randn(shape, device=device).to(dtype)),
    ):
        launches = check_against_reference(
            lambda t: glu(t, dim), lambda t: F.glu(t, dim), x.requires_grad_(), error=tolerance(dtype)
        )
        assert launches == ["elementwise_kernel"] * 2


def test_small_tiles(device: str) -> None:
    with forced_tiles(rows_and_columns=(2, 16, 4)):
        x = torch.randn(5, 70, device=device, requires_grad=True)
        check_against_reference(glu, F.glu, x, error=1e-6)


def test_module_registered_operator_and_compile(device: str) -> None:
    x = torch.randn(4, 6, 3, device=device, requires_grad=True)
    torch.library.opcheck(glu_operator.forward, (x.detach(), 1, True))
    torch.library.opcheck(glu_operator.backward, ([torch.randn(4, 3, 3, device=device)], [x.detach()], 1, [True]))
    compiled = torch.compile(nn.GLU(1), fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        y = compiled(x)
        y.sum().backward()
    assert launches == ["elementwise_kernel"] * 2
    torch.testing.assert_close(y, F.glu(x, 1))


def test_refuses(device: str) -> None:
    with pytest.raises(ValueError, match="glu: the size of input .* along dim 1 must be even"):
        glu(torch.randn(2, 3, device=device), 1)
    with pytest.raises(TypeError, match="input"):
        glu(torch.ones(2, 4, dtype=torch.int64, device=device))
    with pytest.raises(TypeError, match="dim must be an integer"):
        glu(torch.randn(2, 4, device=device), 1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(IndexError):
        glu(torch.randn(2, 4, device=device), 2)

"""Every public function and module without kernels, as its definition in plain PyTorch, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close, counted_launches
from public_cases import CASES
from representations import gradients, leaves_of

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:reduction. 'mean' divides")


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    ours, theirs = (leaves_of(case, case.operands, torch.float64) for _ in range(2))
    with counted_launches() as launches:
        actual, actual_gradients = gradients(case.function, ours, ours)
    assert not launches
    expected, expected_gradients = gradients(case.twin, theirs, theirs)
    for a, e in zip((*actual, *actual_gradients), (*expected, *expected_gradients), strict=True):
        assert (a is None) == (e is None), name
        if a is not None:
            assert_close(a, e, 1e-9, name)

"""Second stages of reductions: sums of many parts of few elements, as GPUs compute them."""

import pytest
import torch
from forced_tiles import GPU, forced_tiles
from helpers import counted_launches, tolerance

from tinynet_kernels import reduction
from tinynet_kernels.tiles import Target

H100 = Target("cuda", 90, 132, 232448)

pytestmark = pytest.mark.kernels


@pytest.fixture
def partial(device: str) -> torch.Tensor:
    return torch.randn(300, 37, device=device)


def summed(partial: torch.Tensor, blocks: reduction.Blocks, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The sum, where the rule chooses `blocks` for the first stage."""
    rule = lambda parts, *_: blocks if parts == len(partial) else reduction.Blocks(1, 64, 1, 4)  # noqa: E731
    with forced_tiles(blocks_of_parts=rule):
        return reduction.sum_partials(partial, dtype)


@pytest.mark.parametrize("blocks", [(1, 16, 1), (8, 16, 1), (4, 64, 1), (512, 32, 1), (16, 16, 3), (128, 32, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_parts(partial: torch.Tensor, blocks: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Odd numbers of parts and elements, with the last block cut off in both directions; one stage and two."""
    found = summed(partial, reduction.Blocks(*blocks, num_warps=4), dtype)
    expected = partial.double().sum(0)
    assert found.dtype is dtype and found.shape == (37,)
    assert (found.double() - expected).abs().max() <= tolerance(dtype, 300) * expected.abs().max()


def test_reruns_give_the_same_bits(partial: torch.Tensor) -> None:
    first, second = (summed(partial, reduction.Blocks(16, 16, 3, 4)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("parts", "elements"), [(49, 576), (784, 32), (1568, 96), (28, 18_432), (8192, 2), (66, 16_384)]
)
def test_no_program_does_more_than_eight_steps_unless_half_of_the_chip_works(parts: int, elements: int) -> None:
    blocks = reduction.blocks_of_parts(parts, elements, H100)
    per_share = -(-parts // blocks.shares)
    steps = -(-per_share // blocks.block_parts)
    assert steps <= 8 or 2 * -(-elements // blocks.block) >= H100.processors
    assert blocks.shares == 1 or steps > 4  # a second stage only where it is needed


@pytest.mark.parametrize(("parts", "elements", "target"), [
    (8, 32, H100),  # few parts
    (784, 67_584, H100),  # as many elements as half of the chip takes
    (784, 32, Target("cpu", "", 2, 1 << 30)),
])  # fmt: skip
def test_part_after_part_is_as_good(parts: int, elements: int, target: Target) -> None:
    assert reduction.blocks_of_parts(parts, elements, target)[::2] == (1, 1)


def test_two_sums_in_one_launch(device: str) -> None:
    """As a GPU's rule divides them, in blocks and part after part; one part alone needs no sum."""
    sums = [torch.randn(300, 37, device=device), torch.randn(5, 6, 70, device=device)]
    for first, second in (sums, sums[::-1]):
        with forced_tiles(current_target=lambda: GPU), counted_launches() as launches:
            out = torch.full(first.shape[1:], torch.nan, dtype=torch.bfloat16, device=device)
            a, b = reduction.sum_two(first, second, out)
        assert launches == ["sum_two_kernel"] and a is out and b.dtype == torch.float32
        for ours, partial in ((a, first), (b, second)):
            expected = partial.double().sum(0)
            assert ours.shape == expected.shape
            assert (ours.double() - expected).abs().max() <= tolerance(ours.dtype, 300) * expected.abs().max()
    with forced_tiles(current_target=lambda: GPU), counted_launches() as launches:
        a, b = reduction.sum_two(sums[0], sums[1][:1], torch.empty(37, device=device))
    assert launches == ["sum_partials_kernel"] and torch.equal(b, sums[1][0])


def test_a_gpu_takes_blocks(device: str) -> None:
    """By its own rule, in two stages: 1,100 parts in shares of at most eight blocks of 128."""
    partial = torch.randint(-4, 5, (1100, 3, 2), device=device).float()  # sums are exact
    assert reduction.blocks_of_parts(1100, 6, GPU) == (128, 32, 2, 4)
    with forced_tiles(current_target=lambda: GPU):
        assert torch.equal(reduction.sum_partials(partial), partial.sum(0))

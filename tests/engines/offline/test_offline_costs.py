"""The report's bytes and operations of our kernels against formulas written by hand."""

import pytest
import torch

import tinynet
from tinynet_engines.offline.report import Report
from tinynet_kernels import activation, cross_entropy, linear, optimizer
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.forward import convolution_forward
from tinynet_kernels.conv.input_gradient import convolution_input_gradient
from tinynet_kernels.conv.spec import ConvolutionSpec

SIZE = 2  # bytes of a bfloat16


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def figures(report: Report) -> dict[str, tuple[int | None, int | None]]:
    """(operations, bytes) by kernel; every one declares its cost."""
    assert all(launch.cost_source == "launcher" for launch in report.launches)
    return {launch.name.removesuffix("_kernel"): (launch.flops, launch.bytes) for launch in report.launches}


def check_footprints(report: Report) -> None:
    """The bytes that a launcher declares are those of its arguments, each counted once per direction."""
    for launch in report.launches:
        assert launch.bytes == launch.bytes_read + launch.bytes_written, launch.name


def test_linear():
    M, N, K = 4096, 512, 1024
    x, weight, bias, dz = empty(M, K), empty(N, K), empty(N), empty(M, N)
    with tinynet.inspect("gfx942") as report:
        linear.linear_forward(x, weight, bias, Activation("gelu"), save=True)
        linear.linear_input_gradient(dz, weight)
        linear.linear_weight_gradient(dz[:64], x[:64])
    found = figures(report)
    assert found["linear_forward"] == (2 * M * N * K, SIZE * (M * K + N * K + N + 2 * M * N))
    assert found["linear_input_gradient"] == (2 * M * N * K, SIZE * (M * N + N * K + M * K))
    assert found["linear_weight_gradient"] == (2 * 64 * N * K, SIZE * (64 * N + 64 * K + N * K))
    check_footprints(report)


def test_a_split_weight_gradient_writes_its_workspace_and_reads_it_back():
    M, N, K = 65536, 128, 64
    with tinynet.inspect("gfx942") as report:
        linear.linear_weight_gradient(empty(M, N), empty(M, K))
    product, reduction = report.launches
    splits = product.grid[1]
    assert splits > 1
    assert product.bytes == SIZE * M * (N + K) + 4 * splits * N * K
    assert reduction.bytes == 4 * splits * N * K + SIZE * N * K
    check_footprints(report)


def convolved(N: int, C: int, K: int, side: int, groups: int = 1) -> Report:
    """A 3 x 3 convolution with bias and relu, and its input gradient."""
    spec = ConvolutionSpec((1, 1), (1, 1), (1, 1), (1, 1), groups)
    last = torch.channels_last
    x, dz = (empty(N, channels, side, side).contiguous(memory_format=last) for channels in (C, K))
    weight = empty(K, C // groups, 3, 3).contiguous(memory_format=last)
    with tinynet.inspect("gfx942") as report:
        convolution_forward(x, weight, empty(K), spec, Activation("relu"), save=True)
        convolution_input_gradient(dz, weight, spec, (side, side))
    return report


def test_a_split_convolution_writes_its_workspace_and_reads_it_back():
    C, K, side = 256, 128, 7
    report = convolved(1, C, K, side)
    forward, finish, gradient, finish_gradient = report.launches
    pixels, weights = side * side, K * C * 9
    for product, reduction, parts, inputs, outputs, bias in (
        (forward, finish, forward.grid[2], C, K, K),
        (gradient, finish_gradient, gradient.grid[1], K, C, 0),
    ):
        assert parts > 1 and product.flops == 2 * pixels * weights
        assert product.bytes == SIZE * (pixels * inputs + weights) + 4 * parts * pixels * outputs
        assert reduction.bytes == 4 * parts * pixels * outputs + SIZE * (bias + pixels * outputs)
    check_footprints(report)


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution(groups: int):
    N, C, K, side = 64, 64, 128, 14
    report = convolved(N, C, K, side, groups)
    pixels, taps = N * side * side, 9 * C // groups
    found = figures(report)
    moved = pixels * C + K * taps + pixels * K
    assert found["convolution_forward"] == (2 * pixels * K * taps, SIZE * (moved + K))
    assert found["convolution_input_gradient"] == (2 * pixels * K * taps, SIZE * moved)
    check_footprints(report)


def test_activation_reads_what_it_saved():
    x = empty(1000, 100)
    with tinynet.inspect("gfx942") as report:
        activation.activation_forward(x, Activation("relu"))
        activation.activation_input_gradient(x, x, Activation("relu"))
    assert [launch.bytes for launch in report.launches] == [SIZE * 2 * 100_000, SIZE * 3 * 100_000]
    check_footprints(report)


def test_cross_entropy():
    rows, classes = 4096, 1000
    logits, target = empty(rows, classes, 1), torch.empty(rows, 1, dtype=torch.int64, device="meta")
    with tinynet.inspect("gfx942") as report:
        result, divisor, saved = cross_entropy.cross_entropy_forward(logits, target, None, -100, "none", 0.0, save=True)
        assert saved is not None
        cross_entropy.cross_entropy_backward(
            result, logits, target, None, divisor, saved, -100, "none", 0.0, want_dx=True, want_dtarget=False
        )
    found = figures(report)
    # logits, labels, loss and three saved numbers per row; then the same read again with the gradient of each loss
    assert found["cross_entropy_forward"][1] == rows * (SIZE * classes + 8 + SIZE + 3 * 4)
    assert found["cross_entropy_backward"][1] == rows * (SIZE * classes + 8 + SIZE + 3 * 4 + SIZE * classes)


def test_adam_moves_seven_accesses_per_element():
    sizes = (401408, 100, 1)
    parameters = [torch.empty(size) for size in sizes]
    with tinynet.inspect("gfx942") as report:
        optimizer.adam_step(
            optimizer.PointerTable([parameters] * 4),
            amsgrad=False,
            step=1,
            lr=0.001,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.01,
            decoupled_weight_decay=True,
            maximize=False,
        )
    assert figures(report)["adam"][1] == 7 * 4 * sum(sizes)


def test_the_parts_of_a_training_step_add_up():
    x = empty(64, 128).requires_grad_()
    weight = empty(32, 128).requires_grad_()
    with tinynet.inspect("sm_90") as report:
        y = tinynet.functional.linear(x, weight, activation="relu")
        y.backward(torch.empty_like(y))
    products = 3 * 2 * 64 * 32 * 128
    assert sum(launch.flops or 0 for launch in report.launches if launch.dot_rows) == products
    assert report.total.flops == sum(launch.flops or 0 for launch in report.launches)

"""linear: kernels against float64 PyTorch, its registered operator, autocast, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from forced_tiles import GPU, forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance
from triton import knobs

import tinynet
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.linear import linear, linear_chain, linear_gradients, linear_reference
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.few_rows import has_few_rows
from tinynet_kernels.gemm import in_units
from tinynet_kernels.linear import linear_forward
from tinynet_kernels.linear_backward import is_small, joined_tile
from tinynet_kernels.tiles import GemmTile, Target, product_splits

pytestmark = pytest.mark.kernels


@pytest.fixture(autouse=True)
def products_apart() -> Iterator[None]:
    """Each product has a launch of its own, as in a large layer."""
    with forced_tiles(is_small=False, has_few_rows=False):
        yield


def make(M: int, N: int, K: int, dtype: torch.dtype, device: str, bias: bool = True, grad: bool = True) -> Any:
    torch.manual_seed(M * 1000 + N * 10 + K)
    x = torch.randn(M, K, device=device).to(dtype).requires_grad_(grad)
    weight = (torch.randn(N, K, device=device) / K**0.5).to(dtype).requires_grad_(grad)
    b = torch.randn(N, device=device).to(dtype).requires_grad_(grad) if bias else None
    return x, weight, b


def check(*tensors: Any, activation: ActivationLike = None) -> list[str]:
    x, weight, bias = tensors
    M, K = x.reshape(-1, x.shape[-1]).shape
    N = weight.shape[0]
    function = as_activation(activation)
    return check_against_reference(
        partial(linear, activation=activation),
        partial(linear_reference, activation=function),
        x,
        weight,
        bias,
        error=2 * tolerance(x.dtype, K),
        gradient_errors=4 * tolerance(x.dtype, max(N, M)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (17, 63, 129), (129, 17, 63), (64, 32, 48), (300, 10, 16)])
def test_sizes(M: int, N: int, K: int, dtype: torch.dtype, device: str) -> None:
    check(*make(M, N, K, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", Activation("leaky_relu", negative_slope=-0.5)])
def test_fused_activation(activation: str | Activation, dtype: torch.dtype, device: str) -> None:
    launches = check(*make(33, 20, 40, dtype, device), activation=activation)
    assert launches.count("linear_forward_kernel") == 1
    assert launches.count("activation_backward_kernel") == 1


def make_chain(widths: tuple[int, ...], M: int, dtype: torch.dtype, device: str, biases: tuple[bool, ...]) -> Any:
    """x, then weight and bias (or None) of each layer."""
    tensors = [make(M, 1, widths[0], dtype, device)[0]]
    for K, N, bias in zip(widths, widths[1:], biases, strict=False):
        tensors += make(M, N, K, dtype, device, bias=bias)[1:]
    return tensors


def check_chain(tensors: list[Any], activations: tuple[str, ...]) -> list[str]:
    functions = [as_activation(activation) for activation in activations]

    def layers(parameters: tuple[Any, ...]) -> list[Any]:
        return list(zip(parameters[::2], parameters[1::2], functions, strict=True))

    def reference(x: torch.Tensor, *parameters: Any) -> torch.Tensor:
        for layer in layers(parameters):
            x = linear_reference(x, *layer)
        return x

    # Each hidden layer rounds its output, and each gradient is rounded in the backward, to the dtype.
    error = 4 * len(activations) * tolerance(tensors[0].dtype, max(tensors[0].shape[0], tensors[0].shape[1]))
    return check_against_reference(
        lambda x, *parameters: linear_chain(x, layers(parameters)), reference, *tensors, error=error
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("widths", "M", "activations", "biases"),
    [
        ((63, 129, 17), 1, ("tanh", "identity"), (True, True)),
        ((40, 33, 64, 10), 129, ("gelu", "sigmoid", "identity"), (True, True, True)),
        ((17, 48, 20, 7), 300, ("silu", "identity", "tanh"), (False, True, False)),
    ],
)
def test_chain(widths: Any, M: int, activations: Any, biases: Any, dtype: torch.dtype, device: str) -> None:
    launches = check_chain(make_chain(widths, M, dtype, device, biases), activations)
    assert launches.count("linear_forward_kernel") == len(activations)
    # Only the last layer may need the pre-pass: products do the rest.
    last = activations[-1] != "identity" or biases[-1]
    assert launches.count("activation_backward_kernel") == last
    assert launches.count("linear_input_gradient_kernel") == len(activations)


@pytest.mark.parametrize(
    ("M", "widths", "dtype"), [(75, (40, 37, 50), torch.float32), (96, (32, 48, 64), torch.bfloat16)]
)
def test_small_tiles(M: int, widths: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Several tiles along every axis, a last group of fewer rows, several steps of each reduction, in three splits."""
    tensors = make_chain(widths, M, dtype, device, (True, True))
    with forced_tiles(linear_tile=GemmTile(16, 32, 16, 4, 1), split_count=3, GROUP=2, flat_block=(256, 4)):
        launches = check_chain(tensors, ("gelu", "tanh"))
    assert launches.count("sum_partials_kernel") >= 2


@pytest.mark.parametrize(
    ("M", "widths", "dtype", "tile"),
    [
        (37, (75, 19, 50), torch.float32, GemmTile(16, 32, 16, 4, 1)),
        (80, (96, 72, 64), torch.bfloat16, GemmTile(64, 64, 32, 4, 1)),
    ],
)
@pytest.mark.parametrize("activations", [("gelu", "identity"), ("relu", "tanh")])
def test_products_of_few_tiles_are_split(
    M: int, widths: tuple[int, ...], dtype: torch.dtype, tile: GemmTile, activations: tuple[str, str], device: str
) -> None:
    """Forward and input gradient in three parts, whose sum the epilogue follows."""
    tensors = make_chain(widths, M, dtype, device, (True, False))
    with forced_tiles(linear_tile=tile, product_splits=3, GROUP=2, flat_block=(256, 4)):
        launches = check_chain(tensors, activations)
    assert launches.count("split_product_kernel") == launches.count("finish_product_kernel") >= 3
    assert "linear_forward_kernel" not in launches


@pytest.mark.parametrize(
    ("M", "widths", "dtype", "tile"),
    [
        (37, (75, 19, 50), torch.float32, GemmTile(16, 32, 16, 4, 1)),
        (80, (96, 72, 64), torch.bfloat16, GemmTile(64, 64, 32, 4, 1)),
    ],
)
@pytest.mark.parametrize("activations", [("gelu", "identity"), ("relu", "tanh")])
def test_small_layers_compute_all_gradients_in_one_launch(
    M: int, widths: tuple[int, ...], dtype: torch.dtype, tile: GemmTile, activations: tuple[str, str], device: str
) -> None:
    """Several tiles along every axis, and odd ends of each; biases with and without a gradient."""
    tensors = make_chain(widths, M, dtype, device, (True, False))
    for frozen in ((), (0,), (0, 1), (2, 3)):  # x; x and a weight; a bias and the other weight
        for index, tensor in enumerate(tensors):
            if tensor is not None:
                tensor.requires_grad_(index not in frozen)
        with forced_tiles(is_small=True, joined_tile=tile, linear_tile=tile, GROUP=2):
            launches = check_chain(tensors, activations)
        joined = sum(tensors[index].requires_grad for index in (1, 3))
        assert launches.count("linear_backward_kernel") == joined
        assert launches.count("linear_weight_gradient_kernel") == 0
        # A bias whose weight is frozen has a launch of its own.
        assert launches.count("activation_backward_kernel") == (activations[-1] != "identity") + (frozen == (0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "N", "K"), [(1, 3, 5), (17, 63, 129), (300, 10, 16), (150, 130, 140)])
def test_gradients_in_one_launch_by_the_rule_of_a_cpu(M: int, N: int, K: int, dtype: torch.dtype, device: str) -> None:
    with forced_tiles(is_small=True, joined_tile=partial(_joined_tile_of, Target("cpu", "", 2, 1 << 30))):
        launches = check(*make(M, N, K, dtype, device), activation="gelu")
    assert launches == ["linear_forward_kernel", "activation_backward_kernel", "linear_backward_kernel"]


def _joined_tile_of(target: Target, M: int, N: int, K: int, dtype: torch.dtype, _: Target) -> GemmTile:
    return joined_tile(M, N, K, dtype, target)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "gelu", "tanh"])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (1, 37, 130), (2, 8, 64), (3, 19, 33), (5, 130, 257)])
def test_few_rows(M: int, N: int, K: int, activation: str, dtype: torch.dtype, device: str) -> None:
    """Odd ends of columns and of sums; of contiguous rows and rows with gaps."""
    x, weight, bias = make(M, N, K, dtype, device)
    activation = "identity" if N == 1 else activation  # of one output the error is relative to it alone
    for given in (x, torch.randn(M, 2 * K, device=device).to(dtype)[:, :K].detach().requires_grad_()):
        with forced_tiles(has_few_rows=True):
            launches = check(given, weight, bias, activation=activation)
        assert launches[0] == "linear_few_rows_kernel" and "linear_forward_kernel" not in launches
    with forced_tiles(has_few_rows=True), torch.no_grad():
        y = linear(x, weight)
    assert y.shape == (M, N)


def test_a_cpu_computes_few_rows_without_a_product() -> None:
    cpu, gpu = Target("cpu", "", 2, 1 << 30), Target("cuda", 90, 132, 232448)
    rows, half = ((2048, 1), (2048, 1), torch.float32), ((2048, 1), (2048, 1), torch.bfloat16)
    for M in (1, 8):
        assert has_few_rows((M, 1000, 2048), *rows, cpu) and not has_few_rows((M, 1000, 2048), *rows, gpu)
    assert not has_few_rows((9, 1000, 2048), *rows, cpu)
    assert has_few_rows((4, 1000, 2048), *half, cpu) and not has_few_rows((5, 1000, 2048), *half, cpu)
    for strides in (((1, 4), (2048, 1)), ((2048, 1), (1, 1000)), ((1 << 30, 1), (2048, 1))):
        assert not has_few_rows((4, 1000, 2048), *strides, torch.float32, cpu)  # the last one is past an int32


def test_a_cpu_joins_the_gradients_of_small_layers() -> None:
    """Whose products take less than a launch or two; of few rows, much less."""
    cpu = Target("cpu", "", 2, 1 << 30)
    small = [(128, 256, 128), (148, 192, 192), (8, 10, 128), (32, 256, 784)]
    large = [(148, 192, 768), (8, 256, 784), (4096, 64, 64), (1, 4096, 4096)]
    for shape in (*small, *large):
        assert is_small(*shape, torch.float32, cpu) is (shape in small)
    assert not is_small(8, 8, 8, torch.float32, Target("interpreter", "", 1, 1 << 30))


def test_the_rule_for_splits_fills_half_of_a_gpu_or_leaves_eight_steps() -> None:
    target = Target("cuda", 90, 132, 232448)
    for tiles in (1, 2, 4, 20, 65, 66, 200):
        for steps in (1, 8, 9, 16, 49, 400):
            splits = product_splits(tiles, steps, target)
            depth = -(-steps // splits)
            programs = tiles * -(-steps // depth)
            assert depth <= 8 or 2 * programs >= target.processors, (tiles, steps, splits)
            assert splits == 1 or 2 * tiles < target.processors
            assert (splits - 1) * depth < steps  # the last one is not empty
    assert product_splits(1, 400, Target("cpu", "", 2, 1 << 30)) == 1


def test_nan_stays_in_its_row_and_column(device: str) -> None:
    """Elements past the end of a reduction (a neighbor's first element) are not multiplied, even by zero."""
    x, weight, bias = make(40, 37, 50, torch.float32, device)
    upstream = torch.randn(40, 37, device=device)
    upstream[7, 0] = float("nan")
    with forced_tiles(linear_tile=GemmTile(16, 32, 16, 4, 1)):
        dx, dw, db = torch.autograd.grad(linear(x, weight, bias), (x, weight, bias), upstream)
        with torch.no_grad():
            x[3, 0] = weight[5, 0] = float("nan")
            y = linear(x, weight, bias)
    assert y.isnan().all(1).nonzero().tolist() == [[3]] and y.isnan().all(0).nonzero().tolist() == [[5]]
    assert y.isnan().sum() == 40 + 37 - 1
    for gradient, row in ((dx, 7), (dw, 0), (db, 0)):
        assert gradient[row].isnan().all() and gradient.isnan().sum() == gradient[row].numel()


@pytest.mark.parametrize("widths", [(24, 8, 40), (16, 33, 72)])
def test_sizes_in_units_as_on_a_gpu(widths: tuple[int, ...], device: str) -> None:
    with forced_tiles(current_target=GPU, linear_tile=GemmTile(16, 16, 8, 4, 1)):
        launches = check_chain(make_chain(widths, 40, torch.float32, device, (True, False)), ("mish", "identity"))
    assert launches.count("activation_backward_kernel") == 1  # mish's derivative has its own pass


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_chain_of_leading_shapes(leading: tuple[int, ...], device: str) -> None:
    x, *parameters = make_chain((9, 20, 5), 6, torch.float32, device, (True, True))
    check_chain([x.detach().view(*(leading or (6,)), 9).requires_grad_(), *parameters], ("tanh", "identity"))


def test_chain_computes_no_unwanted_gradient(device: str) -> None:
    x, *parameters = make_chain((12, 20, 16, 5), 30, torch.float32, device, (True, True, True))
    for tensor in (x, parameters[0], parameters[1], parameters[2]):
        tensor.requires_grad_(False)  # in the second layer only the bias still requires one
    launches = check_chain([x, *parameters], ("gelu", "tanh", "identity"))
    assert launches.count("linear_input_gradient_kernel") == 1
    assert launches.count("linear_weight_gradient_kernel") == 1


def test_chain_saves_nothing_without_gradient(device: str) -> None:
    x, *parameters = make_chain((20, 24, 9), 1030, torch.float32, device, (True, True))
    layers = [(*parameters[:2], Activation("gelu")), (*parameters[2:], Activation("relu"))]
    y = linear_chain(x, layers)
    with torch.no_grad():
        without = linear_chain(x, layers)
    assert without.grad_fn is None and torch.equal(without, y)


def test_chain_refuses_layers_that_do_not_follow_one_another(device: str) -> None:
    x, *parameters = make_chain((12, 20, 16), 4, torch.float32, device, (True, True))
    second = (parameters[2][:, :19], parameters[3], Activation("relu"))
    with pytest.raises(ValueError, match=r"last dimension of input \(4, 20\)"):
        linear_chain(x, [(*parameters[:2], Activation("relu")), second])


def test_without_bias(device: str) -> None:
    check(*make(20, 24, 16, torch.float32, device, bias=False), activation="relu")


def test_leading_shape_and_strides(device: str) -> None:
    x, weight, bias = make(30, 12, 18, torch.float32, device)
    check(non_contiguous(x), weight, bias)
    check(x.detach().view(2, 3, 5, 18).requires_grad_(), weight, bias, activation="relu")
    transposed = torch.randn(18, 30, device=device).t().requires_grad_()
    check(transposed, torch.randn(18, 12, device=device).t().requires_grad_(), bias)
    check(torch.randn(18, device=device).requires_grad_(), weight, bias)


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_the_wanted_gradients(wanted: tuple[bool, ...], device: str) -> None:
    tensors = make(19, 21, 23, torch.float32, device, grad=False)
    for tensor, want in zip(tensors, wanted, strict=True):
        assert tensor is not None
        tensor.requires_grad_(want)
    launches = check(*tensors, activation="relu")
    assert ("linear_input_gradient_kernel" in launches) == wanted[0]
    assert ("linear_weight_gradient_kernel" in launches) == wanted[1]


def test_long_reduction_is_split(device: str) -> None:
    launches = check(*make(1030, 9, 20, torch.float32, device), activation="relu")
    assert launches.count("sum_partials_kernel") >= 1


def test_nothing_is_saved_without_gradient(device: str) -> None:
    x, weight, bias = make(8, 8, 16, torch.float32, device)
    with torch.no_grad():
        assert linear(x, weight, bias, "gelu").grad_fn is None
    assert linear(x.detach(), weight.detach(), None).grad_fn is None


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_empty_batch(shape: tuple[int, ...], device: str) -> None:
    weight = torch.randn(3, 5, device=device, requires_grad=True)
    y = linear(torch.empty(shape, device=device), weight)
    assert y.shape == (*shape[:-1], 3)
    y.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_autocast_casts_and_gradients_come_back_in_float32(device: str) -> None:
    x, weight, bias = make(16, 8, 32, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16), counted_launches() as launches:
        y = linear(x, weight, bias, "relu")
    assert y.dtype is torch.bfloat16 and launches
    y.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32


def test_autocast_rounds_no_weight_gradient(device: str) -> None:
    """The product's fp32 sum goes straight into the fp32 gradient, without 16-bit rounding in between."""
    x, weight, bias = make(64, 8, 32, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = linear(x, weight, bias)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    dy = upstream.double()
    exact = (dy @ weight.bfloat16().double(), dy.t() @ x.detach().bfloat16().double(), dy.sum(0))
    for tensor, expected in zip((x, weight, bias), exact, strict=True):
        assert tensor.grad is not None and tensor.grad.dtype is torch.float32
        torch.testing.assert_close(tensor.grad.double(), expected, rtol=1e-5, atol=1e-5)


def test_autocast_refuses_what_it_does_not_cast(device: str) -> None:
    x, weight, bias = make(4, 6, 8, torch.float32, device, grad=False)
    with torch.autocast(device, dtype=torch.bfloat16):
        with pytest.raises(TypeError, match="weight has dtype torch.bfloat16 but input has torch.float64"):
            linear(x.double(), weight, bias)
        assert linear(x.bfloat16(), weight, bias.half()).dtype is torch.bfloat16


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_registered_operator(activation: str, device: str) -> None:
    from tinynet.ops.linear import linear_operator

    tensors = make(10, 6, 16, torch.float32, device)
    torch.library.opcheck(linear_operator.forward, (*tensors, activation, True))


def test_registered_backward_operator(device: str) -> None:
    from tinynet.ops.linear import linear_operator

    x, weight, _ = make(10, 6, 16, torch.float32, device, grad=False)
    y = torch.randn(10, 6, device=device)
    arguments = ([torch.randn_like(y)], [x, weight, y], "relu", [True, False, True])
    torch.library.opcheck(linear_operator.backward, arguments)


def test_compiled_fullgraph(device: str) -> None:
    x, weight, bias = make(12, 8, 16, torch.float32, device)
    expected = linear(x, weight, bias, "gelu")
    compiled = torch.compile(partial(linear, activation="gelu"), fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        actual = compiled(x, weight, bias)
        actual.sum().backward()
    assert "linear_forward_kernel" in launches and "linear_weight_gradient_kernel" in launches
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("activation", ["identity", "gelu", "mish"])
def test_rows_of_multiples_of_8_are_loaded_16_bytes_at_a_time_and_nothing_spills(activation: str) -> None:
    if knobs.runtime.interpret:
        pytest.skip("nothing is compiled in interpreter mode")
    x, weight = (torch.empty(4096, 1000, dtype=torch.bfloat16, device="meta") for _ in range(2))
    with tinynet.inspect("sm_80") as report:
        y, _ = linear_forward(x, weight, None, Activation(activation), save=True)
        linear_gradients(y, (x, weight, None), (Activation("identity"),), (True, True, False), [y.dtype] * 3)
    for launch in report.launches:
        code = launch.kernel.code
        assert code.spill_bytes == 0
        if code.matrix_instruction:
            assert set(code.loop_load_bits) == {128}
            assert code.asynchronous_copies > 0


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_units_multiply_back(kind: str) -> None:
    numbers = (1, 7, 8, 16, 24, 72, 4096)
    values, units = in_units(Target(kind, 80, 1, 1), *numbers)
    assert tuple(value * (8 if units >> index & 1 else 1) for index, value in enumerate(values)) == numbers
    assert units == (0 if kind == "cpu" else 0b0110100)


def test_refuses_what_does_not_fit(device: str) -> None:
    x, weight, bias = make(4, 6, 8, torch.float32, device, grad=False)
    with pytest.raises(ValueError, match="last dimension of input"):
        linear(x[:, :7], weight, bias)
    with pytest.raises(ValueError, match="bias must be"):
        linear(x, weight, bias[:3])
    with pytest.raises(ValueError, match="weight must be"):
        linear(x, weight[0])
    with pytest.raises(TypeError, match="weight has dtype"):
        linear(x, weight.half(), bias)
    with pytest.raises(TypeError, match="floating point"):
        linear(x.int(), weight, bias)
    with pytest.raises(ValueError, match="meta"):
        linear(x, weight.to("meta"), bias)
    with pytest.raises(ValueError, match="activation: got 'rleu'"):
        linear(x, weight, bias, "rleu")
    with pytest.raises(TypeError, match="float64|float32, bfloat16 or float16"):
        linear(x.double(), weight.double(), bias.double())

"""Operands that span 2^31 elements and more, in every column: an offset within a tile no longer fits an int32.

The views are huge, their contents are not: untouched memory costs only address space on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import UNIT, assert_close, check_against_reference, convolution_precision, tolerance
from public_cases import CASES
from representations import assert_both_close, gradients, leaves_of
from torch import Tensor
from triton import knobs

import tinynet.nn
import tinynet.optim
from tinynet.ops.activation import gelu
from tinynet.ops.activation_like import as_activation
from tinynet.ops.conv import conv2d
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.embedding import embedding
from tinynet.ops.linear import linear, linear_chain
from tinynet.ops.max_pool import adaptive_max_pool2d, max_pool2d
from tinynet.ops.pool import adaptive_avg_pool2d, avg_pool2d
from tinynet.ops.regression_loss import mse_loss
from tinynet_kernels import activation as activation_kernels
from tinynet_kernels import launch
from tinynet_kernels import layout as layout_kernels
from tinynet_kernels import linear as linear_kernels
from tinynet_kernels.pool import maximum as pool_kernels
from tinynet_kernels.pool.spec import Axis, window_of
from tinynet_kernels.tiles import current_target

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:reduction. 'mean' divides"),
]

not_interpreted = pytest.mark.skipif(knobs.runtime.interpret, reason="takes long, and compiled code is what overflows")

FAR = 1 << 31  # past the largest int32
DTYPES = (torch.bfloat16, torch.float32)


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with convolution_precision("ieee"):
        yield


def values(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape, device=device).to(dtype)


def spread(x: Tensor, dimension: int, distance: int = FAR) -> Tensor:
    """The values of x in a view that spans at least `distance` elements along `dimension`; the rest is dense."""
    dense = torch.empty_like(x.select(dimension, 0)).stride()
    far = distance // (x.shape[dimension] - 1) + 1
    strides = (*dense[:dimension], far, *dense[dimension:])
    return laid_out(x, strides)


def laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The values of x in a view with these strides, which begins after a few elements and ends with its memory."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    offset = 5
    try:
        memory = torch.empty(offset + last + 1, dtype=x.dtype, device=x.device)
    except RuntimeError:  # out of memory
        pytest.skip(f"no {(offset + last) * x.element_size() >> 30} GiB of address space for one tensor here")
    return memory.as_strided(x.shape, strides, offset).copy_(x.detach())


def wanting(x: Tensor) -> Tensor:
    return x.requires_grad_()


def check(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor | None, length: int = 64) -> None:
    dtype = next(x.dtype for x in inputs if x is not None and x.is_floating_point())
    check_against_reference(ours, theirs, *inputs, error=2 * tolerance(dtype, length))


POOLINGS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "max": (max_pool2d, F.max_pool2d, {"kernel_size": 3, "stride": 1}),
    "max_padded": (max_pool2d, F.max_pool2d, {"kernel_size": 3, "padding": 1}),
    "max_dilated": (max_pool2d, F.max_pool2d, {"kernel_size": 2, "stride": 1, "dilation": 2}),
    "mean": (avg_pool2d, F.avg_pool2d, {"kernel_size": 3, "stride": 1}),
    "adaptive": (adaptive_avg_pool2d, F.adaptive_avg_pool2d, {"output_size": 2}),
    "adaptive_max": (adaptive_max_pool2d, F.adaptive_max_pool2d, {"output_size": 2}),
    "global": (adaptive_avg_pool2d, F.adaptive_avg_pool2d, {"output_size": 1}),
}


@pytest.mark.parametrize("dimension", range(4))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling(pooling: str, dimension: int, device: str) -> None:
    ours, theirs, options = POOLINGS[pooling]
    x = spread(values(2, 3, 4, 3, dtype=torch.bfloat16, device=device), dimension)
    check(lambda t: ours(t, **options), lambda t: theirs(t, **options), wanting(x))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_of_windows_that_span_rows_and_columns(pooling: str, device: str) -> None:
    """Each axis fits an int32, both together don't."""
    ours, theirs, options = POOLINGS[pooling]
    x = values(2, 3, 3, 3, dtype=torch.bfloat16, device=device)
    x = laid_out(x, (1, 2, FAR // 4, FAR // 4 + 7))
    check(lambda t: ours(t, **options), lambda t: theirs(t, **options), wanting(x))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_in_channels_last(pooling: str, device: str) -> None:
    ours, theirs, options = POOLINGS[pooling]
    x = laid_out(values(2, 3, 3, 3, dtype=torch.bfloat16, device=device), (9, 1, FAR // 2, 3))
    check(lambda t: ours(t, **options), lambda t: theirs(t, **options), wanting(x))


@pytest.mark.parametrize("size", [(65536, 1), (1, 65536)])
def test_adaptive_pooling_of_long_axes(size: tuple[int, int], device: str) -> None:
    """The bounds of the windows are products of both sizes."""
    x = values(1, 1, *size, dtype=torch.float32, device=device)
    out = min(size[0], 40001), min(size[1], 40001)
    check(lambda t: adaptive_avg_pool2d(t, out), lambda t: F.adaptive_avg_pool2d(t, out), wanting(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_weight", [False, True])
@pytest.mark.parametrize("dimension", [0, 1])
def test_linear(dimension: int, of_weight: bool, dtype: torch.dtype, device: str) -> None:
    x, weight = (values(n, 19, dtype=dtype, device=device) for n in (18, 21))
    bias = values(21, dtype=dtype, device=device)
    x, weight = (x, spread(weight, dimension)) if of_weight else (spread(x, dimension), weight)
    check(
        lambda *t: linear(*t, activation="gelu"),
        lambda *t: F.gelu(F.linear(*t)),
        wanting(x),
        wanting(weight),
        wanting(bias),
    )


def test_linear_of_strides_past_an_int32(device: str) -> None:
    """8 divides the stride, 16 does not: kernels receive it in units of 8."""
    x = laid_out(values(3, 19, dtype=torch.bfloat16, device=device), (FAR + 8, 1))
    weight = wanting(values(21, 19, dtype=torch.bfloat16, device=device))
    check(linear, F.linear, wanting(x), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["identity", "gelu"])
def test_linear_reads_a_wide_upstream_gradient(name: str, dtype: torch.dtype, device: str) -> None:
    inputs = [values(*shape, dtype=dtype, device=device) for shape in ((18, 19), (21, 19), (21,))]
    grad = spread(values(18, 21, dtype=dtype, device=device), 0)
    ours = [wanting(x.clone()) for x in inputs]
    exact = [wanting(x.double()) for x in inputs]
    gradients = torch.autograd.grad(linear(*ours, activation=name), ours, grad)
    y = F.linear(*exact)
    expected = torch.autograd.grad(y if name == "identity" else F.gelu(y), exact, grad.double())
    for a, e in zip(gradients, expected, strict=True):
        assert_close(a, e, 2 * tolerance(dtype, 64))


@pytest.mark.parametrize(("channels", "dimension"), [(1, 0), (1, 2), (3, 1), (3, 3), (16, 0), (16, 1)])
@pytest.mark.parametrize("of_weight", [False, True])
def test_convolution(of_weight: bool, channels: int, dimension: int, device: str) -> None:
    """A view with gaps is copied."""
    x = values(2, channels, 5, 4, dtype=torch.bfloat16, device=device)
    weight = values(6, channels, 3, 3, dtype=torch.bfloat16, device=device)
    x, weight = (x, spread(weight, dimension)) if of_weight else (spread(x, dimension), weight)
    check(lambda *t: conv2d(*t, padding=1), lambda *t: F.conv2d(*t, padding=1), wanting(x), wanting(weight), length=144)


@pytest.mark.parametrize("dimension", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_logits(dtype: torch.dtype, dimension: int, device: str) -> None:
    logits = spread(values(5, 7, 3, dtype=dtype, device=device), dimension)
    labels = torch.arange(15, device=device).reshape(5, 3) % 7
    options: dict[str, Any] = {"label_smoothing": 0.1, "reduction": "none"}
    check(
        lambda t: cross_entropy(t, labels, **options), lambda t: F.cross_entropy(t, labels, **options), wanting(logits)
    )


@pytest.mark.parametrize("dimension", [0, 1])
def test_cross_entropy_labels(dimension: int, device: str) -> None:
    logits = values(5, 7, 3, dtype=torch.bfloat16, device=device)
    labels = spread(torch.arange(15, device=device).reshape(5, 3) % 7, dimension, FAR // 2)
    check(cross_entropy, F.cross_entropy, wanting(logits), labels)


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_cross_entropy_probabilities(dimension: int, device: str) -> None:
    logits, target = (values(5, 7, 3, dtype=torch.bfloat16, device=device) for _ in range(2))
    target = spread(target.softmax(1), dimension)
    check(cross_entropy, F.cross_entropy, wanting(logits), wanting(target))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("wide", ["rows", "columns", "index", "dense"])
def test_embedding(wide: str, dtype: torch.dtype, device: str) -> None:
    index = torch.tensor([[3, 0, 8], [3, 7, 8]], device=device).to(dtype)
    if wide == "dense":  # a table of more than 2^31 numbers
        far = FAR // 64 + 9
        table = laid_out(values(9, 64, dtype=torch.bfloat16, device=device), (64 * (far // 8), 1))
        table = table.as_strided((8 * (far // 8) + 1, 64), (64, 1))
        index = index * (far // 8)
        with torch.no_grad():
            y = embedding(index, table)
            assert torch.equal(y, table[index.long()])
        return
    table = values(9, 6, dtype=torch.bfloat16, device=device)
    if wide == "index":
        index = spread(index, 1)
    else:
        table = spread(table, 0 if wide == "rows" else 1)
    check(lambda t: embedding(index, t), lambda t: F.embedding(index, t), wanting(table))


@pytest.mark.parametrize("dimension", [0, 1])
def test_elementwise(dimension: int, device: str) -> None:
    x = spread(values(5, 7, dtype=torch.bfloat16, device=device), dimension)
    target = values(5, 7, dtype=torch.bfloat16, device=device)
    check(gelu, F.gelu, wanting(x))
    check(mse_loss, F.mse_loss, wanting(x), wanting(spread(target, dimension)))
    dropped = tinynet.nn.Dropout(0.5)(x.detach())
    assert_close(dropped, torch.where(dropped != 0, 2 * x.detach().double(), 0.0), 2 * UNIT[x.dtype])


def check_recurrent(
    kind: str, options: dict[str, Any], x: Tensor, device: str, view: Callable[[str, Tensor], Tensor] = lambda _, t: t
) -> None:
    """Ours, with parameters laid out by `view`, which gets their names, against torch.nn's in float64."""
    torch.manual_seed(0)
    ours = getattr(tinynet.nn, kind)(x.shape[-1], 12, device=device, **options)
    options = {key: value for key, value in options.items() if key != "recompute"}
    exact = getattr(torch.nn, kind)(x.shape[-1], 12, device=device, dtype=torch.float64, **options)
    exact.load_state_dict(ours.state_dict())
    for name, parameter in list(ours.named_parameters()):
        setattr(ours, name, torch.nn.Parameter(view(name, parameter.detach())))
    x = wanting(x.detach())
    twin = wanting(x.detach().double())
    y, expected = ours(x)[0], exact(twin)[0]
    assert_close(y, expected, 1e-5)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    assert x.grad is not None and twin.grad is not None
    assert_close(x.grad, twin.grad, 1e-5, "gradient of x")
    for (name, parameter), other in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert_close(parameter.grad, other.grad, 1e-5, name)


RECURRENT = [("RNN", {}), ("LSTM", {"recompute": True}), ("LSTM", {"proj_size": 5}), ("GRU", {})]


@pytest.mark.parametrize(("kind", "options"), RECURRENT, ids=str)
@pytest.mark.parametrize("shape", [(18, 1, 7), (1, 18, 7)], ids=["steps", "sequences"])
@pytest.mark.parametrize("dimension", [0, 1])
def test_recurrent(dimension: int, shape: tuple[int, ...], kind: str, options: dict[str, Any], device: str) -> None:
    """Wide strides of rows and of features, for one sequence and for one step: views that are not copied."""
    x = spread(values(18, 7, dtype=torch.float32, device=device), dimension).unflatten(0, shape[:2])
    check_recurrent(
        kind, options, x, device, lambda name, t: spread(t, dimension) if name.startswith("weight_ih") else t
    )


@pytest.mark.parametrize("dimension", [0, 1])
def test_optimizer(dimension: int, device: str) -> None:
    """A gradient with a wide stride is copied; a parameter with one is stepped by the reference."""
    p, g = (values(5, 7, dtype=torch.float32, device=device) + n for n in range(2))
    for parameter, gradient in ((p.clone(), spread(g, dimension)), (spread(p, dimension), g)):
        ours, theirs = torch.nn.Parameter(parameter), torch.nn.Parameter(p.clone())
        ours.grad, theirs.grad = gradient, g
        tinynet.optim.Adam([ours], lr=0.1).step()
        torch.optim.Adam([theirs], lr=0.1).step()
        assert_close(ours, theirs, 1e-6)


@not_interpreted
@pytest.mark.parametrize("name", CASES)
def test_every_function(name: str) -> None:
    """Each dimension of each operand with a wide stride, one at a time: read in place, or copied."""
    torch.manual_seed(0)
    case = CASES[name]()
    exact = leaves_of(case, case.operands, torch.float64)
    expected, expected_gradients = gradients(case.twin, exact, exact)
    for operand, x in case.operands.items():
        for dimension in [d for d in range(x.dim()) if x.shape[d] > 1]:
            leaves = leaves_of(case, case.operands)
            leaves[operand] = spread(x, dimension).requires_grad_(leaves[operand].requires_grad)
            actual, actual_gradients = gradients(case.function, leaves, leaves)
            for a, e in zip((*actual, *actual_gradients), (*expected, *expected_gradients), strict=True):
                assert_both_close(a, e, f"dimension {dimension} of {operand}")


def is_wide(constants: Mapping[str, Any]) -> bool | None:
    """Whether a kernel takes its offsets as int64: a constant of its own, or a field of one; else None."""
    groups = [constants, *(each._asdict() for each in constants.values() if hasattr(each, "_asdict"))]
    flags = [fields[name] for fields in groups for name in ("WIDE", "wide") if name in fields]
    return any(flags) if flags else None  # a norm within a loss leaves it to the loss


def test_who_takes_int64() -> None:
    """Dense tensors with huge rows, planes or counts take int64; ordinary ones don't, even with 2^32 elements."""
    target, identity = current_target(), as_activation(None)

    def linear_problem(M: int, N: int, K: int) -> launch.Problem:
        arguments = (torch.bfloat16, "ieee", identity, target)
        problem = linear_kernels.linear_forward_problem((M, N, K), (K, 1), (K, 1), *arguments)
        return problem if isinstance(problem, launch.Problem) else problem.product

    def backward_problem(rows: int, columns: int) -> launch.Problem:
        return activation_kernels._backward_problem(rows, columns, columns, identity, True, target)

    def pool_problem(size: int) -> launch.Problem:
        window = window_of([Axis(2, 2), Axis(2, 2)])
        shape = (1, 1, size // 2, size // 2)
        return pool_kernels._problem(False, shape, (), window, (size, size), False, target)

    def transpose_problem(channels: int, pixels: int) -> launch.Problem:
        return layout_kernels._transpose_problem(4, channels, pixels, target)

    ordinary = (
        linear_problem(1 << 16, 1 << 16, 64),
        backward_problem(1 << 16, 1 << 16),
        pool_problem(30_000),
        transpose_problem(64, 1 << 20),
    )
    huge = (
        linear_problem(128, 1 << 28, 1),
        linear_problem(128, 1, 1 << 28),
        linear_problem(1 << 31, 1, 1),
        backward_problem(64, 1 << 30),
        pool_problem(50_000),
        transpose_problem(64, 10_000 * 10_000),
        transpose_problem(10_000 * 10_000, 64),
    )
    assert [is_wide(problem.constants) for problem in ordinary] == [False] * len(ordinary)
    assert [is_wide(problem.constants) for problem in huge] == [True] * len(huge)


@pytest.fixture
def always_wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every tile exceeds the largest offset, at any size; otherwise this takes dense tensors of many gigabytes."""
    run, seen = launch._run, []

    def look(kernel: Any, grid: Any, arguments: Any, constants: Any, *reached: Any) -> None:
        seen.append(is_wide(constants))
        run(kernel, grid, arguments, constants, *reached)

    monkeypatch.setattr(launch, "_run", look)
    with forced_tiles(LARGEST_OFFSET=0):
        yield
    assert False not in seen


@not_interpreted
@pytest.mark.parametrize("name", CASES)
def test_every_function_in_int64(name: str, always_wide: None) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    leaves, exact = leaves_of(case, case.operands), leaves_of(case, case.operands, torch.float64)
    actual, actual_gradients = gradients(case.function, leaves, leaves)
    expected, expected_gradients = gradients(case.twin, exact, exact)
    for a, e in zip((*actual, *actual_gradients), (*expected, *expected_gradients), strict=True):
        assert_both_close(a, e, name)


def test_linear_in_int64(device: str, always_wide: None) -> None:
    shapes = ((130, 19), (40, 19), (40,), (18, 40), (18,))
    check(
        lambda x, *w: linear_chain(x, ((w[0], w[1], as_activation("silu")), (w[2], w[3], as_activation("relu")))),
        lambda x, *w: F.relu(F.linear(F.silu(F.linear(x, w[0], w[1])), w[2], w[3])),
        *[wanting(values(*shape, dtype=torch.float32, device=device)) for shape in shapes],
    )


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "many channels": ((2, 16, 9, 8), (17, 16, 3, 3), {"padding": 1, "stride": 2}),
    "few channels": ((2, 3, 8, 9), (6, 3, 5, 5), {"padding": 2}),
    "one channel": ((3, 1, 10, 9), (18, 1, 3, 3), {"padding": 1}),
    "depthwise": ((2, 5, 9, 8), (10, 1, 3, 3), {"padding": 1, "groups": 5, "stride": 2}),
}


@pytest.mark.parametrize(("pool", "dtype"), [(1, torch.bfloat16), (2, torch.float32)])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_in_int64(case: str, pool: int, dtype: torch.dtype, device: str, always_wide: None) -> None:
    shape, weight_shape, options = CONVOLUTIONS[case]
    check(
        lambda *t: conv2d(*t, **options, pool=pool),
        lambda *t: F.max_pool2d(F.conv2d(*t, **options), pool),
        wanting(values(*shape, dtype=dtype, device=device)),
        wanting(values(*weight_shape, dtype=dtype, device=device)),
        length=144,
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_in_int64(pooling: str, memory_format: Any, device: str, always_wide: None) -> None:
    ours, theirs, options = POOLINGS[pooling]
    x = values(2, 3, 9, 8, dtype=torch.float32, device=device).contiguous(memory_format=memory_format)
    check(lambda t: ours(t, **options), lambda t: theirs(t, **options), wanting(x))


def test_cross_entropy_in_int64(device: str, always_wide: None) -> None:
    logits = values(5, 7, 3, dtype=torch.float32, device=device)
    labels = torch.arange(15, device=device).reshape(5, 3) % 7
    check(cross_entropy, F.cross_entropy, wanting(logits.clone()), labels)
    check(cross_entropy, F.cross_entropy, wanting(logits.clone()), wanting(logits.flip(1).softmax(1)))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_in_int64(kind: str, device: str, always_wide: None) -> None:
    check_recurrent(kind, {"recompute": True}, values(5, 3, 7, dtype=torch.float32, device=device), device)


def gapped(x: Tensor) -> Tensor:
    return laid_out(x, tuple(3 * stride for stride in x.stride()))


@pytest.mark.parametrize("bias", [gapped, lambda x: x[:1].expand(x.shape)], ids=["gapped", "expanded"])
def test_bias(bias: Callable[[Tensor], Tensor], device: str) -> None:
    x, weight, b = (values(*shape, dtype=torch.float32, device=device) for shape in ((18, 19), (21, 19), (21,)))
    b = bias(b)
    check(linear, F.linear, wanting(x), wanting(weight), wanting(b))
    for channels in (1, 3, 16):
        images = values(2, channels, 5, 4, dtype=torch.float32, device=device)
        taps = values(21, channels, 3, 3, dtype=torch.float32, device=device)
        check(conv2d, F.conv2d, wanting(images), wanting(taps), wanting(b), length=144)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("recompute", [False, True])
def test_recurrent_bias(recompute: bool, kind: str, device: str) -> None:
    x = values(5, 3, 7, dtype=torch.float32, device=device)
    check_recurrent(
        kind, {"recompute": recompute}, x, device, lambda name, t: gapped(t) if name.startswith("bias") else t
    )


@pytest.mark.parametrize("dimension", range(4))
@pytest.mark.parametrize("pooling", ["max_padded", "adaptive"])
def test_pooling_of_an_expanded_image(pooling: str, dimension: int, device: str) -> None:
    ours, theirs, options = POOLINGS[pooling]
    x = values(2, 3, 5, 4, dtype=torch.float32, device=device)
    x = x.select(dimension, 0).unsqueeze(dimension).expand(x.shape)
    check(lambda t: ours(t, **options), lambda t: theirs(t, **options), wanting(x))


def test_expanded_operands(device: str) -> None:
    """The memory of one element is expanded to a whole dimension."""
    x, weight = (values(*shape, dtype=torch.float32, device=device) for shape in ((18, 19), (21, 19)))
    for each in (x[:1].expand(18, 19), x[:, :1].expand(18, 19), x[:1, :1].expand(18, 19)):
        check(linear, F.linear, wanting(each.detach()), wanting(weight.clone()))
    for each in (weight[:1].expand(21, 19), weight[:, :1].expand(21, 19)):
        check(linear, F.linear, wanting(x.clone()), wanting(each.detach()))
    overlapping = values(40, dtype=torch.float32, device=device).as_strided((18, 19), (1, 1))
    check(linear, F.linear, wanting(overlapping), wanting(weight.clone()))
    logits = values(5, 7, 3, dtype=torch.float32, device=device)
    labels = torch.tensor([[[4]]], device=device).expand(5, 1, 3).squeeze(1)
    for each in (logits[:1], logits[:, :1], logits[..., :1]):
        check(cross_entropy, F.cross_entropy, wanting(each.expand(5, 7, 3)), labels)

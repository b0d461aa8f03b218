"""Every column against PyTorch in float64 on random shapes, memory layouts, dtypes and options.

`pytest --examples N` sets the number of examples per property; without it they are a few fixed ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, UNIT, assert_close, convolution_precision, counted_launches, nan_filled_memory, tolerance
from hypothesis import assume, given, note
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tinynet import functional, optim
from tinynet.nn import recurrent as layers
from tinynet.ops.activation import activate, activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet.ops.arguments import REDUCTIONS
from tinynet.ops.batch_norm import batch_norm
from tinynet.ops.clip_grad import clip_grad_norm_, clip_grad_value_
from tinynet.ops.conv import conv2d
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.distance import cosine_embedding_loss, cosine_similarity, pairwise_distance, triplet_margin_loss
from tinynet.ops.dropout import alpha_scale, dropout, feature_alpha_dropout
from tinynet.ops.embedding import embedding
from tinynet.ops.embedding_bag import MODES, embedding_bag
from tinynet.ops.glu import glu
from tinynet.ops.group_norm import group_norm
from tinynet.ops.instance_norm import instance_norm
from tinynet.ops.layer_norm import layer_norm, rms_norm
from tinynet.ops.linear import linear
from tinynet.ops.linear_cross_entropy import linear_cross_entropy
from tinynet.ops.local_response_norm import local_response_norm
from tinynet.ops.margin_loss import multi_margin_loss, multilabel_margin_loss
from tinynet.ops.max_pool import max_pool2d
from tinynet.ops.nll_loss import nll_loss
from tinynet.ops.pool import adaptive_avg_pool2d, avg_pool2d
from tinynet.ops.prelu import prelu
from tinynet.ops.rrelu import rrelu
from tinynet.ops.softmax import log_softmax, softmax, softmin
from tinynet.ops.upsample import interpolate
from tinynet_kernels.activation_spec import PARAMETERS, Activation
from tinynet_kernels.tiles import ceil_div

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore:Using a target size"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout"),
    pytest.mark.filterwarnings("ignore:max_unpooling.*does not have a deterministic implementation"),
]

# One, primes, powers of two and their neighbors.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 128, 129)
ACTIVATIONS = [
    *(Activation(name) for name in PARAMETERS if name != "identity"),
    Activation("leaky_relu", negative_slope=-0.5),
    Activation("elu", alpha=-1.5),
    Activation("celu", alpha=0.3),
    Activation("softplus", beta=2.0, threshold=1.0),
    Activation("hardtanh", min_val=-2.0, max_val=0.5),
    Activation("hardshrink", lambd=1.0),
    Activation("softshrink", lambd=0.0),
    Activation("threshold", threshold=-0.5, value=2.0),
]
# Their derivative jumps at a value that a 16-bit result may round to.
STEPPED = ("relu6", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "softplus", "threshold")
# Their derivative has no jump: a normalized value is rarely exact.
SMOOTH = (None, "gelu", "silu", "tanh", "sigmoid")

Values = Callable[..., Tensor]
Draw = Callable[..., Any]
normal: Values = torch.randn
# Their sums of products are exact, so that ties and jumps of a derivative are the same in every precision.
small_integers: Values = partial(torch.randint, -1, 2)


def sizes(largest: int, least: int = 1) -> st.SearchStrategy[int]:
    return st.sampled_from([size for size in (0, *SIZES) if least <= size <= largest])


def shapes(least: int, most: int, largest: int) -> st.SearchStrategy[list[int]]:
    """Shapes of `least` to `most` dimensions, occasionally an empty one."""
    return st.lists(st.one_of(sizes(largest), sizes(largest), sizes(largest, least=0)), min_size=least, max_size=most)


dtypes = st.sampled_from(DTYPES)
CONSTANT: dict[str, Any] = {"differentiable": False}


@st.composite
def tensors(
    draw: Draw,
    device: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    values: Values = normal,
    *,
    differentiable: bool = True,
    dense: bool = False,
) -> Tensor:
    """A tensor of this shape in random memory.

    Its dimensions are in any order in memory; one may take every other element, one may be expanded (stride 0); a size
    of 1 may have an odd stride; it may start one element into its memory, which is misaligned. The memory between its
    elements holds NaN, or the largest integer.

    Args:
        values: takes a shape and a generator.
        differentiable: whether it may require a gradient.
        dense: whether its elements must fill their memory.
    """
    dimensions = range(len(shape))
    orders = st.permutations(dimensions)
    if len(shape) == 4:  # contiguous and channels_last, as often as all others
        orders = st.one_of(st.sampled_from([[0, 1, 2, 3], [0, 2, 3, 1]]), orders)
    order = draw(orders)
    one_of_them = st.one_of(st.none(), st.sampled_from(dimensions)) if shape and not dense else st.none()
    spread, expanded, offset = draw(one_of_them), draw(one_of_them), draw(st.sampled_from([0, 1]))
    strides, length = [0] * len(shape), 1
    for dimension in reversed(order):
        if dimension == expanded:
            continue
        strides[dimension] = length * (2 if dimension == spread else 1)
        length = strides[dimension] * max(shape[dimension], 1)
        if shape[dimension] == 1 and not dense:
            strides[dimension] = draw(st.sampled_from([strides[dimension], 1, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    content = values(tuple(shape), generator=generator).to(dtype)
    between = math.nan if dtype.is_floating_point else torch.iinfo(dtype).max
    memory = torch.full((offset + length,), between, dtype=dtype, device=device)
    tensor = memory.as_strided(shape, strides, offset)
    if expanded is None:
        tensor.copy_(content)
    else:
        tensor.narrow(expanded, 0, min(1, shape[expanded])).copy_(content.narrow(expanded, 0, min(1, shape[expanded])))
    if differentiable and draw(st.booleans()):
        tensor.requires_grad_()
    note(f"{tuple(shape)} {dtype}, strides {strides}, offset {offset}, requires_grad {tensor.requires_grad}")
    return tensor


def snapshot(tensor: Tensor) -> Tensor:
    """A copy of all the memory behind a tensor's view, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage()).clone()


def leaf_in_float64(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def assert_near(actual: Tensor, expected: Tensor, error: float, magnitude: float, name: str) -> None:
    """`assert_close` with an error relative to at least `magnitude`, the scale of the terms of a sum."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    scale = torch.full((1,), magnitude, dtype=torch.float64, device=actual.device)
    a, e = (torch.cat([tensor.detach().double().reshape(-1), scale]) for tensor in (actual, expected))
    assert_close(a, e, error, name)


def check(
    draw: Draw,
    function: Callable[..., Any],
    reference: Callable[..., Any],
    *operands: Tensor | None,
    lengths: Sequence[int] = (),
    magnitude: float = 1.0,
    error: float | None = None,
) -> list[str]:
    """Compares outputs and gradients of `function` with `reference` in float64, with random upstream gradients.

    Args:
        function: takes the operands, returns a tensor or several.
        reference: the same in PyTorch.
        operands: those that require a gradient get one.
        lengths: the number of terms of about `magnitude` that are summed in an element of an output, and then of each
            operand's gradient; 1 by default.
        error: relative; None for the error that rounding explains.

    Returns:
        The names of the kernels launched.
    """
    given_tensors = [tensor for tensor in operands if tensor is not None]
    before = [snapshot(tensor) for tensor in given_tensors]
    dtype = next(tensor.dtype for tensor in given_tensors if tensor.is_floating_point())
    wanted = [i for i, tensor in enumerate(operands) if tensor is not None and tensor.requires_grad]
    has_elements = all(tensor.numel() for tensor in given_tensors)

    def compare(actual: Tensor, expected: Tensor, which: int, name: str) -> None:
        length = lengths[which] if which < len(lengths) else 1
        assert actual.dtype is dtype, f"{name}: {actual.dtype}"
        allowed = 4 * tolerance(dtype, length) if error is None else error
        assert_near(actual, expected, allowed, magnitude * math.sqrt(length), name)

    doubles = [leaf_in_float64(tensor) for tensor in operands]
    with nan_filled_memory(), counted_launches() as launches:
        outputs, exact = _listed(function(*operands)), _listed(reference(*doubles))
        assert launches or not has_elements, "no kernel was launched by the forward"
        for index, (a, e) in enumerate(zip(outputs, exact, strict=True)):
            compare(a, e, 0, f"output {index}")
            assert a.requires_grad == e.requires_grad
        if wanted:
            forward_launches = len(launches)
            upstream = [draw(tensors(a.device.type, a.shape, dtype, differentiable=False)) for a in outputs]
            before += map(snapshot, upstream)
            given_tensors += upstream
            differentiable = [index for index, a in enumerate(outputs) if a.requires_grad]
            gradients = torch.autograd.grad(
                [outputs[index] for index in differentiable],
                [operands[i] for i in wanted],  # pyright: ignore
                [upstream[index] for index in differentiable],
            )
            expected = torch.autograd.grad(
                [exact[index] for index in differentiable],
                [doubles[i] for i in wanted],  # pyright: ignore
                [upstream[index].double().contiguous() for index in differentiable],
            )
            assert len(launches) > forward_launches or not has_elements, "no kernel was launched by the backward"
            for i, a, e in zip(wanted, gradients, expected, strict=True):
                compare(a, e, 1 + i, f"gradient of operand {i}")
    for tensor, old in zip(given_tensors, before, strict=True):
        assert torch.equal(snapshot(tensor), old), f"an operand of shape {tuple(tensor.shape)} was changed"
    return launches


def _listed(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@st.composite
def fused_activations(draw: Draw, dtype: torch.dtype) -> tuple[Activation, Values]:
    """An activation, None among them, and values for which its derivative is accurate up to rounding."""
    function = as_activation(draw(st.one_of(st.none(), st.sampled_from(ACTIVATIONS))))
    if function.name in STEPPED:
        return function, small_integers
    return function, draw(st.sampled_from([normal, small_integers]))


@given(st.data())
def test_activation(device: str, data: st.DataObject) -> None:
    draw, function = data.draw, data.draw(st.sampled_from(ACTIVATIONS))
    x = draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes)))
    check(draw, partial(activate, activation=function), partial(activation_reference, activation=function), x)


@given(st.data())
def test_glu(device: str, data: st.DataObject) -> None:
    draw, shape = data.draw, data.draw(shapes(1, 4, 17))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    shape = [2 * size if axis == dim % len(shape) else size for axis, size in enumerate(shape)]
    x = draw(tensors(device, tuple(shape), draw(dtypes)))
    check(draw, partial(glu, dim=dim), partial(F.glu, dim=dim), x)


@given(st.data())
def test_prelu(device: str, data: st.DataObject) -> None:
    draw, shape, dtype = data.draw, data.draw(shapes(1, 4, 17)), data.draw(dtypes)
    slopes = shape[1] if len(shape) > 1 and draw(st.booleans()) else 1
    x, weight = draw(tensors(device, shape, dtype)), draw(tensors(device, (slopes,), dtype))
    check(draw, prelu, F.prelu, x, weight, lengths=(1, 1, math.prod(shape) // max(slopes, 1)))


@given(st.data())
def test_batch_norm_and_instance_norm(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    function = as_activation(draw(st.sampled_from([None, "relu", "tanh", "gelu"])))
    per_sample, shape = draw(st.booleans()), draw(shapes(2, 5, 9))
    if per_sample:  # PyTorch needs a sample, a channel and two values of it
        shape = [max(1, shape[0]), max(1, shape[1]), max(2, math.prod(shape[2:4])), *shape[4:]]
    training = per_sample or (draw(st.booleans()) and math.prod(shape) != shape[1])
    channels, length = shape[1], math.prod(shape) // max(shape[1], 1)
    # Signs: statistics of few values may be 0, and small deviations from 0 are amplified.
    x = draw(tensors(device, shape, dtype, values=small_integers))
    make = partial(tensors, device, (channels,), dtype)
    weight, bias = (draw(make()) if draw(st.booleans()) else None for _ in range(2))
    residual = None if per_sample or draw(st.booleans()) else draw(tensors(device, shape, dtype))
    mean = variance = None
    if not training:
        mean, variance = (
            draw(make(differentiable=False)),
            draw(make(partial(torch.randint, 1, 3), differentiable=False)),
        )

    def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if per_sample:
            return instance_norm(x, None, None, weight, bias, eps=0.5, activation=function)
        options: Any = {"activation": function, "residual": residual}
        return batch_norm(x, mean, variance, weight, bias, training, eps=0.5, **options)

    def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if per_sample:
            return activation_reference(F.instance_norm(x, None, None, weight, bias, eps=0.5), function)
        statistics = leaf_in_float64(mean), leaf_in_float64(variance)
        y = F.batch_norm(x, *statistics, weight, bias, training, eps=0.5)
        return activation_reference(y if residual is None else y + residual, function)

    check(draw, ours, reference, x, weight, bias, residual, lengths=(16, 16, 4 * length, 4 * length, 1), magnitude=4.0)


@given(st.data())
def test_linear(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    function, values = draw(fused_activations(dtype))
    make = partial(tensors, device, dtype=dtype, values=values)
    lead, K, N = draw(shapes(0, 3, 9)), draw(sizes(129)), draw(sizes(65))
    bias = draw(make([N])) if draw(st.booleans()) else None
    check(
        draw,
        partial(linear, activation=function),
        lambda x, weight, bias: activation_reference(F.linear(x, weight, bias), function),
        draw(make([*lead, K])),
        draw(make([N, K])),
        bias,
        lengths=(K, N, math.prod(lead), math.prod(lead)),
    )


@pytest.fixture(scope="module")
def exact_products() -> Iterator[None]:
    with convolution_precision("ieee"):
        yield


def pairs(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[int | tuple[int, int]]:
    return st.one_of(numbers, st.tuples(numbers, numbers))


def as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


@st.composite
def images(draw: Draw, channels: int, least: tuple[int, int], largest: int = 13) -> list[int]:
    """[N, C, H, W] or [C, H, W] with at least this height and width."""
    batch = [] if draw(st.integers(0, 4)) == 0 else [draw(sizes(4))]
    return [*batch, channels, *(max(1, minimum, draw(sizes(largest))) for minimum in least)]


@given(st.data())
def test_conv2d(device: str, exact_products: None, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    function, values = draw(fused_activations(dtype))
    pool = draw(st.sampled_from([1, 2]))
    if pool == 2:
        function, values = as_activation(draw(st.sampled_from([None, "relu"]))), small_integers
    groups, group_inputs, group_outputs = draw(
        st.one_of(
            st.tuples(st.just(1), sizes(33), sizes(33)),
            st.tuples(st.sampled_from([2, 3]), sizes(16), sizes(16)),
            st.tuples(sizes(17), st.just(1), sizes(2)),
        )
    )
    window = draw(st.tuples(*[st.integers(1, 4)] * 2))
    dilation = draw(pairs(st.integers(1, 3)))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), pairs(st.integers(0, 3))))
    stride = 1 if padding == "same" else draw(pairs(st.integers(1, 3)))
    border = (0, 0) if isinstance(padding, str) else as_pair(padding)
    reach = [
        (taps - 1) * spread + 1 - 2 * edge + (pool - 1) * step
        for taps, spread, edge, step in zip(window, as_pair(dilation), border, as_pair(stride), strict=True)
    ]
    shape = draw(images(groups * group_inputs, (reach[0], reach[1])))
    make = partial(tensors, device, dtype=dtype, values=values)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    note(f"{options}, {function}, pool {pool}")

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = activation_reference(F.conv2d(x, weight, bias, **options), function)
        return F.max_pool2d(y, 2) if pool == 2 else y

    taps, pixels = math.prod(window), math.prod(shape) // shape[-3]
    check(
        draw,
        partial(conv2d, **options, activation=function, pool=pool),
        reference,
        draw(make(shape)),
        draw(make([groups * group_outputs, group_inputs, *window])),
        draw(make([groups * group_outputs])) if draw(st.booleans()) else None,
        lengths=(taps * group_inputs, taps * group_outputs, pixels, pixels),
    )


@given(st.data())
def test_convolutions_of_other_kinds(device: str, exact_products: None, data: st.DataObject) -> None:
    """Of 1 and 3 axes, and transposed ones of 1 to 3."""
    draw, dtype = data.draw, data.draw(dtypes)
    transposed, rank = draw(st.sampled_from([(False, 1), (False, 3), (True, 1), (True, 2), (True, 3)]))
    axes = [draw(st.tuples(*[st.integers(1, 3)] * 3, st.integers(0, 2))) for _ in range(rank)]
    window, stride, dilation, padding = (list(each) for each in zip(*axes, strict=True))
    groups, inputs, outputs = draw(st.sampled_from([(1, 3, 5), (1, 17, 4), (2, 3, 2), (5, 1, 1), (3, 1, 2)]))
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    reach = [(taps - 1) * spread + 1 for taps, spread in zip(window, dilation, strict=True)]
    if transposed:
        options["output_padding"] = [draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)]
        # An output has at least one element.
        least = [
            1 + ceil_div(max(0, 2 * edge - taps + 1), step)
            for edge, taps, step in zip(padding, reach, stride, strict=True)
        ]
        filters, name = [groups * inputs, outputs, *window], f"conv_transpose{rank}d"
    else:
        least = [taps - 2 * edge for taps, edge in zip(reach, padding, strict=True)]
        filters, name = [groups * outputs, inputs, *window], f"conv{rank}d"
    shape = [draw(sizes(3)), groups * inputs, *(max(1, each, draw(sizes(5))) for each in least)]
    note(f"{name}, {options}")
    make = partial(tensors, device, dtype=dtype)
    taps, pixels = math.prod(window), math.prod(shape[2:]) * math.prod(stride)
    check(
        draw,
        partial(getattr(functional, name), **options),
        partial(getattr(F, name), **options),
        draw(make(shape)),
        draw(make(filters)),
        draw(make([groups * outputs])) if draw(st.booleans()) else None,
        lengths=(taps * inputs, taps * outputs, shape[0] * pixels, shape[0] * pixels),
    )


@st.composite
def windows(draw: Draw, dilated: bool) -> tuple[dict[str, Any], tuple[int, int]]:
    """Arguments of a pooling, and the smallest height and width that they fit."""
    # Each window compiles its own kernels, with all taps unrolled.
    kernel, dilation = draw(pairs(st.integers(1, 3))), draw(pairs(st.integers(1, 2))) if dilated else 1
    padding = tuple(draw(st.integers(0, size // 2)) for size in as_pair(kernel))
    options = {
        "kernel_size": kernel,
        "stride": draw(st.one_of(st.none(), pairs(st.integers(1, 4)))),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
        **({"dilation": dilation} if dilated else {}),
    }
    least = [
        (taps - 1) * spread + 1 - 2 * edge
        for taps, spread, edge in zip(as_pair(kernel), as_pair(dilation), padding, strict=True)
    ]
    return options, (least[0], least[1])


@given(st.data())
def test_max_pool2d(device: str, data: st.DataObject) -> None:
    draw = data.draw
    options, least = draw(windows(dilated=True))
    values = draw(st.sampled_from([normal, small_integers]))  # integers have ties
    x = draw(tensors(device, draw(images(draw(sizes(33)), least)), draw(dtypes), values))
    check(draw, partial(max_pool2d, **options), partial(F.max_pool2d, **options), x, lengths=(1, 16))


@given(st.data())
def test_avg_pool2d(device: str, data: st.DataObject) -> None:
    draw = data.draw
    options, least = draw(windows(dilated=False))
    options["count_include_pad"] = draw(st.booleans())
    options["divisor_override"] = draw(st.sampled_from([None, 1, 3, -2]))
    x = draw(tensors(device, draw(images(draw(sizes(33)), least)), draw(dtypes)))
    check(draw, partial(avg_pool2d, **options), partial(F.avg_pool2d, **options), x, lengths=(16, 16))


@given(st.data())
def test_adaptive_avg_pool2d(device: str, data: st.DataObject) -> None:
    draw = data.draw
    size = draw(st.one_of(sizes(9), st.tuples(*[st.one_of(st.none(), sizes(17))] * 2)))
    x = draw(tensors(device, draw(images(draw(sizes(33)), (1, 1))), draw(dtypes)))
    check(draw, lambda x: adaptive_avg_pool2d(x, size), lambda x: F.adaptive_avg_pool2d(x, size), x, lengths=(64, 64))


@given(st.data())
def test_pools_of_other_kinds(device: str, data: st.DataObject) -> None:
    """Of 1 to 3 axes."""
    draw, rank = data.draw, data.draw(st.integers(1, 3))
    name = draw(st.sampled_from(["max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool"]))
    options: dict[str, Any] = {"output_size": draw(sizes(7))}
    if not name.startswith("adaptive"):
        options = {"kernel_size": draw(st.integers(1, 3)), "stride": draw(st.one_of(st.none(), st.integers(1, 4)))}
        options["ceil_mode"] = draw(st.booleans())
    if name == "lp_pool":
        options["norm_type"] = 2.0
    least = options.get("kernel_size", 1)
    shape = [draw(sizes(3)), draw(sizes(17)), *(max(least, draw(sizes(9))) for _ in range(rank))]
    note(f"{name}{rank}d, {options}")
    ours, theirs = (partial(getattr(library, f"{name}{rank}d"), **options) for library in (functional, F))
    check(draw, ours, theirs, draw(tensors(device, shape, draw(dtypes))), lengths=(64, 64))


@given(st.data())
def test_max_unpool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(st.integers(1, 3))
    shape = [draw(sizes(3)), draw(sizes(17)), *(draw(sizes(5)) for _ in range(rank))]
    length = math.prod(shape[2:])

    def distinct(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        places = [torch.randperm(length * 2**rank, generator=generator)[:length] for _ in range(math.prod(shape[:2]))]
        return torch.stack(places).view(shape)

    index = draw(tensors(device, shape, torch.int64, distinct, differentiable=False, dense=True))

    def call(library: Any, x: Tensor) -> Tensor:
        places = index if library is functional else index.contiguous()  # PyTorch's backward takes no others
        return getattr(library, f"max_unpool{rank}d")(x, places, 2)

    x = draw(tensors(device, shape, draw(dtypes)))
    check(draw, partial(call, functional), partial(call, F), x)


@given(st.data())
def test_interpolate(device: str, data: st.DataObject) -> None:
    draw = data.draw
    shape, dtype = [draw(sizes(each)) for each in (4, 9, 13, 13)], draw(dtypes)
    size = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    options = {"size": size, "mode": "bilinear", "align_corners": draw(st.booleans())}
    gathered = max(4, math.ceil(size[0] / shape[2] + 1) * math.ceil(size[1] / shape[3] + 1) * 4)
    x = draw(tensors(device, shape, dtype))
    check(draw, partial(interpolate, **options), partial(F.interpolate, **options), x, lengths=(64, 64 * gathered))


def probabilities(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).softmax(min(1, len(shape) - 1))


def positive(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 0.25 + torch.rand(shape, generator=generator)


@given(st.data())
def test_cross_entropy(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    classes, lead, rest = draw(sizes(129)), draw(st.lists(sizes(33), max_size=1)), []
    if lead:
        rest = draw(st.lists(sizes(5), max_size=2))
    options = {
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
    }
    if draw(st.booleans()):
        target = draw(tensors(device, [*lead, classes, *rest], dtype, probabilities))
    else:
        integer = draw(st.sampled_from([torch.int64, torch.uint8]))
        target = draw(
            tensors(device, [*lead, *rest], integer, partial(torch.randint, 0, classes), differentiable=False)
        )
        options["ignore_index"] = draw(st.sampled_from([-100, 0, classes - 1]))
    weight = draw(st.booleans()) and draw(tensors(device, [classes], dtype, positive, differentiable=False))
    rows = math.prod([*lead, *rest])
    check(
        draw,
        partial(cross_entropy, **options),
        lambda x, target, weight: F.cross_entropy(
            x, target if target.is_floating_point() else target.long(), weight, **options
        ),
        draw(tensors(device, [*lead, classes, *rest], dtype)),
        target,
        weight if isinstance(weight, Tensor) else None,
        lengths=(1 if options["reduction"] == "none" else rows * classes, classes, 1),
        magnitude=1 / rows if options["reduction"] == "mean" else 1.0,
    )


def in_between(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Probabilities, away from 0 and 1."""
    return 0.1 + 0.8 * torch.rand(shape, generator=generator)


def signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0


# Each loss in either library, the values of its operands, and how many of them get gradients. No derivative jumps where
# 16-bit values are likely.
ELEMENTWISE: dict[str, tuple[Callable[..., Tensor], list[Values], int]] = {
    "mse": (lambda f, x, t, **o: f.mse_loss(x, t, **o), [normal, normal], 2),
    "smooth_l1": (lambda f, x, t, **o: f.smooth_l1_loss(x, t, beta=0.3, **o), [normal, normal], 2),
    "huber": (lambda f, x, t, **o: f.huber_loss(x, t, **o), [normal, normal], 2),
    "bce": (lambda f, x, t, w, **o: f.binary_cross_entropy(x, t, w, **o), [in_between] * 3, 2),
    "logits": (
        lambda f, x, t, w, p, **o: f.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, **o),
        [normal, *[in_between] * 3],
        2,
    ),
    "multilabel": (
        lambda f, x, t, w, **o: f.multilabel_soft_margin_loss(x, t, w, **o),
        [normal, in_between, in_between],
        3,
    ),
    "soft_margin": (lambda f, x, t, **o: f.soft_margin_loss(x, t, **o), [normal, signs], 1),
    "kl_div": (lambda f, x, t, **o: f.kl_div(x, t, **o), [normal, in_between], 2),
    "gaussian": (lambda f, x, t, v, **o: f.gaussian_nll_loss(x, t, v, full=True, **o), [normal, normal, in_between], 3),
    "poisson": (lambda f, x, t, **o: f.poisson_nll_loss(x, t, full=True, **o), [normal, in_between], 2),
}
SAME_SHAPE = ("bce", "logits", "gaussian")  # of input and target


@given(st.data())
def test_nll_loss(device: str, data: st.DataObject) -> None:
    draw, dtype, classes, rows = data.draw, data.draw(dtypes), data.draw(sizes(129)), data.draw(sizes(33))
    inner = draw(st.lists(sizes(5), max_size=2))
    options = {"reduction": draw(st.sampled_from(REDUCTIONS)), "ignore_index": draw(st.sampled_from([-100, 0]))}
    total = rows * math.prod(inner)
    check(
        draw,
        partial(nll_loss, **options),
        lambda x, *rest: F.nll_loss(x.contiguous(), *rest, **options),  # PyTorch's backward refuses other strides
        draw(tensors(device, [rows, classes, *inner], dtype)),
        draw(tensors(device, [rows, *inner], torch.int64, partial(torch.randint, 0, classes), **CONSTANT)),
        draw(tensors(device, [classes], dtype, positive, **CONSTANT)) if draw(st.booleans()) else None,
        lengths=(1 if options["reduction"] == "none" else total,),
        magnitude=1 / total if options["reduction"] == "mean" else 1.0,
    )


@given(st.data())
def test_margin_losses(device: str, data: st.DataObject) -> None:
    draw, dtype, classes, rows = data.draw, data.draw(dtypes), data.draw(sizes(129)), data.draw(sizes(33))
    reduction = draw(st.sampled_from(REDUCTIONS))
    x, weight = draw(tensors(device, [rows, classes], dtype)), None
    if draw(st.booleans()):
        several = partial(torch.randint, -1, classes)
        target = draw(tensors(device, [rows, classes], torch.int64, several, **CONSTANT))
        functions = multilabel_margin_loss, F.multilabel_margin_loss
    else:
        target = draw(tensors(device, [rows], torch.int64, partial(torch.randint, 0, classes), **CONSTANT))
        weight = draw(tensors(device, [classes], dtype, positive, **CONSTANT)) if draw(st.booleans()) else None
        p = draw(st.sampled_from([1, 2]))
        functions = partial(multi_margin_loss, p=p), partial(F.multi_margin_loss, p=p)

    def of(function: Any) -> Any:
        return lambda x, target, *more: function(x, target, reduction=reduction, **dict(zip(["weight"], more)))  # noqa: B905

    check(
        draw,
        of(functions[0]),
        of(functions[1]),
        x,
        target,
        *([] if weight is None else [weight]),
        lengths=(16 if reduction == "none" else rows * 16, classes),
        magnitude=1 / rows if reduction == "mean" else 1.0,
    )


@given(st.data())
def test_distances(device: str, data: st.DataObject) -> None:
    draw, dtype, shape = data.draw, data.draw(dtypes), data.draw(shapes(1, 4, 17))
    shape = [max(size, 1) for size in shape]
    others = [size if draw(st.integers(0, 5)) or not axis else 1 for axis, size in enumerate(shape)]
    first, second = draw(tensors(device, shape, dtype)), draw(tensors(device, others, dtype))
    if draw(st.booleans()):
        options: dict[str, Any] = {"dim": draw(st.integers(-len(shape), len(shape) - 1)), "eps": 0.1}
        functions: tuple[Any, Any] = cosine_similarity, F.cosine_similarity
    else:
        options = {"p": draw(st.sampled_from([1.0, 2.0, 3.0])), "eps": 0.1, "keepdim": draw(st.booleans())}
        functions = pairwise_distance, F.pairwise_distance
    repeats = math.prod(shape) // math.prod(others)
    ours, theirs = (partial(function, **options) for function in functions)
    check(draw, ours, theirs, first, second, lengths=(shape[-1], 64, 64 * repeats))


@given(st.data())
def test_losses_of_vectors(device: str, data: st.DataObject) -> None:
    draw, dtype, rows, length = data.draw, data.draw(dtypes), data.draw(sizes(33)), data.draw(sizes(65))
    reduction, is_cosine = draw(st.sampled_from(REDUCTIONS)), draw(st.booleans())
    # The gradient of a cosine is large where a vector is short.
    make = partial(tensors, device, [rows, length], dtype, spread if is_cosine else normal)
    operands: list[Tensor] = [draw(make()), draw(make())]
    if is_cosine:
        signs = lambda shape, generator: 2 * torch.randint(2, shape, generator=generator) - 1  # noqa: E731
        operands.append(draw(tensors(device, [rows], torch.int64, signs, **CONSTANT)))
        functions, options = (cosine_embedding_loss, F.cosine_embedding_loss), {"margin": -1.5}
    else:
        operands.append(draw(make()))
        functions, options = (
            (triplet_margin_loss, F.triplet_margin_loss),
            {"margin": 100.0, "swap": draw(st.booleans())},
        )
    ours, theirs = (partial(function, reduction=reduction, **options) for function in functions)
    magnitude = 100.0 if "swap" in options else 1.0
    lengths = (1 if reduction == "none" else rows, length, length, length)
    check(draw, ours, theirs, *operands, lengths=lengths, magnitude=magnitude / (rows if reduction == "mean" else 1))


@given(st.data())
def test_linear_cross_entropy(device: str, data: st.DataObject) -> None:
    draw, dtype, rows, K, classes = data.draw, data.draw(dtypes), *(data.draw(sizes(33)) for _ in range(3))
    # In 16 bits the logits are rounded: small ones keep the error of their exponentials small.
    small = lambda shape, generator: torch.randn(shape, generator=generator) / 4 / K**0.5  # noqa: E731
    target = draw(tensors(device, [rows], torch.int64, partial(torch.randint, 0, classes), **CONSTANT))
    options = {"reduction": "none", "label_smoothing": draw(st.sampled_from([0.0, 0.1]))}
    check(
        draw,
        lambda x, weight, bias, target: linear_cross_entropy(x, weight, target, linear_bias=bias, **options),
        lambda x, weight, bias, target: F.cross_entropy(F.linear(x, weight, bias), target, **options),
        draw(tensors(device, [rows, K], dtype)),
        draw(tensors(device, [classes, K], dtype, small)),
        draw(tensors(device, [classes], dtype)) if draw(st.booleans()) else None,
        target,
        lengths=(4, classes, rows, rows),
    )


@given(st.data())
def test_ctc_loss(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    T, N, C, S = draw(sizes(17)), draw(sizes(5)), draw(sizes(33, least=2)), draw(sizes(9))
    make = partial(tensors, device, differentiable=False)
    blank = draw(st.integers(0, C - 1))

    def labels(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return (torch.randint(1, C, shape, generator=generator) + blank) % C

    targets = draw(make((N, S), draw(st.sampled_from([torch.int32, torch.int64])), labels))
    given_lengths = [draw(st.lists(st.integers(0, most), min_size=N, max_size=N)) for most in (T, S)]
    options = {"blank": blank, "reduction": draw(st.sampled_from(REDUCTIONS)), "zero_infinity": draw(st.booleans())}
    note(f"{given_lengths}, {options}")

    def call(function: Callable[..., Tensor], x: Tensor) -> Tensor:
        steps, lengths = map(torch.tensor, given_lengths)
        return function(x, targets, steps, lengths, **options)

    def log_probabilities(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).log_softmax(-1)

    x = draw(tensors(device, (T, N, C), dtype, log_probabilities))
    error = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    check(draw, partial(call, functional.ctc_loss), partial(call, F.ctc_loss), x, error=error)


@given(st.data())
def test_elementwise_loss(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    name = draw(st.sampled_from(sorted(ELEMENTWISE)))
    call, values, differentiable = ELEMENTWISE[name]
    shape = draw(shapes(1 if name == "multilabel" else 0, 4, 17))
    reduction = draw(st.sampled_from(REDUCTIONS))
    operands, repeats = [draw(tensors(device, shape, dtype, values[0]))], [1]
    for position, made in enumerate(values[1:], 1):
        part = list(shape) if name in SAME_SHAPE and position == 1 else broadcast(draw, shape, one=name == "gaussian")
        operands.append(draw(tensors(device, part, dtype, made, differentiable=position < differentiable)))
        repeats.append(math.prod(shape) // max(math.prod(part), 1))
    elements = max(math.prod(shape), 1)
    check(
        draw,
        partial(call, functional, reduction=reduction),
        partial(call, F, reduction=reduction),
        *operands,
        lengths=(1 if reduction == "none" else elements, *repeats),
        magnitude=1 / elements if reduction == "mean" else 1.0,
    )


def broadcast(draw: Draw, shape: Sequence[int], *, one: bool) -> list[int]:
    """The shape, with 1 for some of its sizes; for `one` of them at most."""
    if one:
        at = draw(st.one_of(st.none(), st.sampled_from(range(len(shape))))) if shape else None
        return [1 if position == at else size for position, size in enumerate(shape)]
    return [size if draw(st.integers(0, 5)) else 1 for size in shape]


def spread(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values whose variance over any two neighbors is not close to 0, so that rounding is not magnified."""
    signs = torch.arange(math.prod(shape)).reshape(shape) % 2 * 2 - 1
    return signs * (1 + torch.rand(shape, generator=generator))


@given(st.data())
def test_layer_norm(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    lead, shape = draw(shapes(0, 2, 17)), draw(st.lists(sizes(65, least=2), min_size=1, max_size=2))
    function = as_activation(draw(st.sampled_from(SMOOTH)))
    columns, rows = math.prod(shape), math.prod(lead)
    center, with_residual = draw(st.booleans()), draw(st.booleans())
    name, ours = ("layer_norm", layer_norm) if center else ("rms_norm", rms_norm)
    parameters = [draw(tensors(device, shape, dtype)) if draw(st.booleans()) else None for _ in range(1 + center)]
    residual = [draw(tensors(device, [*lead, *shape], dtype, small_integers))] if with_residual else []

    def reference(x: Tensor, *rest: Any) -> Any:
        added, given = rest[:with_residual], rest[with_residual:]
        total = x + added[0] if added else x
        y = activation_reference(getattr(F, name)(total, shape, *given, eps=1e-2), function)
        return (y, total) if added else y

    def run(x: Tensor, *rest: Any) -> Any:
        options = {"activation": function, "residual": rest[0] if with_residual else None, "eps": 1e-2}
        return ours(x, shape, *rest[with_residual:], **options)

    x = draw(tensors(device, [*lead, *shape], dtype, small_integers if residual else spread))
    lengths = (columns, *[columns] * (1 + with_residual), rows, rows)
    # Deviations from the mean of an expanded row are rounding errors, which are divided by sqrt(eps).
    check(draw, run, reference, x, *residual, *parameters, lengths=lengths, magnitude=4.0)


@given(st.data())
def test_group_norm(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    groups, channels = draw(sizes(4)), draw(sizes(9))
    shape = [draw(sizes(5)), groups * channels, *draw(shapes(0, 2, 17)), draw(sizes(17, least=2))]
    function = as_activation(draw(st.sampled_from(SMOOTH)))
    parameters = [draw(tensors(device, [shape[1]], dtype)) if draw(st.booleans()) else None for _ in range(2)]
    if parameters[0] is None and parameters[1] is not None:
        parameters[1] = parameters[1].detach()  # PyTorch's own gradient fails
    check(
        draw,
        lambda x, w, b: group_norm(x, groups, w, b, 1e-2, activation=function),
        lambda x, w, b: activation_reference(F.group_norm(x, groups, w, b, 1e-2), function),
        draw(tensors(device, shape, dtype, spread)),
        *parameters,
        lengths=(math.prod(shape), math.prod(shape), math.prod(shape), math.prod(shape)),
    )


@given(st.data())
def test_local_response_norm(device: str, data: st.DataObject) -> None:
    draw = data.draw
    shape = [draw(sizes(4)), draw(sizes(17)), *draw(st.lists(sizes(9), min_size=1, max_size=2))]
    arguments = draw(st.integers(1, 7)), draw(st.sampled_from([1e-4, 0.5])), 0.75, draw(st.sampled_from([1.0, 2.0]))
    x = draw(tensors(device, shape, draw(dtypes)))
    check(
        draw,
        lambda x: local_response_norm(x, *arguments),
        lambda x: F.local_response_norm(x, *arguments),
        x,
        lengths=(8, 8),
    )


@given(st.data())
def test_softmax(device: str, data: st.DataObject) -> None:
    draw, shape = data.draw, data.draw(shapes(0, 4, 33))
    dim = draw(st.integers(-max(len(shape), 1), max(len(shape), 1) - 1))
    function = draw(st.sampled_from([softmax, log_softmax, softmin]))
    x = draw(tensors(device, shape, draw(dtypes)))
    length = max(shape[dim], 1) if shape else 1
    check(draw, lambda x: function(x, dim), lambda x: getattr(F, function.__name__)(x, dim), x, lengths=(4, length))


@given(st.data())
def test_dropout(device: str, data: st.DataObject) -> None:
    draw = data.draw
    x = draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes)))
    p = draw(st.floats(0.05, 0.95))
    masks = []

    def function(x: Tensor) -> Tensor:
        y = dropout(x, p)
        masks.append((y != 0).double())
        return y

    torch.manual_seed(draw(st.integers(0, 2**20)))
    check(draw, function, lambda x: x * masks[0] / (1 - p), x)


@given(st.data())
def test_channel_dropout(device: str, data: st.DataObject) -> None:
    draw = data.draw
    x = draw(tensors(device, draw(shapes(2, 5, 9)), draw(dtypes)))
    seed, p = draw(st.integers(0, 2**20)), draw(st.floats(0.05, 0.95))

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return feature_alpha_dropout(x, p, training=True)

    torch.manual_seed(seed)
    zeros = F.feature_alpha_dropout(torch.zeros(x.shape, dtype=x.dtype, device=device), p, training=True)
    kept = torch.zeros(x.shape, dtype=torch.bool, device=device) if x.numel() == 0 else zeros > zeros.min()
    divisor, shift, dropped = alpha_scale(p)
    if 0 < kept.sum() < kept.numel():  # else the kept ones can't be told
        check(draw, function, lambda x: torch.where(kept, x / divisor + shift, dropped), x, magnitude=1.0)


@given(st.data())
def test_rrelu(device: str, data: st.DataObject) -> None:
    draw = data.draw
    x = draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes)))
    slope = draw(st.floats(-1, 1))
    check(draw, partial(rrelu, lower=slope, upper=slope, training=True), partial(F.leaky_relu, negative_slope=slope), x)


@given(st.data())
def test_embedding(device: str, data: st.DataObject) -> None:
    draw, rows, columns = data.draw, data.draw(sizes(33)), data.draw(sizes(65))
    integer = draw(st.sampled_from([torch.int32, torch.int64]))
    shape = draw(shapes(0, 3, 9))
    index = draw(tensors(device, shape, integer, partial(torch.randint, 0, rows), differentiable=False))
    options = {
        "padding_idx": draw(st.one_of(st.none(), st.integers(-rows, rows - 1))),
        "scale_grad_by_freq": draw(st.booleans()),
    }
    check(
        draw,
        partial(embedding, **options),
        partial(F.embedding, **options),
        index,
        draw(tensors(device, [rows, columns], draw(dtypes))),
        lengths=(1, 1, max(math.prod(shape), 1)),
    )


@given(st.data())
def test_embedding_bag(device: str, data: st.DataObject) -> None:
    draw, rows, columns = data.draw, data.draw(sizes(33)), data.draw(sizes(65))
    mode, dtype = draw(st.sampled_from(MODES)), draw(dtypes)
    integer = draw(st.sampled_from([torch.int32, torch.int64]))
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0).to(integer)
    shape = [sum(lengths)]
    index = draw(tensors(device, shape, integer, partial(torch.randint, 0, rows), differentiable=False))
    options = {"mode": mode, "padding_idx": draw(st.one_of(st.none(), st.integers(-rows, rows - 1)))}
    weighted = mode == "sum" and draw(st.booleans())

    def call(function: Callable[..., Tensor], index: Tensor, weight: Tensor, factor: Tensor | None) -> Tensor:
        return function(index, weight, offsets, per_sample_weights=factor, include_last_offset=True, **options)

    check(
        draw,
        partial(call, embedding_bag),
        partial(call, F.embedding_bag),
        index,
        draw(tensors(device, [rows, columns], dtype)),
        draw(tensors(device, shape, dtype)) if weighted else None,
        lengths=(max(lengths), 1, max(sum(lengths), 1), columns),
    )


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 1}),
    ("LSTM", {"proj_size": 7}),
]
# A 16-bit state is rounded at every step.
RECURRENT_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 8e-3}


@given(st.data())
def test_recurrent(device: str, data: st.DataObject) -> None:
    draw, (kind, own) = data.draw, data.draw(st.sampled_from(KINDS))
    # The derivative of relu jumps where rounding changes a sign.
    dtype = torch.float32 if own.get("nonlinearity") == "relu" else draw(dtypes)
    inputs, hidden = draw(sizes(17)), draw(sizes(33, least=8 if "proj_size" in own else 1))
    options = {
        "num_layers": draw(st.integers(1, 2)),
        **{name: draw(st.booleans()) for name in ("bias", "bidirectional", "batch_first")},
        **own,
    }
    ours = getattr(layers, kind)(inputs, hidden, **options, recompute=draw(st.booleans()), device="meta")
    exact = getattr(torch.nn, kind)(inputs, hidden, **options, device="meta")
    names = [name for name, _ in exact.named_parameters()]
    parameter_shapes = [list(parameter.shape) for parameter in exact.parameters()]
    form, batch = draw(st.sampled_from(["batch", "unbatched", "packed"])), [draw(sizes(17))]
    if form == "packed":
        lengths = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=batch[0], max_size=batch[0])))
        packed = pack_padded_sequence(torch.empty(5, batch[0], 1, device=device), lengths, enforce_sorted=False)
        shape = [len(packed.data), inputs]
    else:
        packed, batch = None, batch if form == "batch" else []
        steps = [draw(sizes(5))]
        shape = [*batch, *steps, inputs] if options["batch_first"] else [*steps, *batch, inputs]
    scaled = lambda shape, generator: torch.randn(shape, generator=generator) / hidden**0.5  # noqa: E731
    states = []
    if draw(st.booleans()):
        lead = [options["num_layers"] * (1 + options["bidirectional"]), *batch]
        states.append(draw(tensors(device, [*lead, options.get("proj_size") or hidden], dtype)))
        if kind == "LSTM":
            states.append(draw(tensors(device, [*lead, hidden], dtype)))
    note(f"{kind}({inputs}, {hidden}, {options}), {form}")

    def run(layer: Any, x: Tensor, *rest: Tensor) -> list[Tensor]:
        for name, tensor in zip(names, rest[len(states) :], strict=True):
            delattr(layer, name)
            setattr(layer, name, tensor)
        hx = None if not states else rest[:2] if kind == "LSTM" else rest[0]
        y, last = layer(x if packed is None else PackedSequence(x, *packed[1:]), hx)
        return [y.data if isinstance(y, PackedSequence) else y, *_listed(last)]

    check(
        draw,
        partial(run, ours),
        partial(run, exact),
        draw(tensors(device, shape, dtype)),
        *states,
        *(draw(tensors(device, size, dtype, scaled)) for size in parameter_shapes),
        error=RECURRENT_ERRORS[dtype],
    )


@st.composite
def optimizer_options(draw: Draw) -> tuple[str, dict[str, Any]]:
    names = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam"]
    name = draw(st.sampled_from(names))
    options: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.01, 0.1])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "maximize": draw(st.booleans()),
    }
    if name in ("RMSprop", "Adagrad", "Adadelta"):
        return name, {**options, "eps": draw(st.sampled_from([1e-6, 1e-3]))}
    if name in ("Adamax", "NAdam", "RAdam"):
        return name, {**options, "betas": draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9)]))}
    if name != "SGD":
        options["betas"] = draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9)]))
        return name, {**options, "eps": draw(st.sampled_from([1e-8, 1e-3])), "amsgrad": draw(st.booleans())}
    options["momentum"] = draw(st.sampled_from([0.0, 0.9]))
    if options["momentum"]:
        options["nesterov"] = draw(st.booleans())
        options["dampening"] = 0.0 if options["nesterov"] else draw(st.sampled_from([0.0, 0.3]))
    return name, options


@given(st.data())
def test_optimizers(device: str, data: st.DataObject) -> None:
    draw, (name, options) = data.draw, data.draw(optimizer_options())
    params: list[Tensor] = [
        draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes), differentiable=False, dense=True)).requires_grad_()
        for _ in range(draw(st.integers(1, 4)))
    ]
    exact = [param.detach().double().requires_grad_() for param in params]
    # 16-bit tensors round at every step, so each of their steps starts from our parameters.
    narrow = [param.dtype is not torch.float32 for param in params]
    optimizer, expected = getattr(optim, name)(params, **options), getattr(torch.optim, name)(exact, **options)
    for _ in range(3):
        for param, other, is_narrow in zip(params, exact, narrow, strict=True):
            param.grad = draw(tensors(device, param.shape, param.dtype, differentiable=False))
            other.grad = param.grad.double()
            if is_narrow:
                other.data.copy_(param.detach())
                for key, value in optimizer.state[param].items():
                    if key not in ("step", "mu_product"):
                        expected.state[other][key].copy_(value)
        gradients = [param.grad for param in params if param.grad is not None]
        before = [snapshot(gradient) for gradient in gradients]
        with counted_launches() as launches:
            optimizer.step()
        expected.step()
        assert launches or not any(param.numel() for param in params)
        for gradient, old in zip(gradients, before, strict=True):
            assert torch.equal(snapshot(gradient), old), "a gradient was changed"
        for param, other in zip(params, exact, strict=True):
            error = 20 * UNIT[torch.float32] if param.dtype is torch.float32 else 2 * UNIT[param.dtype]
            assert_near(param, other, error, 1.0, "parameter")
            for key, value in expected.state[other].items():
                assert_near(optimizer.state[param][key], value, error, 0.1, key)


@given(st.data())
def test_clipping(device: str, data: st.DataObject) -> None:
    draw = data.draw
    params = [
        torch.zeros(draw(shapes(0, 3, 17)), dtype=draw(dtypes), device=device) for _ in range(draw(st.integers(1, 4)))
    ]
    exact = [param.double() for param in params]
    for param, other in zip(params, exact, strict=True):
        param.grad = draw(tensors(device, param.shape, param.dtype, differentiable=False, dense=True))
        if 0 in param.grad.stride() and param.numel() > 1:  # expanded: cannot be written
            param.grad = param.grad.clone()
        other.grad = param.grad.double()
    limit, norm_type = draw(st.sampled_from([0.1, 1.0, 100.0])), draw(st.sampled_from([1.0, 2.0, 3.0, math.inf]))
    error = {param.dtype: 4 * UNIT[param.dtype] for param in params}
    if draw(st.booleans()):
        clip_grad_value_(params, limit)
        torch.nn.utils.clip_grad_value_(exact, limit)
    else:
        full = [other for other in exact if other.numel()]  # PyTorch knows no infinity norm of nothing
        assume(full)
        norm = clip_grad_norm_(params, limit, norm_type)
        expected = torch.nn.utils.clip_grad_norm_(full, limit, norm_type)
        if norm_type == 3.0:  # PyTorch's function, which rounds norms to each gradient's dtype
            error = dict.fromkeys(error, 1e-2)
        assert_near(norm, expected, 1e-2 if norm_type == 3.0 else 1e-5, 1e-3, "norm")
    for param, other in zip(params, exact, strict=True):
        assert param.grad is not None and other.grad is not None
        assert_near(param.grad, other.grad, error[param.dtype], 1e-3, "gradient")

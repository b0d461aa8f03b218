"""The cases of the compile matrix: calls of our launchers that together reach every tile of the rules.

Tensors have no memory. Problems are found by querying the tile rules: from a large grid of sizes, the first that gets
each distinct tile. Flags are combined so that every pair of values occurs (`pairwise`), not every combination.
A new column adds a function here and names it in `COLUMNS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from tinynet_engines.offline.targets import Target
from tinynet_kernels import (
    activation,
    batched_product,
    clip_grad,
    cosine_similarity,
    cross_entropy,
    ctc_loss,
    distance,
    dropout,
    elementwise_loss,
    embedding,
    embedding_bag,
    glu,
    group_norm,
    lamb,
    layout,
    linear,
    linear_backward,
    linear_cross_entropy,
    local_response_norm,
    loss_functions,
    multi_margin_loss,
    multilabel_margin_loss,
    nll_loss,
    optimizer,
    optimizer_rules,
    prelu,
    recurrent,
    reduction,
    rrelu,
    softmax,
    tiles,
    triplet_margin_loss,
    upsample,
)
from tinynet_kernels.activation_spec import IDENTITY, PARAMETERS, Activation
from tinynet_kernels.arithmetic import arithmetic, multiplied
from tinynet_kernels.batch_norm.backward import NormGradients, norm_backward
from tinynet_kernels.batch_norm.forward import norm_forward
from tinynet_kernels.conv import forward, input_gradient, pooled_gradient, weight_gradient
from tinynet_kernels.conv.spec import ConvolutionSpec, Normalization
from tinynet_kernels.layer_norm.backward import layer_norm_backward
from tinynet_kernels.layer_norm.forward import layer_norm_forward
from tinynet_kernels.loss_spec import Loss
from tinynet_kernels.optimizer_spec import Rule
from tinynet_kernels.pool import maximum as pool_maximum
from tinynet_kernels.pool import mean as pool_mean
from tinynet_kernels.pool import unpool
from tinynet_kernels.pool.spec import Axis, Mean, Window, window_of
from tinynet_kernels.recurrent import GATES
from tinynet_kernels.recurrent.layer import recurrent_backward, recurrent_forward

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = (BF16, FP32, FP16)
FUSED_FLAGS = {
    "activation": ("identity", "relu", "gelu"),  # no derivative, one from the output, one from the input
    "bias": (True, False),
    "save": (True, False),
}
Problem = TypeVar("Problem")


class Case(NamedTuple):
    """One call whose launches are checked.

    Attributes:
        name: launcher, problem, dtype and flags; unique within its column and target.
        run: the call, which launches kernels.
        aligned: whether rows begin at multiples of 16 bytes, so that narrow loads are a fault.
    """

    name: str
    run: Callable[[], object]
    aligned: bool = True


def cases(target: Target) -> dict[str, list[Case]]:
    """Every case for `target`, by column."""
    return {name: list(column(target)) for name, column in COLUMNS.items()}


def pairwise(options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Few rows in which every pair of values of two options occurs, by a greedy choice."""
    names = list(options)
    columns = list(itertools.combinations(range(len(names)), 2))
    choices = [range(len(options[name])) for name in names]
    missing = {(i, a, j, b) for i, j in columns for a in choices[i] for b in choices[j]}
    rows = []
    while missing:
        i, a, j, b = min(missing)
        row = {i: a, j: b}
        for column in range(len(names)):
            if column not in row:
                new = [sum(_pair(column, value, *each) in missing for each in row.items()) for value in choices[column]]
                row[column] = new.index(max(new))
        missing -= {(i, row[i], j, row[j]) for i, j in columns}
        rows.append({name: options[name][row[column]] for column, name in enumerate(names)})
    return rows


def _pair(i: int, a: int, j: int, b: int) -> tuple[int, int, int, int]:
    return (i, a, j, b) if i < j else (j, b, i, a)


def first_of_each(problems: Iterable[Problem], key: Callable[[Problem], Hashable]) -> list[Problem]:
    """The first problem of each distinct key."""
    found: dict[Hashable, Problem] = {}
    for problem in problems:
        found.setdefault(key(problem), problem)
    return list(found.values())


def _rule_target(target: Target) -> tiles.Target:
    """The target as the tile rules see it under inspection."""
    return tiles.Target(target.backend, target.architecture, target.multiprocessors, target.shared_per_block)


def _empty(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _text(dtype: torch.dtype) -> str:
    return {FP32: "fp32", BF16: "bf16", FP16: "fp16"}[dtype]


# ---- activation, dropout, embedding, loss, optimizer, layout ---------------------------------------------------------


def activation_cases(target: Target) -> Iterator[Case]:
    """Every function and derivative; the fused backward with and without its two results."""
    functions = [Activation(name) for name in PARAMETERS]
    for function, dtype in zip(functions[1:], itertools.cycle(DTYPES), strict=False):  # the first is the identity
        x = _empty(1 << 20, dtype=dtype)
        name = f"{function.name} {_text(dtype)}"
        yield Case(f"forward {name}", partial(activation.activation_forward, x, function))
        yield Case(f"derivative {name}", partial(activation.activation_input_gradient, x, x, function))
    for dtype, (rows, columns) in itertools.product(DTYPES, ((65536, 512), (100, 10), (64, 1 << 16))):
        x, name = _empty(rows, 2 * columns, dtype=dtype), f"{_text(dtype)} {(rows, columns)}"
        yield Case(f"glu forward {name}", partial(glu.glu_forward, x, 1))
        yield Case(f"glu backward {name}", partial(glu.glu_backward, _empty(rows, columns, dtype=dtype), x, 1))
        for shape in ((rows, columns, 1), (8, rows // 4, columns)):
            x, weight = _empty(*shape, dtype=dtype), _empty(shape[1], dtype=dtype)
            yield Case(f"prelu forward {_text(dtype)} {shape}", partial(prelu.prelu_forward, x, weight))
            run = partial(prelu.prelu_backward, x, x, weight, want_x=True, want_weight=True)
            yield Case(f"prelu backward {_text(dtype)} {shape}", run)
    flags = {
        "shape": ((65536, 512), (256, 128), (100, 10)),
        "dtype": DTYPES,
        "wanted": ((True, True), (True, False), (False, True)),
    }
    for function, row in zip(functions, itertools.cycle(pairwise(flags)), strict=False):
        grad, (want_dz, want_bias) = _empty(*row["shape"], dtype=row["dtype"]), row["wanted"]
        has_activation = function.name != "identity"
        run = partial(
            activation.activation_backward,
            grad,
            grad if has_activation else None,
            function,
            want_dz=want_dz and has_activation,
            want_bias=want_bias,
        )
        yield Case(f"backward {function.name} {_flags(row)}", run, aligned=row["shape"][1] % 8 == 0)
    for dtype, parts, elements in itertools.product(DTYPES, (28, 196), (288, 18432)):
        sums = _empty(parts, elements, dtype=FP32), _empty(784, 64, dtype=FP32), _empty(elements, dtype=dtype)
        yield Case(f"sum_two {_text(dtype)} {(parts, elements)}", partial(reduction.sum_two, *sums))


def dropout_cases(target: Target) -> Iterator[Case]:
    """Of elements and of channels, one kernel for forward and backward each; and rrelu, which draws alike."""
    for dtype in DTYPES:
        x, seed = _empty(4096, 512, dtype=dtype), _empty(1, dtype=torch.int64)
        scale = dropout.Scale(0.5)
        yield Case(f"apply {_text(dtype)}", partial(dropout.dropout_apply, x, seed, 0.5, scale))
        yield Case(f"rrelu {_text(dtype)}", partial(rrelu.rrelu_apply, x, seed, None, 0.1, 0.3))
        yield Case(f"rrelu gradient {_text(dtype)}", partial(rrelu.rrelu_apply, x, seed, x, 0.1, 0.3))
        for shape, channels in (((64, 128, 784), (64, 128, 1)), ((64, 784, 128), (64, 1, 128))):
            x, keep = _empty(*shape, dtype=dtype), _empty(*channels, dtype=dtype)
            yield Case(f"channels {_text(dtype)} {shape}", partial(dropout.channel_dropout_apply, x, keep, scale))


def embedding_cases(target: Target) -> Iterator[Case]:
    """Rows of several widths; the gradient with its options."""
    flags = {"width": (512, 64, 100, 3), "dtype": DTYPES, "padding_idx": (None, 0), "by_frequency": (False, True)}
    for row in pairwise(flags):
        index = _empty(8192, dtype=torch.int64)
        weight, aligned = _empty(1000, row["width"], dtype=row["dtype"]), row["width"] % 8 == 0
        grad = _empty(8192, row["width"], dtype=row["dtype"])
        yield Case(f"forward {_flags(row)}", partial(embedding.embedding_forward, index, weight), aligned)
        options = (grad, index, 1000, row["padding_idx"], row["by_frequency"])
        yield Case(f"backward {_flags(row)}", partial(embedding.embedding_backward, *options), aligned)


def embedding_bag_cases(target: Target) -> Iterator[Case]:
    """Bags of rows of several widths, in every mode; their gradients."""
    flags = {"width": (512, 64, 100, 3), "dtype": DTYPES, "mode": ("sum", "mean", "max"), "weighted": (False, True)}
    for row in pairwise(flags):
        run, aligned = partial(_embedding_bag, row), row["width"] % 8 == 0
        yield Case(f"bags {_flags(row)}", run, aligned)


def _embedding_bag(row: Mapping[str, Any]) -> None:
    index, offsets = _empty(8192, dtype=torch.int64), _empty(513, dtype=torch.int64)
    weight = _empty(1000, row["width"], dtype=row["dtype"])
    factor = _empty(8192, dtype=row["dtype"]) if row["weighted"] and row["mode"] == "sum" else None
    y, count, argmax = embedding_bag.embedding_bag_forward(index, offsets, weight, factor, row["mode"], 0)
    bags = embedding.Bags(index, factor, count, argmax)
    embedding.embedding_backward(y, index, 1000, 0, False, bags)
    if factor is not None:
        embedding_bag.embedding_bag_factor_gradient(y, index, index, weight, 0)


def loss_cases(target: Target) -> Iterator[Case]:
    """Cross-entropy and the losses of each element, with their options."""
    flags = {
        "shape": ((256, 10, 1), (4096, 1000, 1), (8, 21, 4096), (512, 50304, 1)),
        "dtype": DTYPES,
        "probabilities": (False, True),
        "weighted": (False, True),
        "smoothing": (0.0, 0.1),
        "reduction": ("mean", "sum", "none"),
    }
    for row in pairwise(flags):
        yield Case(f"cross_entropy {_flags(row)}", partial(_cross_entropy, row), aligned=False)
    for dtype, (rows, smoothing) in itertools.product(DTYPES, ((512, 0.1), (256, 0.1), (512, 0.0))):
        # a few classes of all rows in one program, where its registers are enough
        row = {"shape": (rows, 10, 1), "dtype": dtype, "probabilities": False, "weighted": True}
        row |= {"reduction": "mean", "smoothing": smoothing}
        yield Case(f"cross_entropy {_flags(row)}", partial(_cross_entropy, row), aligned=False)
    names = tuple(_ELEMENTWISE)
    layouts = ("flat", "vectors")
    for row in pairwise({"loss": names, "dtype": DTYPES, "reduction": ("all", "rows", "none"), "layout": layouts}):
        yield Case(f"elementwise {_flags(row)}", partial(_elementwise_loss, row))
    for elements in (2560, 1 << 22, 1001):
        row = {"loss": "mse", "dtype": torch.float32, "reduction": "all", "layout": "flat", "elements": elements}
        yield Case(f"elementwise {_flags(row)}", partial(_elementwise_loss, row), aligned=elements % 16 == 0)


def _cross_entropy(row: Mapping[str, Any]) -> None:
    N, C, S = row["shape"]
    logits = _empty(N, C, S, dtype=row["dtype"])
    target = logits if row["probabilities"] else _empty(N, S, dtype=torch.int64)
    weight = _empty(C, dtype=row["dtype"]) if row["weighted"] else None
    options = (-100, row["reduction"], row["smoothing"])
    result, divisor, saved = cross_entropy.cross_entropy_forward(logits, target, weight, *options, save=True)
    assert saved is not None
    cross_entropy.cross_entropy_backward(
        torch.empty_like(result),
        logits,
        target,
        weight,
        divisor,
        saved,
        *options,
        want_dx=True,
        want_dtarget=row["probabilities"],
    )


# Every function of losses, with the parameters that choose its branches.
_ELEMENTWISE = {
    **{name: Loss(name, limit=0.5, eps=1e-6) for name in loss_functions.FUNCTIONS},
    "kl_div_log": Loss("kl_div", log_space=True),
    "poisson_nll_log": Loss("poisson_nll", log_space=True, full=True),
    "weighted_bce_with_logits": Loss("bce_with_logits"),
}


def _elementwise_loss(row: Mapping[str, Any]) -> None:
    """With every gradient; "vectors": the weight is one for each row, and the third operand one for each column."""
    loss = _ELEMENTWISE[row["loss"]]
    rows, columns = (1, row["elements"]) if "elements" in row else (4096, 1000)
    x, weight, other = _empty(rows, columns, dtype=row["dtype"]), None, None
    if row["layout"] == "vectors":
        weight = _empty(rows, 1, dtype=row["dtype"]).expand(rows, columns)
    if row["loss"] in ("gaussian_nll", "margin_ranking", "weighted_bce_with_logits"):
        other = x if weight is None else _empty(columns, dtype=row["dtype"]).expand(rows, columns)
    operands = (x, x, other, weight)
    result = elementwise_loss.elementwise_loss_forward(operands, loss, row["reduction"], x.numel())
    has_target_gradient = row["loss"] not in ("hinge_embedding", "soft_margin")
    has_other_gradient = row["loss"] in ("gaussian_nll", "margin_ranking")
    wanted = (True, has_target_gradient, has_other_gradient, weight is not None)
    options = (loss, row["reduction"], x.numel(), wanted)
    elementwise_loss.elementwise_loss_backward(torch.empty_like(result), operands, *options)


def norm_cases(target: Target) -> Iterator[Case]:
    """Layer, RMS, group and local response normalization: whole and long rows, both memory orders."""
    flags = {
        "shape": ((4096, 768), (512, 4096), (100, 50), (64, 32000)),
        "dtype": DTYPES,
        "activation": FUSED_FLAGS["activation"],
        "center": (True, False),
        "residual": (False, True),
        "narrow": (True, False),
    }
    for row in pairwise(flags):
        yield Case(f"layer_norm {_flags(row)}", partial(_layer_norm, row), aligned=row["shape"][1] % 8 == 0)
    flags = {
        "shape": ((8, 320, 1024), (4, 64, 50176), (16, 512, 49), (64, 256, 1)),
        "dtype": DTYPES,
        "activation": FUSED_FLAGS["activation"],
        "channels_last": (False, True),
    }
    for row in pairwise(flags):
        yield Case(f"group_norm {_flags(row)}", partial(_group_norm, row), aligned=False)
    for row in pairwise({name: flags[name] for name in ("shape", "dtype", "channels_last")}):
        yield Case(f"local_response_norm {_flags(row)}", partial(_local_response_norm, row), aligned=False)


def _layer_norm(row: Mapping[str, Any]) -> None:
    x = _empty(*row["shape"], dtype=row["dtype"])
    weight = _empty(row["shape"][1], dtype=row["dtype"] if row["narrow"] else FP32)
    bias, residual = weight if row["center"] else None, x if row["residual"] else None
    function, center = Activation(row["activation"]), row["center"]
    y, total, mean, rstd = layer_norm_forward(x, residual, weight, bias, 1e-5, function, center=center, save=True)
    assert rstd is not None
    wants = {"want_x": True, "want_weight": True, "want_bias": center}
    layer_norm_backward(y, total, x, weight, bias, mean, rstd, function, **wants)


def _images(row: Mapping[str, Any]) -> torch.Tensor:
    N, C, S = row["shape"]
    if row["channels_last"]:
        return _empty(N, S, C, dtype=row["dtype"]).transpose(1, 2)
    return _empty(N, C, S, dtype=row["dtype"])


def _group_norm(row: Mapping[str, Any]) -> None:
    x, weight, function = _images(row), _empty(row["shape"][1], dtype=row["dtype"]), Activation(row["activation"])
    y, mean, variance = group_norm.group_norm_forward(x, weight, weight, 32, 1e-5, function, save=True)
    assert mean is not None and variance is not None
    wants = {"want_x": True, "want_weight": True, "want_bias": True}
    group_norm.group_norm_backward(y, x, weight, weight, mean, variance, 32, 1e-5, function, **wants)


def _local_response_norm(row: Mapping[str, Any]) -> None:
    x = _images(row)
    y, scale = local_response_norm.local_response_norm_forward(x, 5, 1e-4, 0.75, 1.0, save=True)
    assert scale is not None
    local_response_norm.local_response_norm_backward(y, x, scale, 5, 1e-4, 0.75, 1.0)


def softmax_cases(target: Target) -> Iterator[Case]:
    """Rows and columns, short and long."""
    flags = {
        "shape": ((4096, 1000, 1), (64, 32000, 1), (8, 21, 16384), (4, 1000, 196), (100, 10, 1)),
        "dtype": DTYPES,
        "function": ("softmax", "log_softmax", "softmin"),
    }
    for row in pairwise(flags):
        x = _empty(*row["shape"], dtype=row["dtype"])
        aligned = row["shape"][2] % 8 == 0 or (row["shape"][2] == 1 and row["shape"][1] % 8 == 0)
        yield Case(f"forward {_flags(row)}", partial(softmax.softmax_forward, x, row["function"]), aligned)
        yield Case(f"backward {_flags(row)}", partial(softmax.softmax_backward, x, x, row["function"]), aligned)


def label_loss_cases(target: Target) -> Iterator[Case]:
    """Losses of rows with one label or several."""
    flags = {
        "shape": ((256, 10), (4096, 1000), (512, 50304)),
        "dtype": DTYPES,
        "weighted": (False, True),
        "reduction": ("mean", "sum", "none"),
        "p": (1, 2),
    }
    for row in pairwise(flags):
        yield Case(f"nll {_flags(row)}", partial(_nll, row), aligned=False)
        yield Case(f"multi_margin {_flags(row)}", partial(_multi_margin, row), aligned=False)
        yield Case(f"multilabel_margin {_flags(row)}", partial(_multilabel_margin, row), aligned=False)


def _nll(row: Mapping[str, Any]) -> None:
    N, C = row["shape"]
    x, target = _empty(N, C, dtype=row["dtype"]), _empty(N, dtype=torch.int64)
    weight = _empty(C, dtype=row["dtype"]) if row["weighted"] else None
    loss, divisor = nll_loss.nll_loss_forward(x, target, weight, -100, row["reduction"])
    nll_loss.nll_loss_backward(torch.empty_like(loss), x, target, weight, divisor, -100, row["reduction"])


def _multi_margin(row: Mapping[str, Any]) -> None:
    N, C = row["shape"]
    x, target = _empty(N, C, dtype=row["dtype"]), _empty(N, dtype=torch.int64)
    weight = _empty(C, dtype=row["dtype"]) if row["weighted"] else None
    options = row["p"], 1.0, row["reduction"]
    loss, saved = multi_margin_loss.multi_margin_loss_forward(x, target, weight, *options, save=True)
    assert saved is not None
    multi_margin_loss.multi_margin_loss_backward(torch.empty_like(loss), x, target, weight, saved, *options)


def _multilabel_margin(row: Mapping[str, Any]) -> None:
    x, target = _empty(*row["shape"], dtype=row["dtype"]), _empty(*row["shape"], dtype=torch.int64)
    loss, saved = multilabel_margin_loss.multilabel_margin_loss_forward(x, target, row["reduction"])
    grad = torch.empty_like(loss)
    multilabel_margin_loss.multilabel_margin_loss_backward(grad, x, target, saved, row["reduction"])


def distance_cases(target: Target) -> Iterator[Case]:
    """Similarities and distances along either axis, and the losses of them."""
    flags = {
        "shape": ((256, 10, 1), (4096, 1000, 1), (8, 64, 4096)),
        "dtype": DTYPES,
        "p": (2.0, 1.0, float("inf"), 3.0),
        "reduction": ("mean", "sum", "none"),
        "swap": (False, True),
    }
    for row in pairwise(flags):
        yield Case(f"vectors {_flags(row)}", partial(_vectors, row), aligned=False)
        yield Case(f"triplet {_flags(row)}", partial(_triplet, row), aligned=False)


def _vectors(row: Mapping[str, Any]) -> None:
    x = _empty(*row["shape"], dtype=row["dtype"])
    labels, reduction = _empty(x.shape[0] * x.shape[2], dtype=torch.int64), row["reduction"]
    wanted = {"want_dx1": True, "want_dx2": row["swap"]}
    for target, options in ((None, (1e-8, 0.0, "none")), (labels, (1e-12, 0.1, reduction))):
        y, saved = cosine_similarity.cosine_similarity_forward(x, x, target, *options, save=True)
        assert saved is not None
        cosine_similarity.cosine_similarity_backward(torch.empty_like(y), x, x, saved, options[2], **wanted)
    y, saved = distance.pairwise_distance_forward(x, x, row["p"], 1e-6, save=True)
    assert saved is not None
    distance.pairwise_distance_backward(torch.empty_like(y), x, x, saved, row["p"], 1e-6, **wanted)


def _triplet(row: Mapping[str, Any]) -> None:
    x = _empty(row["shape"][0], row["shape"][1], dtype=row["dtype"])
    options = 1.0, row["p"], 1e-6, row["swap"], row["reduction"]
    loss, saved = triplet_margin_loss.triplet_margin_loss_forward(x, x, x, *options, save=True)
    assert saved is not None
    grad = torch.empty_like(loss)
    triplet_margin_loss.triplet_margin_loss_backward(grad, x, x, x, saved, *options, (True, True, row["swap"]))


def ctc_loss_cases(target: Target) -> Iterator[Case]:
    """Short and long targets."""
    flags = {"size": ((100, 16, 50, 20), (400, 8, 5000, 200)), "dtype": DTYPES, "zero_infinity": (False, True)}
    for row in pairwise(flags):
        yield Case(f"ctc {_flags(row)}", partial(_ctc, row), aligned=False)


def _ctc(row: Mapping[str, Any]) -> None:
    T, N, C, S = row["size"]
    x, targets = _empty(T, N, C, dtype=row["dtype"]), _empty(N, S, dtype=torch.int64)
    given = x, targets, _empty(N, dtype=torch.int64), _empty(N, dtype=torch.int64)
    _, loss, alpha = ctc_loss.ctc_loss_forward(*given, 0, row["zero_infinity"])
    ctc_loss.ctc_loss_backward(_empty(N, dtype=row["dtype"]), *given, loss, alpha, 0, row["zero_infinity"])


def linear_cross_entropy_cases(target: Target) -> Iterator[Case]:
    """The kernel between the products, and the product that adds to a weight's gradient."""
    flags = {
        "shape": ((512, 64, 1000, 1), (256, 64, 32000, 1), (64, 64, 21, 256)),
        "dtype": DTYPES,
        "probabilities": (False, True),
        "weighted": (False, True),
        "smoothing": (0.0, 0.1),
        "reduction": ("mean", "none"),
    }
    for row in pairwise(flags):
        yield Case(f"linear_cross_entropy {_flags(row)}", partial(_linear_cross_entropy, row), aligned=False)


def _linear_cross_entropy(row: Mapping[str, Any]) -> None:
    N, K, C, S = row["shape"]
    x, linear_weight = _empty(N, K, dtype=row["dtype"]), _empty(C * S, K, dtype=row["dtype"])
    probabilities = row["probabilities"]
    labels = _empty(N, C, S, dtype=row["dtype"]) if probabilities else _empty(N, S, dtype=torch.int64)
    weight = _empty(C, dtype=row["dtype"]) if row["weighted"] else None
    options = linear_cross_entropy.Options(-100, row["reduction"], row["smoothing"], N // 2, True)
    linear_cross_entropy.linear_cross_entropy_losses(
        x,
        linear_weight,
        None,
        labels,
        weight,
        _empty(1 if row["reduction"] == "mean" else N * S),
        options,
        wanted=(True, True, True, probabilities),
    )


def optimizer_cases(target: Target) -> Iterator[Case]:
    """SGD, Adam and the other rules with their options, over aligned tensors and others, with numbers on the device."""
    for row in pairwise({
        "dtype": (FP32, BF16),
        "momentum": (0.9, 0.0),
        "nesterov": (False, True),
        "weight_decay": (0.0, 0.01),
        "maximize": (False, True),
        "offset": (0, 1),
        "on_device": (False, True),
    }):  # fmt: skip
        if not (row["nesterov"] and not row["momentum"]):
            yield Case(f"sgd {_flags(row)}", partial(_sgd, row), aligned=row["offset"] == 0)
    for row in pairwise({
        "dtype": (FP32, BF16),
        "amsgrad": (False, True),
        "decoupled_weight_decay": (True, False),
        "weight_decay": (0.01, 0.0),
        "maximize": (False, True),
        "offset": (0, 1),
        "on_device": (False, True),
    }):  # fmt: skip
        yield Case(f"adam {_flags(row)}", partial(_adam, row), aligned=row["offset"] == 0)
    for row in pairwise({
        "rule": tuple(RULES),
        "dtype": (FP32, BF16),
        "weight_decay": (0.0, 0.01),
        "offset": (0, 1),
        "on_device": (False, True),
    }):  # fmt: skip
        yield Case(f"rule {_flags(row)}", partial(_rule, row), aligned=row["offset"] == 0)
    for row in pairwise(
        {"dtype": (FP32, BF16), "weight_decay": (0.0, 0.01), "maximize": (False, True), "offset": (0, 1)}
    ):
        yield Case(f"lamb {_flags(row)}", partial(_lamb, row), aligned=row["offset"] == 0)
    for row in pairwise({"dtype": (FP32, BF16), "norm": ("1", "2", "inf"), "offset": (0, 1)}):
        yield Case(f"clip {_flags(row)}", partial(_clip, row), aligned=row["offset"] == 0)
    for dtype in (BF16, FP32):
        for M, N, K in ((32, 32, 288), (128, 576, 128), (1024, 1024, 4096), (17, 33, 63)):
            name = f"batched_product {M}x{N}x{K} {_text(dtype)}"
            yield Case(name, partial(_batched_product, M, N, K, dtype), aligned=N % 8 == 0 == K % 8)


# Rules in their largest form, and how many numbers they have.
RULES = {
    "rmsprop": (Rule("rmsprop", 3, centered=True, has_momentum=True), 5),
    "adagrad": (Rule("adagrad", 1), 2),
    "adadelta": (Rule("adadelta", 2), 4),
    "adamax": (Rule("adamax", 2), 5),
    "nadam": (Rule("nadam", 2), 8),
    "radam": (Rule("radam", 2), 7),
    "lion": (Rule("lion", 1), 5),
}


def _rule(row: Mapping[str, Any]) -> None:
    rule, numbers = RULES[row["rule"]]
    rule = rule._replace(has_weight_decay=row["weight_decay"] != 0)
    table = optimizer.PointerTable([_parameters(row)] * (2 + rule.states))
    found_inf = _empty(1, dtype=FP32) if row["on_device"] else None
    optimizer_rules.rule_step(table, rule, row["weight_decay"], 1.0, *[0.5] * numbers, found_inf=found_inf)


def _lamb(row: Mapping[str, Any]) -> None:
    table = optimizer.PointerTable([_parameters(row)] * 4)
    lamb.lamb_step(
        table,
        step=1.0,
        lr=0.1,
        beta1=0.9,
        beta2=0.999,
        eps=1e-6,
        weight_decay=row["weight_decay"],
        maximize=row["maximize"],
    )


def _clip(row: Mapping[str, Any]) -> None:
    table, norm = optimizer.PointerTable([_parameters(row)] * 2), row["norm"]
    partial_norms = clip_grad.gradient_partials([table], norm, [()])
    clip_grad.clip_norm([table], partial_norms, 1.0, norm, [()])
    clip_grad.clip_value(table, 1.0, ())


def _batched_product(M: int, N: int, K: int, dtype: torch.dtype) -> None:
    """The products of Newton and Schulz's iteration: with a transposed operand, and with a third matrix added."""
    a = _empty(4, M, K, dtype=dtype)
    batched_product.batched_product(a, a.mT)
    batched_product.batched_product(a, _empty(4, K, N, dtype=dtype), _empty(4, M, N, dtype=dtype), 1.0, 0.5)


def _parameters(row: Mapping[str, Any]) -> list[torch.Tensor]:
    sizes = (401408, 128, 288, 10)
    return [_empty(size + row["offset"], dtype=row["dtype"])[row["offset"] :] for size in sizes]


def _sgd(row: Mapping[str, Any]) -> None:
    parameters = _parameters(row)
    optimizer.sgd_step(
        optimizer.PointerTable([parameters] * (3 if row["momentum"] else 2)),
        lr=0.1,
        momentum=row["momentum"],
        dampening=0.0,
        weight_decay=row["weight_decay"],
        nesterov=row["nesterov"],
        maximize=row["maximize"],
        found_inf=_empty(1, dtype=FP32) if row["on_device"] else None,
    )


def _adam(row: Mapping[str, Any]) -> None:
    parameters = _parameters(row)
    optimizer.adam_step(
        optimizer.PointerTable([parameters] * (5 if row["amsgrad"] else 4)),
        amsgrad=row["amsgrad"],
        step=1,
        lr=0.001,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=row["weight_decay"],
        decoupled_weight_decay=row["decoupled_weight_decay"],
        maximize=row["maximize"],
        found_inf=_empty(1, dtype=FP32) if row["on_device"] else None,
    )


def upsample_cases(target: Target) -> Iterator[Case]:
    """Bilinear resampling in both layouts, with and without aligned corners, both ways."""
    flags = {"channels_last": (False, True), "dtype": DTYPES, "align_corners": (False, True), "H": (28, 7)}
    for row in pairwise(flags):
        H, layout = row["H"], torch.channels_last if row["channels_last"] else torch.contiguous_format
        x = _empty(16, 64, H, H, dtype=row["dtype"]).to(memory_format=layout)
        grad = _empty(16, 64, 2 * H, 2 * H, dtype=row["dtype"]).to(memory_format=layout)
        options = {"align_corners": row["align_corners"], "channels_last": row["channels_last"]}
        run = partial(upsample.upsample_forward, x, (2 * H, 2 * H), (), **options)
        yield Case(f"forward {_flags(row)}", run, aligned=False)
        run = partial(upsample.upsample_backward, grad, (H, H), (), **options)
        yield Case(f"backward {_flags(row)}", run, aligned=False)


def layout_cases(target: Target) -> Iterator[Case]:
    """NCHW to channels_last and back, for many and few channels; products and copies of any strides."""
    for dtype, shape in itertools.product(DTYPES, ((64, 128, 28, 28), (256, 3, 32, 32), (8, 64, 7, 7))):
        x = _empty(*shape, dtype=dtype)
        name, aligned = f"{shape} {_text(dtype)}", shape[1] % 8 == 0 and shape[2] * shape[3] % 16 == 0
        yield Case(f"to_channels_last {name}", partial(layout.to_channels_last, x), aligned)
        last = x.contiguous(memory_format=torch.channels_last)
        yield Case(f"to_contiguous {name}", partial(layout.to_contiguous, last), aligned)
    for dtype in DTYPES:
        y, a, b = _empty(8, 12, 197, 64, dtype=dtype), _empty(8, 197, 12, 64, dtype=dtype), _empty(8, dtype=dtype)
        strides = [y.stride(), a.transpose(1, 2).stride(), (1, 0, 0, 0)]
        for function, operands in ((multiplied, (a, b)), (None, (a,))):
            name = f"{'copy' if function is None else 'product'} {_text(dtype)}"
            run = partial(arithmetic, function, y, operands, y.shape, strides[: 1 + len(operands)])
            yield Case(f"arithmetic {name}", run, aligned=False)


# ---- linear ----------------------------------------------------------------------------------------------------------

ROWS = (4096, 65536, 16384, 1024, 256, 64, 16)
COLUMNS_OUT = (4096, 1024, 512, 128, 64, 16)
DEPTHS = (4096, 1024, 784, 128, 64, 16)
SPLIT_PRODUCTS = ((128, 64, 3136), (72, 40, 1100), (16, 130, 4101))  # few tiles, long reductions
DEEP_PRODUCTS = ((128, 256, 784), (64, 64, 1024))  # few tiles, deep steps
JOINED_LAYERS = ((128, 64, 3136), (128, 256, 784), (100, 10, 72), (33, 17, 63))  # all gradients in one launch


def linear_cases(target: Target) -> Iterator[Case]:
    """Each of the three products over every tile that the rule gives any problem, then uneven and odd sizes."""
    activations, others = (itertools.cycle(list(PARAMETERS)[1:]) for _ in range(2))
    for dtype in DTYPES:
        sizes = _linear_sizes(dtype, _rule_target(target))
        flags = itertools.cycle(pairwise(FUSED_FLAGS))
        for (M, N, K), row in zip(sizes, flags, strict=False):
            x, weight = _empty(M, K, dtype=dtype), _empty(N, K, dtype=dtype)
            bias = _empty(N, dtype=dtype) if row["bias"] else None
            function = Activation(row["activation"])
            run = partial(linear.linear_forward, x, weight, bias, function, save=row["save"])
            yield Case(f"forward {_text(dtype)} {(M, N, K)} {_flags(row)}", run, aligned=K % 8 == 0)
        for M, N, K in sizes:  # a product [M, K] x [K, N], as the rule takes it
            name, aligned = f"{_text(dtype)} {(M, N, K)}", N % 8 == 0 and K % 8 == 0 and M % 8 == 0
            dz, weight = _empty(M, K, dtype=dtype), _empty(K, N, dtype=dtype)
            yield Case(f"input_gradient {name}", partial(linear.linear_input_gradient, dz, weight), aligned)
            saved = _empty(M, N, dtype=dtype)
            for function in (IDENTITY, Activation(next(activations))):
                run = partial(linear.linear_hidden_gradient, dz, weight, saved, function, want_bias=True)
                yield Case(f"hidden_gradient {name} {function}", run, aligned)
            dz, x = _empty(K, M, dtype=dtype), _empty(K, N, dtype=dtype)
            yield Case(f"weight_gradient {name}", partial(linear.linear_weight_gradient, dz, x), aligned)
        for M, N, K in SPLIT_PRODUCTS:
            x, weight, bias = _empty(M, K, dtype=dtype), _empty(N, K, dtype=dtype), _empty(N, dtype=dtype)
            run = partial(linear.linear_forward, x, weight, bias, Activation(next(activations)), save=True)
            yield Case(f"split forward {_text(dtype)} {(M, N, K)}", run, aligned=K % 8 == 0)
            run = partial(linear.linear_input_gradient, x, _empty(K, N, dtype=dtype))
            yield Case(f"split input_gradient {_text(dtype)} {(M, N, K)}", run, aligned=K % 8 == 0 and N % 8 == 0)
        for M, N, K in DEEP_PRODUCTS:
            x, weight, bias = _empty(M, K, dtype=dtype), _empty(N, K, dtype=dtype), _empty(N, dtype=dtype)
            run = partial(linear.linear_forward, x, weight, bias, Activation(next(others)), save=True)
            yield Case(f"deep forward {_text(dtype)} {(M, N, K)}", run)
            run = partial(linear.linear_hidden_gradient, x, weight.mT.contiguous(), None, IDENTITY, want_bias=True)
            yield Case(f"deep hidden_gradient {_text(dtype)} {(M, N, K)}", run)
        for (M, N, K), want_input in itertools.product(JOINED_LAYERS, (True, False)):
            dz, x, weight = _empty(M, N, dtype=dtype), _empty(M, K, dtype=dtype), _empty(N, K, dtype=dtype)
            below = Activation(next(others)) if want_input else IDENTITY
            options = {"want_input": want_input, "want_bias": True}
            if linear_backward.is_small(M, N, K, dtype, _rule_target(target)):
                run = partial(linear_backward.joined_gradients, dz, x, weight, x, below, **options)
                yield Case(f"joined {_text(dtype)} {(M, N, K)} {below.name}", run, aligned=N % 8 == 0 == K % 8)
    x, weight = _empty(256, 256, dtype=BF16), _empty(256, 256, dtype=BF16)
    for name in PARAMETERS:
        run = partial(linear.linear_forward, x, weight, None, Activation(name), save=False)
        yield Case(f"forward bf16 fused {name}", run)


def _linear_sizes(dtype: torch.dtype, rule: tiles.Target) -> list[tuple[int, int, int]]:
    """(M, N, K) of products that reach every tile, with and without a remainder along K, then of odd sizes."""
    grid = itertools.product(ROWS, COLUMNS_OUT, DEPTHS)
    of_tile = first_of_each(grid, lambda size: (tiles.gemm_tile(*size, dtype, rule), size[2] % 64 == 0))
    odd = [(256, 128, 100), (256, 136, 72), (200, 17, 63), (1, 10, 33)]
    return [*of_tile, *odd] if dtype is not FP16 else [*of_tile[-2:], odd[0]]


# ---- convolution -----------------------------------------------------------------------------------------------------


class ConvolutionProblem(NamedTuple):
    """x [N, C, H, H], weight [K, C / groups, R, R]."""

    N: int
    C: int
    H: int
    K: int
    R: int
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def spec(self) -> ConvolutionSpec:
        stride, padding, dilation = ((each, each) for each in (self.stride, self.padding, self.dilation))
        return ConvolutionSpec(stride, padding, padding, dilation, self.groups)


CONVOLUTIONS = (
    ConvolutionProblem(64, 128, 28, 128, 3),
    ConvolutionProblem(256, 32, 14, 64, 3),
    ConvolutionProblem(256, 1, 28, 32, 3),
    ConvolutionProblem(64, 3, 224, 64, 7, stride=2, padding=3),
    ConvolutionProblem(64, 3, 32, 32, 3),
    ConvolutionProblem(64, 64, 56, 64, 3),
    ConvolutionProblem(64, 128, 28, 256, 3, stride=2),
    ConvolutionProblem(256, 256, 14, 512, 3),
    ConvolutionProblem(8, 512, 7, 512, 3),
    ConvolutionProblem(64, 64, 56, 128, 1, stride=2, padding=0),
    ConvolutionProblem(64, 64, 56, 256, 1, padding=0),
    ConvolutionProblem(64, 128, 28, 128, 3, padding=2, dilation=2),
    ConvolutionProblem(64, 128, 28, 128, 3, groups=4),
    ConvolutionProblem(64, 128, 28, 128, 3, groups=16),
    ConvolutionProblem(64, 128, 28, 128, 3, groups=128),
    ConvolutionProblem(64, 32, 28, 64, 5, padding=2, groups=32),
    ConvolutionProblem(64, 24, 30, 40, 3),
    ConvolutionProblem(16, 64, 17, 64, 7, padding=3),
    ConvolutionProblem(2, 17, 9, 10, 3),
    ConvolutionProblem(8, 40, 28, 72, 3),
    ConvolutionProblem(1, 72, 17, 72, 7, padding=3),
)
FEW_TILES = (  # and many steps: their reduction is split
    ConvolutionProblem(1, 512, 7, 512, 3),
    ConvolutionProblem(1, 256, 14, 512, 3, stride=2),
    ConvolutionProblem(1, 64, 14, 72, 7, padding=3),
)


def conv_cases(target: Target) -> Iterator[Case]:
    """Forward, data gradient and weight gradient of convolutions of every kind: dense, strided, grouped, depthwise."""
    for dtype in DTYPES:
        problems = CONVOLUTIONS if dtype is not FP16 else CONVOLUTIONS[:2]
        for problem, row in zip(problems, itertools.cycle(pairwise(FUSED_FLAGS)), strict=False):
            name = f"{_text(dtype)} {tuple(problem)} {_flags(row)}"
            x, weight, _ = _convolution_tensors(problem, dtype)
            bias = _empty(problem.K, dtype=dtype) if row["bias"] else None
            function = Activation(row["activation"])
            run = partial(forward.convolution_forward, x, weight, bias, problem.spec, function, save=row["save"])
            yield Case(f"forward {name}", run, _convolution_aligned(problem))
        for problem, function in zip(problems, itertools.cycle(("relu", "gelu", "mish")), strict=False):
            x, weight, _ = _convolution_tensors(problem, dtype)
            options = {"save": True, "pool": True}
            run = partial(forward.convolution_forward, x, weight, None, problem.spec, Activation(function), **options)
            name = f"{_text(dtype)} {tuple(problem)} activation={function}"
            yield Case(f"forward pooled {name}", run, _convolution_aligned(problem))
        constants = _empty(512)
        norm = Normalization(constants, constants, constants, constants, 1e-5)
        options = ({"norm": norm}, {"want_statistics": True}, {"pool": True})
        for problem, option, function in zip(FEW_TILES, options, ("silu", "identity", "gelu"), strict=True):
            name, aligned = f"{_text(dtype)} {tuple(problem)}", _convolution_aligned(problem)
            x, weight, dz = _convolution_tensors(problem, dtype)
            arguments = x, weight, None, problem.spec, Activation(function)
            run = partial(forward.convolution_forward, *arguments, save=True, **option)
            yield Case(f"forward split {name} {next(iter(option))}", run, aligned)
            run = partial(input_gradient.convolution_input_gradient, dz, weight, problem.spec, (problem.H, problem.H))
            yield Case(f"input_gradient split {name}", run, aligned)
        for index, problem in enumerate(problems):
            name, aligned = f"{_text(dtype)} {tuple(problem)}", _convolution_aligned(problem)
            x, weight, dz = _convolution_tensors(problem, dtype)
            run = partial(input_gradient.convolution_input_gradient, dz, weight, problem.spec, (problem.H, problem.H))
            yield Case(f"input_gradient {name}", run, aligned)
            size, spec, last = (problem.R, problem.R), problem.spec, index % 2 == 0
            run = partial(weight_gradient.convolution_weight_gradient, dz, x, spec, size, channels_last=last)
            yield Case(f"weight_gradient {name} channels_last={last}", run, aligned)


def _convolution_tensors(
    problem: ConvolutionProblem, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, weight, dz), all channels_last."""
    P, Q = problem.spec.output_size((problem.H, problem.H), (problem.R, problem.R))
    shapes = (
        (problem.N, problem.C, problem.H, problem.H),
        (problem.K, problem.C // problem.groups, problem.R, problem.R),
        (problem.N, problem.K, P, Q),
    )
    x, weight, dz = (_empty(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last) for shape in shapes)
    return x, weight, dz


def _convolution_aligned(problem: ConvolutionProblem | AxesProblem) -> bool:
    """Whether a tap of a group is a multiple of 16 bytes on both sides, so that its loads can be wide."""
    return problem.C // problem.groups % 16 == 0 and problem.K // problem.groups % 16 == 0


# ---- convolution of one and three axes, and transposed ones -------------------------------------------------------


class AxesProblem(NamedTuple):
    """x [N, C, *size], weight [K, C / groups, taps of each axis]; of as many axes as `size` has numbers."""

    N: int
    C: int
    size: tuple[int, ...]
    K: int
    taps: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def spec(self) -> ConvolutionSpec:
        stride, padding, dilation = ((each,) * len(self.size) for each in (self.stride, self.padding, 1))
        return ConvolutionSpec(stride, padding, padding, dilation, self.groups)


AXES_PROBLEMS = (
    AxesProblem(64, 128, (4000,), 128, 9, padding=4),
    AxesProblem(64, 128, (4000,), 128, 41, padding=20),
    AxesProblem(8, 32, (16, 56, 56), 32, 3, padding=1),
    AxesProblem(8, 64, (16, 28, 28), 128, 3, stride=2, padding=1),
    AxesProblem(8, 3, (16, 112, 112), 64, 3, stride=2, padding=1),
    AxesProblem(8, 64, (8, 28, 28), 64, 3, padding=1, groups=64),
    AxesProblem(8, 24, (8, 30, 30), 40, 3, padding=1),
    AxesProblem(2, 128, (8, 14, 14), 128, 3, padding=1),
)
FEW_TILES_OF_A_VOLUME = AxesProblem(1, 256, (4, 7, 7), 256, 3, padding=1)
TRANSPOSED_PROBLEMS = (  # the convolution whose data gradient each is
    AxesProblem(64, 256, (8, 8), 512, 4, stride=2, padding=1),
    AxesProblem(64, 512, (4, 4), 100, 4),
    AxesProblem(8, 256, (56, 56), 512, 2, stride=2),
    AxesProblem(8, 64, (16, 28, 28), 128, 2, stride=2),
    AxesProblem(64, 64, (2000,), 128, 4, stride=2, padding=1),
    AxesProblem(1, 256, (8, 8), 512, 4, stride=2, padding=1),
)


def conv_axes_cases(target: Target) -> Iterator[Case]:
    """Convolutions of signals and volumes with both gradients, and transposed ones of every rank."""
    for dtype in (BF16, FP32):
        for problem, row in zip(AXES_PROBLEMS, itertools.cycle(pairwise(FUSED_FLAGS)), strict=False):
            name, spec, aligned = f"{_text(dtype)} {tuple(problem)}", problem.spec, _convolution_aligned(problem)
            x, weight, dz = _axes_tensors(problem, dtype)
            bias = _empty(problem.K, dtype=dtype) if row["bias"] else None
            function = Activation(row["activation"])
            run = partial(forward.convolution_forward, x, weight, bias, spec, function, save=row["save"])
            yield Case(f"forward {name} {_flags(row)}", run, aligned)
            run = partial(input_gradient.convolution_input_gradient, dz, weight, spec, problem.size)
            yield Case(f"input_gradient {name}", run, aligned)
            kernel_size = (problem.taps,) * len(problem.size)
            run = partial(
                weight_gradient.convolution_weight_gradient,
                dz,
                x,
                spec,
                kernel_size,
                channels_last=len(kernel_size) > 1,
            )
            yield Case(f"weight_gradient {name}", run, aligned)
        problem = FEW_TILES_OF_A_VOLUME
        x, weight, dz = _axes_tensors(problem, dtype)
        run = partial(forward.convolution_forward, x, weight, None, problem.spec, IDENTITY, save=False)
        yield Case(f"forward split {_text(dtype)} {tuple(problem)}", run)
        run = partial(input_gradient.convolution_input_gradient, dz, weight, problem.spec, problem.size)
        yield Case(f"input_gradient split {_text(dtype)} {tuple(problem)}", run)
        for problem, row in zip(TRANSPOSED_PROBLEMS, itertools.cycle(pairwise(FUSED_FLAGS)), strict=False):
            _, weight, dz = _axes_tensors(problem, dtype)
            bias = _empty(problem.C, dtype=dtype) if row["bias"] else None
            arguments = dz, weight, bias, problem.spec, problem.size, Activation(row["activation"])
            run = partial(input_gradient.transposed_convolution_forward, *arguments, save=row["save"])
            yield Case(f"transposed {_text(dtype)} {tuple(problem)} {_flags(row)}", run, _convolution_aligned(problem))


def _axes_tensors(problem: AxesProblem, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, weight, dz), all with the channels last."""
    taps = (problem.taps,) * len(problem.size)
    shapes = (
        (problem.N, *problem.size, problem.C),
        (problem.K, *taps, problem.C // problem.groups),
        (problem.N, *problem.spec.output_size(problem.size, taps), problem.K),
    )
    x, weight, dz = (layout.channels_before(_empty(*shape, dtype=dtype)) for shape in shapes)
    return x, weight, dz


def _flags(row: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, torch.dtype):
            return _text(value)
        return str(tuple(value)) if isinstance(value, tuple) else str(value)

    return " ".join(f"{name}={text(value)}" for name, value in row.items())


# ---- normalization ---------------------------------------------------------------------------------------------------


def batch_norm_cases(target: Target) -> Iterator[Case]:
    """Batch and instance norm of images and rows, for statistics of the input and given ones."""
    for row in pairwise(
        {
            "shape": ((32, 64, 56, 56), (8, 960, 7, 7), (512, 100), (1 << 14, 4096)),
            "dtype": DTYPES,
            "activation": (IDENTITY, Activation("relu"), Activation("gelu")),
            "statistics": ("batch", "given", "sample"),
            "channels_last": (True, False),
            "residual": (True, False),
            "affine": (True, False),
        }
    ):
        if len(row["shape"]) == 4 or row["statistics"] != "sample":
            is_last = row["channels_last"] or len(row["shape"]) == 2
            aligned = row["shape"][1] % 8 == 0 if is_last else row["shape"][3] % 8 == 0
            yield Case(f"norm {_flags(row)}", partial(_norm, row), aligned)


def _norm(row: Mapping[str, Any]) -> None:
    x, C = _empty(*row["shape"], dtype=row["dtype"]), row["shape"][1]
    if row["channels_last"] and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = bias = _empty(C) if row["affine"] else None
    residual = x if row["residual"] and row["statistics"] != "sample" else None
    given = row["statistics"] == "given"
    statistics = (_empty(C), _empty(C)) if given else (None, None)
    running = (_empty(C), _empty(C)) if row["statistics"] == "batch" else (None, None)
    per_sample = row["statistics"] == "sample"
    options = (0.1, 1e-5, row["activation"])
    y, mean, variance = norm_forward(x, weight, bias, residual, *statistics, *running, *options, per_sample=per_sample)
    mean, variance = statistics if given else (mean, variance)
    assert mean is not None and variance is not None
    saved = None if residual is None or row["activation"] is IDENTITY else y
    wanted = NormGradients(True, row["affine"], row["affine"], residual is not None)
    norm_backward(y, x, weight, bias, saved, mean, variance, *options[1:], wanted, per_sample=per_sample, given=given)


# ---- pooling ---------------------------------------------------------------------------------------------------------


def pool_cases(target: Target) -> Iterator[Case]:
    """Maxima, means and norms, forward and backward, for windows that touch, overlap, dilate and divide the image."""
    windows = {
        "2x2": (Axis(2, 2), 14),
        "3x3 overlapping": (Axis(3, 2, padding=1), 14),
        "3x3 dilated": (Axis(3, 1, dilation=2), 24),
        "adaptive": (Axis(6), 6),
        "fractional": (Axis(2), 18),
        "global": (Axis(28, 28), 1),
    }
    flags = {
        "window": tuple(windows),
        "dtype": DTYPES,
        "channels": (64, 3),
        "channels_last": (True, False),
        "option": (True, False),
        "axes": (2, 3, 1),
    }
    for row in pairwise(flags):
        axis, side = windows[row["window"]]
        aligned = row["channels_last"] and row["channels"] % 8 == 0
        kinds = {"adaptive": row["window"] == "adaptive", "fractional": row["window"] == "fractional"}
        window = window_of([axis] * row["axes"], **kinds)
        if row["window"] != "global":
            yield Case(f"max {_flags(row)}", partial(_max_pool, window, side, row), aligned)
        if axis.dilation == 1 and not window.fractional:
            norm = 2.5 if row["option"] and not window.adaptive else 0.0
            mean = Mean(row["option"], 0 if row["option"] else 5, norm)
            yield Case(f"mean {_flags(row)}", partial(_mean_pool, window, mean, side, row), aligned)
        yield Case(f"unpool {_flags(row)}", partial(_unpool, side, row), aligned)
    functions = itertools.cycle([Activation(name) for name in PARAMETERS])
    shapes = (128, 32, 14), (8, 64, 7), (2, 20, 5)
    for row in pairwise({"shape": shapes, "dtype": DTYPES, "want_bias": (True, False)}):
        for _ in range(3):
            (N, K, P), function = row["shape"], next(functions)
            grad = _empty(N, K, P // 2, P // 2, dtype=row["dtype"]).to(memory_format=torch.channels_last)
            argmax, options = torch.empty_like(grad, dtype=torch.int8), {"want_bias": row["want_bias"]}
            run = partial(pooled_gradient.pooled_gradient, grad, grad, argmax, function, (P, P), **options)
            yield Case(f"pooled_gradient {function.name} {_flags(row)}", run, aligned=K % 8 == 0)


def _pooled(side: int, row: Mapping[str, Any], dtype: torch.dtype) -> torch.Tensor:
    x = _empty(64, row["channels"], *[side] * row["axes"], dtype=dtype)
    if not _pools_channels_last(row):
        return x
    return x.contiguous(memory_format=torch.channels_last if row["axes"] == 2 else torch.channels_last_3d)


def _pools_channels_last(row: Mapping[str, Any]) -> bool:
    return bool(row["channels_last"] and row["axes"] > 1)


def _max_pool(window: Window, side: int, row: Mapping[str, Any]) -> None:
    x, channels_last = _pooled(28, row, row["dtype"]), _pools_channels_last(row)
    samples = _empty(64, row["channels"], 3, dtype=torch.float32) if window.fractional else None
    y, _, argmax = pool_maximum.max_pool_forward(
        x,
        window,
        (side,) * row["axes"],
        samples,
        channels_last=channels_last,
        want_argmax=True,
        want_index=row["option"],
    )
    assert argmax is not None
    size = (28,) * row["axes"]
    pool_maximum.max_pool_backward(y, argmax, window, size, samples, channels_last=channels_last)


def _mean_pool(window: Window, mean: Mean, side: int, row: Mapping[str, Any]) -> None:
    x, channels_last = _pooled(28, row, row["dtype"]), _pools_channels_last(row)
    y = pool_mean.mean_pool_forward(x, window, (side,) * row["axes"], mean, channels_last=channels_last)
    saved = (x, y) if mean.norm else (None, None)
    pool_mean.mean_pool_backward(y, *saved, window, (28,) * row["axes"], mean, channels_last=channels_last)


def _unpool(side: int, row: Mapping[str, Any]) -> None:
    x, channels_last = _pooled(side, row, row["dtype"]), _pools_channels_last(row)
    index = _pooled(side, row, torch.int64)
    y = unpool.unpool_forward(x, index, (28,) * row["axes"], channels_last=channels_last)
    unpool.unpool_backward(y, index, channels_last=channels_last)


# ---- recurrent -------------------------------------------------------------------------------------------------------


def recurrent_cases(target: Target) -> Iterator[Case]:
    """Forward and backward of a layer, with weights that fit on chip and with some that don't."""
    for row in pairwise({
        "mode": tuple(GATES),
        "hidden_size": (128, 64, 2048),
        "dtype": (BF16, FP32),
        "directions": (1, 2),
        "packed": (False, True),
        "reset": (False, True),
        "bias": (True, False),
        "recompute": (False, True),
        "projected": (False, True),
    }):  # fmt: skip
        row["projected"] &= row["mode"] == "lstm"
        yield Case(f"layer {_flags(row)}", partial(_recurrent, row))


def _recurrent(row: Mapping[str, Any]) -> None:
    steps, batch, inputs = 3, 32, 64
    mode, H, D, dtype = row["mode"], row["hidden_size"], row["directions"], row["dtype"]
    sequences = recurrent.Sequences(steps, batch)
    if row["packed"]:
        sequences = recurrent.packed_sequences(
            torch.tensor([batch, batch, batch // 2], device="cpu"), torch.device("meta")
        )
    rows = steps * batch if sequences.batch_sizes is None else int(sequences.batch_sizes.sum())
    gates, P = GATES[mode] * H, H // 2 if row["projected"] else H
    bias = _empty(D * gates, dtype=dtype) if row["bias"] else None
    weights = recurrent.Weights(
        _empty(D * gates, inputs, dtype=dtype),
        _empty(D, gates, P, dtype=dtype),
        bias,
        bias,
        _empty(D, P, H, dtype=dtype) if row["projected"] else None,
    )
    x, state = _empty(rows, inputs, dtype=dtype), _empty(D, batch, P, dtype=dtype)
    cell = _empty(D, batch, H, dtype=dtype) if mode == "lstm" else None
    reset = _empty(rows, dtype=torch.uint8) if row["reset"] else None
    y, _, _, saved = recurrent_forward(
        mode, x, weights, state, cell, sequences, reset, save=True, recompute=row["recompute"]
    )
    has_bias = bias is not None
    wanted = recurrent.Wanted(True, True, True, has_bias, has_bias, row["projected"], True, cell is not None)
    recurrent_backward(mode, y, state, cell, x, weights, y, state, saved, sequences, reset, wanted)


COLUMNS: dict[str, Callable[[Target], Iterator[Case]]] = {
    "activation": activation_cases,
    "linear": linear_cases,
    "conv": conv_cases,
    "conv_axes": conv_axes_cases,
    "batch_norm": batch_norm_cases,
    "pool": pool_cases,
    "recurrent": recurrent_cases,
    "loss": loss_cases,
    "norm": norm_cases,
    "softmax": softmax_cases,
    "label_loss": label_loss_cases,
    "distance": distance_cases,
    "ctc_loss": ctc_loss_cases,
    "linear_cross_entropy": linear_cross_entropy_cases,
    "dropout": dropout_cases,
    "embedding": embedding_cases,
    "embedding_bag": embedding_bag_cases,
    "upsample": upsample_cases,
    "optimizer": optimizer_cases,
    "layout": layout_cases,
}

"""Every public function and module as a `Case`: for tests of how operands are represented in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from operand_cases import (
    Case,
    Operands,
    between_0_and_1,
    convolution_of_sequences,
    criterion,
    cross_entropy_of_linear,
    filters,
    fractional_pooling,
    function,
    image,
    labels,
    log_probabilities,
    matrices,
    matrix,
    module,
    normalization,
    normalization_function,
    random,
    recurrent,
    recurrent_function,
    square,
    table,
    unpooling,
    weighted,
    with_affine,
    with_signs,
)

import tinynet.functional as ours
from tinynet import nn

Cases = dict[str, Callable[[], Case]]

ACTIVATIONS = (
    *("ReLU", "LeakyReLU", "ReLU6", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "LogSigmoid", "Tanh"),
    *("Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "Hardshrink", "Softshrink", "Tanhshrink"),
)
ACTIVATION_FUNCTIONS = (
    *("relu", "leaky_relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "tanh"),
    *("softplus", "softsign", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink"),
)
# The function, the module, and the arguments after the image.
POOLINGS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("max_pool", "MaxPool", (3, 2, 1)),
    ("avg_pool", "AvgPool", (3, 2, 1)),
    ("lp_pool", "LPPool", (2, 3, 2)),
    ("adaptive_avg_pool", "AdaptiveAvgPool", (3,)),
    ("adaptive_max_pool", "AdaptiveMaxPool", (3,)),
)
# The function, the module, and what both take.
LOSSES: tuple[tuple[str, str, Callable[[], Operands]], ...] = (
    ("mse_loss", "MSELoss", lambda: matrices("input", "target")),
    ("l1_loss", "L1Loss", lambda: matrices("input", "target")),
    ("smooth_l1_loss", "SmoothL1Loss", lambda: matrices("input", "target")),
    ("huber_loss", "HuberLoss", lambda: matrices("input", "target")),
    ("kl_div", "KLDivLoss", lambda: matrices("input") | between_0_and_1("target")),
    ("poisson_nll_loss", "PoissonNLLLoss", lambda: matrices("input", "target")),
    ("gaussian_nll_loss", "GaussianNLLLoss", lambda: matrices("input", "target") | between_0_and_1("var")),
    ("binary_cross_entropy", "BCELoss", lambda: between_0_and_1("input", "target")),
    ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss", lambda: matrices("input") | between_0_and_1("target")),
    ("soft_margin_loss", "SoftMarginLoss", lambda: with_signs("input")),
    ("hinge_embedding_loss", "HingeEmbeddingLoss", lambda: with_signs("input")),
    ("margin_ranking_loss", "MarginRankingLoss", lambda: with_signs("input1", "input2")),
    ("multilabel_soft_margin_loss", "MultiLabelSoftMarginLoss", lambda: matrices("input") | between_0_and_1("target")),
    (
        "multilabel_margin_loss",
        "MultiLabelMarginLoss",
        lambda: matrices("input") | {"target": torch.randint(-1, 6, (4, 6))},
    ),
    ("multi_margin_loss", "MultiMarginLoss", labels),
    ("nll_loss", "NLLLoss", labels),
    ("cross_entropy", "CrossEntropyLoss", labels),
    (
        "cosine_embedding_loss",
        "CosineEmbeddingLoss",
        lambda: matrices("input1", "input2") | {"target": 2 * torch.randint(2, (4,)) - 1},
    ),
    ("triplet_margin_loss", "TripletMarginLoss", lambda: matrices("anchor", "positive", "negative")),
    (
        "triplet_margin_with_distance_loss",
        "TripletMarginWithDistanceLoss",
        lambda: matrices("anchor", "positive", "negative"),
    ),
    ("cosine_similarity", "CosineSimilarity", lambda: matrices("x1", "x2")),
    ("pairwise_distance", "PairwiseDistance", lambda: matrices("x1", "x2")),
)


def activation_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for name in ACTIVATIONS:
        yield name, partial(module, name, square)
    for name in ACTIVATION_FUNCTIONS:
        yield name, partial(function, name, lambda: {"input": square()})
    yield "Threshold", partial(module, "Threshold", square, 0.1, 20.0)
    yield "threshold", partial(function, "threshold", lambda: {"input": square()}, 0.1, 20.0)
    yield "GLU", partial(module, "GLU", matrix)
    yield "glu", partial(function, "glu", lambda: matrices("input"))
    yield "PReLU", partial(module, "PReLU", image, 4)
    yield "prelu", partial(function, "prelu", lambda: {"input": matrix(), "weight": torch.randn(6)})
    yield "RReLU", partial(module, "RReLU", matrix, 0.3, 0.3)  # a slope that is not random
    yield "rrelu", partial(function, "rrelu", lambda: matrices("input"), 0.3, 0.3, training=True)


def linear_and_convolution_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    yield "Linear", partial(module, "Linear", matrix, 6, 6)
    yield (
        "linear",
        partial(function, "linear", lambda: {"input": matrix(), "weight": torch.randn(5, 6), "bias": torch.randn(5)}),
    )

    pairs = {"input1": (4, 6), "input2": (4, 5), "weight": (3, 6, 5), "bias": (3,)}
    yield "bilinear", partial(function, "bilinear", partial(random, pairs))
    layer, twin = nn.Bilinear(6, 5, 3), torch.nn.Bilinear(6, 5, 3)
    yield (
        "Bilinear",
        lambda: Case(
            lambda input1, input2, **parameters: torch.func.functional_call(layer, parameters, (input1, input2)),
            lambda input1, input2, **parameters: torch.func.functional_call(twin, parameters, (input1, input2)),
            random(pairs),
        ),
    )
    for rank in (1, 2, 3):
        for name, transposed in (("conv", False), ("conv_transpose", True)):
            yield f"{name}{rank}d", partial(function, f"{name}{rank}d", partial(filters, rank, transposed))
        for name in ("Conv", "ConvTranspose"):
            yield f"{name}{rank}d", partial(module, f"{name}{rank}d", partial(image, rank), 4, 8, 3, 2, 1, groups=4)
    sequences = {"input": (6, 2, 4), "weight": (3, 4, 5), "bias": (5,)}
    yield (
        "conv_tbc",
        lambda: Case(
            lambda input, weight, bias: ours.conv_tbc(input, weight, bias, 1),
            convolution_of_sequences,
            random(sequences),
        ),
    )


def pooling_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for rank in (1, 2, 3):
        for name, module_name, arguments in POOLINGS:
            operands = partial(lambda rank: {"input": image(rank)}, rank)
            yield f"{name}{rank}d", partial(function, f"{name}{rank}d", operands, *arguments)
            yield f"{module_name}{rank}d", partial(module, f"{module_name}{rank}d", partial(image, rank), *arguments)
            if "max" in name:
                with_indices = f"{name}{rank}d_with_indices"
                yield with_indices, partial(function, with_indices, operands, *arguments)
        yield f"max_unpool{rank}d", partial(unpooling, rank, False)
        yield f"MaxUnpool{rank}d", partial(unpooling, rank, True)
    for rank in (2, 3):
        name = f"fractional_max_pool{rank}d"
        for each in (name, f"{name}_with_indices", f"FractionalMaxPool{rank}d"):
            yield each, partial(fractional_pooling, each, rank)
    for name, options in (
        ("interpolate", {"scale_factor": 2, "mode": "bilinear"}),
        ("upsample", {"scale_factor": 2, "mode": "bilinear"}),
        ("upsample_bilinear", {"scale_factor": 2}),
    ):
        yield name, partial(function, name, lambda: {"input": image()}, **options)
    yield "Upsample", partial(module, "Upsample", image, scale_factor=2, mode="bilinear")
    yield "UpsamplingBilinear2d", partial(module, "UpsamplingBilinear2d", image, scale_factor=2)


def normalization_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    # With a function between, since the gradient of a normalization alone is 0 for some upstream gradients.
    yield (
        "batch_norm-training",
        lambda: Case(
            lambda input, **affine: ours.batch_norm(input, None, None, **affine, training=True, activation="tanh"),
            lambda input, **affine: F.batch_norm(input, None, None, **affine, training=True).tanh(),
            with_affine(image(), 4),
        ),
    )
    yield (
        "batch_norm-given",
        lambda: Case(
            ours.batch_norm,
            F.batch_norm,
            with_affine(image(), 4) | {"running_mean": torch.randn(4), "running_var": torch.rand(4) + 0.5},
            ("running_mean", "running_var"),
        ),
    )
    yield (
        "instance_norm",
        lambda: Case(
            lambda input, **affine: ours.instance_norm(input, **affine, activation="tanh"),
            lambda input, **affine: F.instance_norm(input, **affine).tanh(),
            with_affine(image(), 4),
        ),
    )
    for rank in (1, 2, 3):
        for name in ("BatchNorm", "InstanceNorm"):
            yield f"{name}{rank}d", partial(normalization, f"{name}{rank}d", rank)
    for name in ("layer_norm", "rms_norm", "group_norm"):
        yield name, partial(normalization_function, name)
    yield (
        "layer_norm-residual",
        lambda: Case(
            lambda input, residual: ours.layer_norm(input, (6,), eps=0.1, residual=residual),
            lambda input, residual: (F.layer_norm(input + residual, (6,), eps=0.1), input + residual),
            matrices("input", "residual"),
        ),
    )
    yield "LayerNorm", partial(module, "LayerNorm", matrix, 6, 0.1)
    yield "RMSNorm", partial(module, "RMSNorm", matrix, 6)
    yield "GroupNorm", partial(module, "GroupNorm", image, 2, 4, 0.1)
    yield "LocalResponseNorm", partial(module, "LocalResponseNorm", image, 3, 0.5)
    yield "local_response_norm", partial(function, "local_response_norm", lambda: {"input": image()}, 3, 0.5)
    yield "Softmax", partial(module, "Softmax", matrix, 1)
    yield "LogSoftmax", partial(module, "LogSoftmax", matrix, 0)
    yield "Softmin", partial(module, "Softmin", matrix, 1)
    yield "Softmax2d", partial(module, "Softmax2d", image)
    for name in ("softmax", "log_softmax", "softmin"):
        yield name, partial(function, name, lambda: {"input": image()}, 1)


def loss_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for name, module_name, operands in LOSSES:
        constant = ("target",) if name == "soft_margin_loss" else ()
        yield name, partial(function, name, operands, constant=constant)
        yield module_name, partial(criterion, module_name, operands, constant)
    for name in ("cross_entropy", "nll_loss", "multi_margin_loss"):
        yield f"{name}-weighted", partial(weighted, name, lambda: labels() | {"weight": torch.rand(6)})
    yield (
        "cross_entropy-probabilities",
        lambda: Case(ours.cross_entropy, F.cross_entropy, matrices("input") | between_0_and_1("target")),
    )
    yield (
        "binary_cross_entropy-weighted",
        lambda: weighted(
            "binary_cross_entropy", lambda: between_0_and_1("input", "target") | {"weight": torch.rand(4, 6)}
        ),
    )
    yield (
        "binary_cross_entropy_with_logits-weighted",
        lambda: weighted(
            "binary_cross_entropy_with_logits",
            lambda: (
                matrices("input")
                | between_0_and_1("target")
                | {"weight": torch.rand(4, 6), "pos_weight": torch.rand(6)}
            ),
        )._replace(constant=("weight", "pos_weight")),
    )
    yield "NLLLoss2d", lambda: criterion("NLLLoss2d", lambda: {"input": image(), "target": torch.ones(2, 6, 6).long()})
    yield (
        "multilabel_soft_margin_loss-weighted",
        lambda: weighted(
            "multilabel_soft_margin_loss",
            lambda: matrices("input") | between_0_and_1("target") | {"weight": torch.rand(6)},
        ),
    )
    yield "ctc_loss", partial(function, "ctc_loss", log_probabilities)
    yield "CTCLoss", partial(criterion, "CTCLoss", log_probabilities)
    yield (
        "linear_cross_entropy",
        lambda: Case(
            lambda **given: ours.linear_cross_entropy(**given) + given["input"].sum(),  # no gradient of input is 0
            lambda **given: cross_entropy_of_linear(**given) + given["input"].sum(),
            {
                "input": matrix(),
                "linear_weight": torch.randn(5, 6),
                "target": torch.randint(5, (4,)),
                "linear_bias": torch.randn(5),
                "weight": torch.rand(5),
            },
            ("weight",),
        ),
    )


def other_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for name in ("embedding", "embedding_bag"):
        yield name, partial(function, name, table)
    for name in ("Embedding", "EmbeddingBag"):
        yield name, partial(module, name, lambda: torch.randint(6, (4, 3)), 6, 4)
    yield (
        "embedding_bag-factors",
        lambda: Case(
            partial(ours.embedding_bag, mode="sum"),
            partial(F.embedding_bag, mode="sum"),
            {
                "input": torch.randint(6, (7,)),
                "weight": torch.randn(6, 4),
                "offsets": torch.tensor([0, 2, 5]),
                "per_sample_weights": torch.randn(7),
            },
        ),
    )
    yield (
        "embedding_bag-max",
        lambda: Case(partial(ours.embedding_bag, mode="max"), partial(F.embedding_bag, mode="max"), table()),
    )
    # Dropping everything is not random.
    for name in ("dropout", "alpha_dropout"):
        yield name, partial(function, name, lambda: matrices("input"), 1.0, True)
    for rank in (1, 2, 3):
        operands = partial(lambda rank: {"input": image(rank)}, rank)
        yield f"dropout{rank}d", partial(function, f"dropout{rank}d", operands, 1.0)
        yield f"Dropout{rank}d", partial(module, f"Dropout{rank}d", partial(image, rank), 1.0)
    yield "feature_alpha_dropout", partial(function, "feature_alpha_dropout", lambda: {"input": image()}, 1.0, True)
    for name in ("Dropout", "AlphaDropout", "FeatureAlphaDropout"):
        yield name, partial(module, name, image, 1.0)
    for name, states in (("RNN", ("hx",)), ("LSTM", ("hx", "cx")), ("GRU", ("hx",))):
        yield name, partial(recurrent, name, *states)
        yield f"{name}Cell", partial(recurrent, f"{name}Cell", *states)
    for name, layer in (("rnn_tanh", "RNN"), ("rnn_relu", "RNN"), ("gru", "GRU")):
        yield name, partial(recurrent_function, name, layer, "hx")
    yield "lstm", partial(recurrent_function, "lstm", "LSTM", "hx", "cx")


CASES: Cases = {
    name: case
    for cases in (
        activation_cases,
        linear_and_convolution_cases,
        pooling_cases,
        normalization_cases,
        loss_cases,
        other_cases,
    )
    for name, case in cases()
}

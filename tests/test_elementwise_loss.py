"""Losses of each element: every function, option and layout against float64 PyTorch, and what they refuse."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import assert_close, check_against_reference, counted_launches, non_contiguous, tolerance
from torch import Tensor

import tinynet
from tinynet import functional as ours
from tinynet import nn
from tinynet_kernels.operand_layout import layouts_of

kernels = pytest.mark.kernels
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using a target size"),
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides"),
]
REDUCTIONS = ("mean", "sum", "none")

# Values of an operand; those in capitals require a gradient.
VALUES: dict[str, Callable[..., Tensor]] = {
    "n": torch.randn,  # any numbers
    "p": lambda shape, device: 0.02 + 0.96 * torch.rand(shape, device=device),  # probabilities
    "s": lambda shape, device: torch.where(torch.rand(shape, device=device) < 0.5, -1.0, 1.0),  # signs
    "v": lambda shape, device: 0.3 + torch.rand(shape, device=device),  # positive numbers
    "c": lambda shape, device: 0.3 + 4 * torch.rand(shape, device=device),  # counts, but no whole numbers
}
# A call of either library's function, and its operands.
Call = Callable[..., Tensor]
CASES: dict[str, tuple[Call, str]] = {
    "mse": (lambda f, x, t, **o: f.mse_loss(x, t, **o), "NN"),
    "mse-weight": (lambda f, x, t, w, **o: f.mse_loss(x, t, weight=w, **o), "NNV"),
    "l1": (lambda f, x, t, **o: f.l1_loss(x, t, **o), "NN"),
    "l1-weight": (lambda f, x, t, w, **o: f.l1_loss(x, t, weight=w, **o), "NNV"),
    "smooth_l1": (lambda f, x, t, **o: f.smooth_l1_loss(x, t, **o), "NN"),
    "smooth_l1-beta": (lambda f, x, t, **o: f.smooth_l1_loss(x, t, beta=0.3, **o), "NN"),
    "smooth_l1-0": (lambda f, x, t, **o: f.smooth_l1_loss(x, t, beta=0, **o), "NN"),
    "huber": (lambda f, x, t, **o: f.huber_loss(x, t, delta=0.7, **o), "NN"),
    "huber-weight": (lambda f, x, t, w, **o: f.huber_loss(x, t, weight=w, **o), "NNV"),
    "bce": (lambda f, x, t, **o: f.binary_cross_entropy(x, t, **o), "PP"),
    "bce-weight": (lambda f, x, t, w, **o: f.binary_cross_entropy(x, t, w, **o), "PPv"),
    "logits": (lambda f, x, t, **o: f.binary_cross_entropy_with_logits(x, t, **o), "NP"),
    "logits-weights": (
        lambda f, x, t, w, p, **o: f.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, **o),
        "NPvv",
    ),
    "multilabel": (lambda f, x, t, **o: f.multilabel_soft_margin_loss(x, t, **o), "NP"),
    "multilabel-weight": (lambda f, x, t, w, **o: f.multilabel_soft_margin_loss(x, t, w, **o), "NPV"),
    "soft_margin": (lambda f, x, t, **o: f.soft_margin_loss(x, t, **o), "Ns"),
    "kl_div": (lambda f, x, t, **o: f.kl_div(x, t, **o), "NP"),
    "kl_div-log": (lambda f, x, t, **o: f.kl_div(x, t, log_target=True, **o), "NN"),
    "gaussian": (lambda f, x, t, v, **o: f.gaussian_nll_loss(x, t, v, **o), "NNV"),
    "gaussian-full": (lambda f, x, t, v, **o: f.gaussian_nll_loss(x, t, v, full=True, eps=0.6, **o), "NNV"),
    "poisson": (lambda f, x, t, **o: f.poisson_nll_loss(x, t, **o), "NC"),
    "poisson-full": (lambda f, x, t, **o: f.poisson_nll_loss(x, t, full=True, **o), "NC"),
    "poisson-counts": (lambda f, x, t, **o: f.poisson_nll_loss(x, t, log_input=False, full=True, eps=0.1, **o), "VC"),
    "hinge": (lambda f, x, t, **o: f.hinge_embedding_loss(x, t, margin=0.75, **o), "Ns"),
    "ranking": (lambda f, x, y, t, **o: f.margin_ranking_loss(x, y, t, margin=0.5, **o), "NNS"),
}


def make(kinds: str, *shape: int, dtype: torch.dtype = torch.float32, device: str) -> list[Tensor]:
    torch.manual_seed(sum(shape))
    made = [VALUES[kind.lower()](shape, device=device).to(dtype) for kind in kinds]
    return [x.requires_grad_(kind.isupper()) for x, kind in zip(made, kinds, strict=True)]


def check(name: str, *operands: Tensor, error: float | None = None, **options: Any) -> list[str]:
    call = CASES[name][0]
    dtype, elements = operands[0].dtype, operands[0].numel()
    return check_against_reference(
        lambda *x: call(ours, *x, **options),
        lambda *x: call(F, *x, **options),
        *operands,
        error=error or 4 * tolerance(dtype, elements),
    )


@kernels
@pytest.mark.parametrize("name", CASES)
def test_reductions_and_sizes(name: str, device: str) -> None:
    for reduction in REDUCTIONS:
        check(name, *make(CASES[name][1], 3, 43, device=device), reduction=reduction)
    check(name, *make(CASES[name][1], 1, device=device), reduction="sum")


@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_16_bit(name: str, dtype: torch.dtype, device: str) -> None:
    operands = make(CASES[name][1], 5, 17, dtype=dtype, device=device)
    check(name, *operands, error=8 * tolerance(dtype), reduction="mean")
    if name in ("mse", "logits-weights", "multilabel"):
        check(name, *operands, error=8 * tolerance(dtype), reduction="none")


@kernels
@pytest.mark.parametrize("name", ["mse", "bce", "multilabel", "gaussian"])
def test_many_elements_take_two_stages(name: str, device: str) -> None:
    launches = check(name, *make(CASES[name][1], 70, 1001, device=device))
    assert launches.count("reduce_losses_kernel") == 1 and len(launches) == 3


@kernels
def test_few_elements_take_one_launch_each_way(device: str) -> None:
    launches = check("l1", *make("NN", 9, device=device))
    assert launches == ["elementwise_loss_forward_kernel", "elementwise_loss_backward_kernel"]


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_small_tiles(reduction: str, device: str) -> None:
    """Several tiles of rows and of columns, with vectors of both, and flat ones."""
    x, target = make("NP", 5, 39, device=device)
    by_column, by_row = torch.rand(39, device=device) + 0.3, torch.rand(5, 1, device=device) + 0.3
    with forced_tiles(rows_and_columns=(2, 16, 4), flat_block=(32, 4)):
        check("logits-weights", x, target, by_column, by_column.flip(0), reduction=reduction)
        check("logits-weights", x, target, by_row, by_row.flip(0), reduction=reduction)
        check("logits-weights", x, target, by_row, by_column, reduction=reduction)
        check("multilabel", x, target, reduction=reduction)
        check("mse", *make("NN", 5, 39, device=device), reduction=reduction)
        check("gaussian", *make("NN", 5, 39, device=device), by_row, reduction=reduction)


@kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_layouts(reduction: str, device: str) -> None:
    x, target = make("NN", 2, 3, 4, 5, device=device)
    last = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in (x, target)]
    channel = torch.rand(3, 1, 1, device=device) + 0.3
    for operands in (
        last,
        [x, last[1]],
        [last[0].detach(), target],
        [non_contiguous(x), non_contiguous(target)],
        [x.detach().permute(3, 0, 2, 1).requires_grad_(), target.detach().permute(3, 0, 2, 1).requires_grad_()],
        [x, target.detach()[:1].expand(2, 3, 4, 5)],
        [x.detach()[..., :1].expand(2, 3, 4, 5).requires_grad_(), target],
        make("NN", device=device),
    ):
        check("mse", *operands, reduction=reduction)
    probability = target.detach().sigmoid()
    for weight, positive in ((channel, channel), (channel[:, 0], channel[:, 0, 0].view(3, 1, 1)), (channel, x[:1])):
        for given in (x, last[0]):
            options = (weight.detach(), positive.detach().abs())
            if weight.dim() == 3:
                check("logits-weights", given, probability, *options, reduction=reduction)
    y = ours.mse_loss(last[0], last[1], reduction="none")
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_layouts_are_found_without_copies() -> None:
    """A matrix [rows, columns] of an image [2, 3, 4, 5], in both memory orders."""
    shape, dense, last = (2, 3, 4, 5), (60, 20, 5, 1), (60, 1, 15, 3)
    for order, strides, layouts, rows in (
        (dense, [dense, dense], ["dense", "dense"], 1),
        (dense, [dense, (0, 0, 0, 0), None], ["dense", "scalar", "dense"], 1),
        (dense, [dense, (0, 20, 5, 1), (0, 0, 0, 0)], ["dense", "columns", "scalar"], 2),
        (dense, [dense, (3, 1, 0, 0)], ["dense", "rows"], 6),
        (last, [last, (0, 1, 0, 0)], ["dense", "columns"], 40),
        (dense, [dense, (0, 1, 0, 0), (0, 0, 0, 1)], ["dense", None, "columns"], 24),
        (dense, [dense, last, (120, 40, 10, 2)], ["dense", None, None], 1),
        (dense, [dense, (3, 1, 0, 0), (0, 0, 0, 1)], ["dense", "rows", None], 6),
    ):
        assert layouts_of(shape, order, strides) == (layouts, rows)
    assert layouts_of((1, 5), (5, 1), [(0, 1), (7, 1)]) == (["dense", "dense"], 1)


@kernels
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber", "kl_div-log", "poisson", "ranking", "multilabel"])
def test_broadcasting_operands_get_summed_gradients(name: str, device: str) -> None:
    wide, row, column = ((4, 5), (1, 5), (4, 1))
    shapes = (wide, row, column) if name != "multilabel" else (wide, row, wide)
    kinds = CASES[name][1]
    operands = [make(kind, *shape, device=device)[0] for kind, shape in zip(kinds, shapes, strict=False)]
    for reduction in ("mean", "none"):
        check(name, *operands, reduction=reduction)
    if name not in ("multilabel",):
        check(name, *[make(k, *s, device=device)[0] for k, s in zip(kinds, (column, row, wide), strict=False)])


@kernels
def test_variances_of_every_shape(device: str) -> None:
    x, target = make("NN", 4, 3, device=device)
    for shape in ((4, 3), (4, 1), (1, 3), (4,)):
        check("gaussian", x, target, make("V", *shape, device=device)[0])
    check("gaussian", x, make("N", 2, 4, 3, device=device)[0], make("V", 4, 1, device=device)[0])
    for number in (0.5, 2):
        assert_close(ours.gaussian_nll_loss(x, target, number), F.gaussian_nll_loss(x, target, float(number)), 1e-6)


@kernels
def test_batchmean(device: str) -> None:
    for x, target in (make("NP", 4, 3, device=device), make("NP", device=device)):
        assert_close(ours.kl_div(x, target, reduction="batchmean"), F.kl_div(x, target, reduction="batchmean"), 1e-6)
    x, target = make("NP", 4, 3, device=device)
    assert_close(
        ours.kl_div(x[:1], target, reduction="batchmean"), F.kl_div(x[:1], target, reduction="batchmean"), 1e-6
    )


@kernels
def test_targets_of_other_dtypes(device: str) -> None:
    x = make("N", 4, 6, device=device)[0]
    signs = torch.where(torch.rand(4, 6, device=device) < 0.5, -1, 1)
    positive = signs > 0
    for function, target in (
        ("mse_loss", signs),
        ("mse_loss", positive),
        ("l1_loss", signs.to(torch.int8)),
        ("smooth_l1_loss", positive),
        ("poisson_nll_loss", positive.long()),
        ("soft_margin_loss", signs),
        ("multilabel_soft_margin_loss", positive.to(torch.uint8)),
        ("hinge_embedding_loss", signs),
        ("kl_div", positive.to(torch.bfloat16)),
        ("binary_cross_entropy_with_logits", positive.half()),
    ):
        y, expected = (getattr(f, function)(x, target, reduction="sum") for f in (ours, F))
        assert y.dtype is torch.float32, function
        assert_close(y, expected, 1e-2 if expected.dtype is torch.float16 else 1e-5, function)
    narrow = x.detach().bfloat16().requires_grad_()
    ours.l1_loss(narrow, x).backward()
    assert narrow.grad is not None and narrow.grad.dtype is torch.bfloat16
    assert ours.margin_ranking_loss(x, narrow, signs).dtype is torch.float32
    assert ours.mse_loss(narrow, torch.ones((), device=device)).dtype is torch.bfloat16


def vector(values: list[float], device: str) -> Tensor:
    return torch.tensor(values, device=device)


INF, NAN = math.inf, math.nan


@kernels
@pytest.mark.parametrize(
    ("name", "operands"),
    [
        ("l1", ([0.0, 1.0, -1.0, INF, -INF, NAN], [0.0] * 6)),
        ("smooth_l1", ([0.0, 1.0, -1.0, INF, -INF, NAN], [0.0] * 6)),
        ("huber", ([0.0, 0.7, -0.7, INF, -INF, NAN], [0.0] * 6)),
        ("logits", ([80.0, -80.0, 1e4, -1e4, NAN], [0.0, 1.0, 1.0, 0.0, 0.5])),
        ("soft_margin", ([-100.0, 100.0, INF, NAN], [1.0, 1.0, 1.0, 1.0])),
        ("bce", ([0.0, 1.0, 0.5, 1e-4, 1.0 - 2.0**-20], [0.0, 1.0, 0.5, 1.0, 0.0])),
        ("kl_div", ([-1.0, -1.0, -2.0], [0.0, 1.0, 0.3])),
        ("poisson-full", ([0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 30.0])),
        ("hinge", ([0.75, 2.0, 0.5, 0.75, NAN, NAN, 1.0], [-1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.5])),
        ("ranking", ([0.0, 0.5, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, -1.0])),
        ("gaussian-full", ([0.0, 1.0, 2.0], [0.0, 0.0, 1.0], [0.0, 0.3, 2.0])),
    ],
)
def test_edges(name: str, operands: tuple[list[float], ...], device: str) -> None:
    """At jumps of a derivative, where exponentials overflow and logarithms diverge."""
    x, *rest = (vector(values, device) for values in operands)
    check(name, x.requires_grad_(), *rest, reduction="none", error=1e-6)


@kernels
def test_large_products_do_not_overflow(device: str) -> None:
    x = vector([-1e4], device).requires_grad_()
    loss = ours.soft_margin_loss(x, torch.ones_like(x))
    loss.backward()
    assert loss.item() == 1e4 and x.grad is not None and x.grad.item() == -1


@kernels
def test_logarithms_of_probabilities_end_at_100(device: str) -> None:
    x, target = vector([0.0, 1.0, 1e-38], device).requires_grad_(), vector([1.0, 0.0, 0.0], device)
    loss = ours.binary_cross_entropy(x, target, reduction="none")
    assert loss.tolist() == pytest.approx([100.0, 100.0, 1e-38])
    loss.sum().backward()
    assert x.grad is not None and x.grad.tolist() == pytest.approx([-1e12, 1e12, 1e-26])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_out_of_range(reduction: str, device: str) -> None:
    good, bad = vector([0.2, 0.7], device), vector([0.2, 1.5], device)
    variance = vector([-1.0, 1.0], device)
    if device != "cpu":
        assert ours.binary_cross_entropy(bad, good, reduction=reduction).isnan().any()
        return
    for dtype in (torch.float32, torch.float64):
        good, bad, variance = good.to(dtype), bad.to(dtype), variance.to(dtype)
        for name, x, target in (("input", bad, good), ("input", bad * NAN, good), ("target", good, bad)):
            with pytest.raises(RuntimeError, match=f"all elements of {name} should be between 0 and 1"):
                ours.binary_cross_entropy(x, target, reduction=reduction)
        with pytest.raises(ValueError, match="negative"):
            ours.gaussian_nll_loss(good, good, variance, reduction=reduction)


@kernels
@pytest.mark.parametrize("name", CASES)
def test_autocast_computes_in_float32(name: str, device: str) -> None:
    call, kinds = CASES[name]
    operands = make(kinds, 4, 6, dtype=torch.bfloat16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), counted_launches() as launches:
        if name.startswith("bce") and device != "cpu":
            with pytest.raises(RuntimeError, match="autocast"):
                call(ours, *operands)
            return
        loss = call(ours, *operands)
    assert loss.dtype is torch.float32 and launches
    loss.backward()
    grad = operands[0].grad
    assert grad is not None and grad.dtype is torch.bfloat16


@kernels
@pytest.mark.parametrize("reduction", ["all", "rows", "none"])
def test_operators(reduction: str, device: str) -> None:
    from tinynet.ops.elementwise_loss import elementwise_loss_operator

    x, target = make("NP", 3, 5, device=device)
    weight = torch.rand(5, device=device).expand(3, 5)
    settings = ("bce_with_logits", 0.0, 0.0, False, False, reduction, 5)
    torch.library.opcheck(elementwise_loss_operator.forward, (x, target, None, weight, *settings, True))
    turned = x.detach().t().contiguous().t()
    grad = torch.randn({"all": (), "rows": (3,), "none": (3, 5)}[reduction], device=device)
    arguments = ([grad], [turned, target.detach(), weight, None], *settings, [True, True, False, False])
    torch.library.opcheck(elementwise_loss_operator.backward, arguments)


@kernels
def test_compiled_fullgraph_with_dynamic_shapes(device: str) -> None:
    def total(x: Tensor, t: Tensor) -> Tensor:
        first = ours.huber_loss(x, t, delta=0.6) + ours.gaussian_nll_loss(x, t, t.exp())
        second = ours.kl_div(x, t.sigmoid(), reduction="batchmean")
        return first + second + ours.smooth_l1_loss(x, t, reduction="none").sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 9):
        x, t = make("NN", rows, 4, device=device)
        (expected,) = torch.autograd.grad(total(x, t), x)
        with counted_launches() as launches:
            compiled(x, t).backward()
        assert launches.count("elementwise_loss_backward_kernel") == 4
        assert x.grad is not None
        torch.testing.assert_close(x.grad, expected)


MODULES: dict[str, tuple[dict[str, Any], str]] = {
    "MSELoss": ({"reduction": "sum"}, "np"),
    "L1Loss": ({}, "np"),
    "SmoothL1Loss": ({"beta": 0.4}, "np"),
    "HuberLoss": ({"delta": 0.4}, "np"),
    "BCELoss": ({"weight": torch.tensor([1.0, 2.0, 0.5])}, "pp"),
    "BCEWithLogitsLoss": ({"pos_weight": torch.tensor([1.0, 2.0, 0.5])}, "np"),
    "MultiLabelSoftMarginLoss": ({"weight": torch.tensor([1.0, 2.0, 0.5]), "reduction": "none"}, "np"),
    "SoftMarginLoss": ({}, "ns"),
    "KLDivLoss": ({"reduction": "batchmean", "log_target": True}, "nn"),
    "GaussianNLLLoss": ({"full": True, "eps": 0.5}, "nnv"),
    "PoissonNLLLoss": ({"log_input": False, "full": True}, "vc"),
    "HingeEmbeddingLoss": ({"margin": 0.5}, "ns"),
    "MarginRankingLoss": ({"margin": 0.5}, "nns"),
}


@kernels
@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, device: str) -> None:
    options, kinds = MODULES[name]
    mine, theirs = (getattr(library, name)(**options).to(device) for library in (nn, torch.nn))
    operands = make(kinds, 6, 3, device=device)
    expected = theirs(*operands)
    for module in (mine, copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        with counted_launches() as launches:
            assert_close(module(*operands), expected, 1e-5)
        assert launches and repr(module) == repr(theirs) and list(module.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_empty_and_meta_tensors(name: str) -> None:
    call, kinds = CASES[name]
    empty = [x.detach() for x in make(kinds, 0, 3, device="cpu")]
    for reduction in REDUCTIONS:
        assert_close(call(ours, *empty, reduction=reduction), call(F, *empty, reduction=reduction), 0.0)
        on_meta = [x.detach().to("meta") for x in make(kinds, 4, 3, device="cpu")]
        if not name.startswith("gaussian"):  # PyTorch looks at the variances
            loss = call(ours, *on_meta, reduction=reduction)
            assert loss.is_meta and loss.shape == call(F, *on_meta, reduction=reduction).shape


def test_reference_in_16_bit_does_not_overflow() -> None:
    x = torch.full((70_000,), 2.0, dtype=torch.float16)
    with tinynet.engine("reference"):
        assert ours.mse_loss(x, torch.zeros_like(x)).item() == 4.0


def test_older_spellings_and_warnings() -> None:
    x, target = make("np", 4, 3, device="cpu")
    with pytest.warns(UserWarning, match="size_average and reduce"):
        assert ours.l1_loss(x, target, reduce=False).shape == (4, 3)
    with pytest.warns(UserWarning, match="size_average and reduce"):
        summed = ours.binary_cross_entropy_with_logits(x, target, size_average=False)
    torch.testing.assert_close(summed, F.binary_cross_entropy_with_logits(x, target, reduction="sum"))
    with pytest.warns(UserWarning, match="elementwise_mean"):
        ours.smooth_l1_loss(x, target, reduction="elementwise_mean")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="divides the total loss by both the batch size"):
            ours.kl_div(x, target)
        with pytest.warns(UserWarning, match="different to the input size"):
            ours.huber_loss(x, target[:1])


@kernels
def test_gradients_that_pytorch_does_not_define(device: str) -> None:
    x, target, weight = make("PPV", 4, 3, device=device)
    for call in (
        lambda: ours.binary_cross_entropy(x, target, weight),
        lambda: ours.binary_cross_entropy_with_logits(x, target, weight),
        lambda: ours.binary_cross_entropy_with_logits(x, target, pos_weight=weight),
        lambda: ours.soft_margin_loss(x, target),
    ):
        with pytest.raises(RuntimeError, match="no gradient of"):
            call()
        with torch.no_grad():
            call()
    ours.hinge_embedding_loss(x, target).backward()
    assert target.grad is None


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [
        ("mse_loss", {"input": torch.arange(3)}, TypeError, "input must be floating point"),
        ("l1_loss", {"target": [1.0, 2.0, 3.0]}, TypeError, "target must be a tensor"),
        ("mse_loss", {"target": torch.randn(3) + 1j}, TypeError, "target must be floating point"),
        ("mse_loss", {"target": torch.randn(2)}, ValueError, "do not broadcast"),
        ("mse_loss", {"target": torch.randn(3, device="meta")}, ValueError, "target is on meta"),
        ("mse_loss", {"reduction": "average"}, ValueError, "reduction must be"),
        ("mse_loss", {"reduction": "batchmean"}, ValueError, "reduction must be"),
        ("l1_loss", {"weight": torch.ones(2)}, ValueError, "weight must have the shape"),
        ("huber_loss", {"delta": 0.0}, RuntimeError, "delta must be above 0"),
        ("huber_loss", {"delta": NAN}, RuntimeError, "delta must be above 0"),
        ("smooth_l1_loss", {"beta": -1.0}, RuntimeError, "beta must not be negative"),
        ("binary_cross_entropy", {"target": torch.rand(2)}, ValueError, "target must have the shape"),
        ("binary_cross_entropy", {"target": torch.rand(3).half()}, TypeError, "target has dtype"),
        ("binary_cross_entropy", {"target": torch.ones(3).long()}, TypeError, "target must be floating point"),
        ("binary_cross_entropy", {"weight": torch.rand(2)}, ValueError, "do not broadcast"),
        ("binary_cross_entropy_with_logits", {"target": torch.rand(2)}, ValueError, "target must have the shape"),
        ("binary_cross_entropy_with_logits", {"target": torch.ones(3).bool()}, TypeError, "must be floating point"),
        ("binary_cross_entropy_with_logits", {"pos_weight": torch.rand(2)}, ValueError, "do not broadcast"),
        ("multilabel_soft_margin_loss", {"input": torch.rand(())}, IndexError, "axis of classes"),
        ("multilabel_soft_margin_loss", {"weight": torch.rand(2, 3)}, ValueError, "more axes than input"),
        ("kl_div", {"target": torch.ones(3).long()}, TypeError, "target must be floating point"),
        ("kl_div", {"reduction": "average"}, ValueError, "reduction must be"),
        ("gaussian_nll_loss", {"var": torch.rand(2)}, ValueError, "incorrect size"),
        ("gaussian_nll_loss", {"var": -1.0}, ValueError, "negative"),
        ("gaussian_nll_loss", {"var": torch.ones(3).long()}, TypeError, "var must be floating point"),
        ("margin_ranking_loss", {"target": torch.ones(3, 1)}, RuntimeError, "same number of axes"),
    ],
)
def test_refusals(function: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"input": torch.rand(3), "target": torch.rand(3)}
    if function == "gaussian_nll_loss":
        arguments["var"] = torch.rand(3)
    if function == "margin_ranking_loss":
        arguments = {"input1": torch.rand(3), "input2": torch.rand(3), "target": torch.ones(3)}
    with pytest.raises(error, match=message):
        getattr(ours, function)(**{**arguments, **change})

"""Elementwise losses, each one function of fp32 blocks: the loss of each element, and its derivatives.

    f(x, t, other, LOSS) = (loss, dloss/dx, dloss/dt, dloss/dother)

x is the input, t the target and `other` a third operand, or None. The derivatives that no kernel stores are left out of
the tuple, or removed by the compiler. A weight multiplies the loss, and is no business of these functions.

Source: the formulas of torch.nn.functional, in forms that neither overflow nor cancel.
"""

import triton
import triton.language as tl

from tinynet_kernels.activation import log1p, sigmoid, softplus
from tinynet_kernels.constants import constexpr

LOG_2_PI = tl.constexpr(1.8378770664093453)


@triton.jit
def l1(x, t, other, LOSS: constexpr):
    """|x - t|; its derivative is 0 at 0."""
    d = x - t
    sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    return tl.abs(d), sign, -sign


@triton.jit
def mse(x, t, other, LOSS: constexpr):
    """(x - t)^2."""
    d = x - t
    return d * d, d * 2.0, -(d * 2.0)


@triton.jit
def smooth_l1(x, t, other, LOSS: constexpr):
    """(x - t)^2 / (2 limit) where |x - t| is below the limit, else |x - t| - limit / 2."""
    d = x - t
    distance = tl.abs(d)
    loss = tl.where(distance < LOSS.limit, 0.5 * d * d / LOSS.limit, distance - 0.5 * LOSS.limit)
    dx = tl.where(d <= -LOSS.limit, -1.0, tl.where(d >= LOSS.limit, 1.0, d / LOSS.limit))
    return loss, dx, -dx


@triton.jit
def huber(x, t, other, LOSS: constexpr):
    """(x - t)^2 / 2 where |x - t| is at most the limit, else limit (|x - t| - limit / 2)."""
    d = x - t
    distance = tl.abs(d)
    loss = tl.where(distance <= LOSS.limit, 0.5 * d * d, LOSS.limit * (distance - 0.5 * LOSS.limit))
    dx = tl.where(d <= -LOSS.limit, -LOSS.limit, tl.where(d >= LOSS.limit, LOSS.limit, d))
    return loss, dx, -dx


@triton.jit
def bce(x, t, other, LOSS: constexpr):
    """-t log x - (1 - t) log(1 - x), the logarithms at least -100; NaN for x or t outside of [0, 1]."""
    t = tl.where((t >= 0) & (t <= 1.0), t, float("nan"))
    log_x = tl.log(x)
    log_rest = log1p(-x)
    at_least = tl.where(log_x < -100.0, -100.0, log_x)
    rest_at_least = tl.where(log_rest < -100.0, -100.0, log_rest)
    variance = x * (1.0 - x)
    dx = (x - t) / tl.where(variance < 1e-12, 1e-12, variance)
    return (t - 1.0) * rest_at_least - t * at_least, dx, log_rest - log_x


@triton.jit
def bce_with_logits(x, t, other, LOSS: constexpr):
    """`bce` of sigmoid(x); `other`, where given, is the weight p of positive targets.

    (1 - t) x + (1 + (p - 1) t) softplus(-x), where softplus(-x) = max(-x, 0) + log(1 + e^-|x|): the first two terms are
    added first, since they cancel.
    """
    softplus_rest = log1p(tl.exp(-tl.abs(x)))
    if other is None:
        return tl.maximum(x, 0.0) - t * x + softplus_rest, sigmoid(x) - t, -x
    else:
        positive = other * t
        negative = tl.maximum(-x, 0.0)
        scale = positive + (1.0 - t)
        loss = (1.0 - t) * x + scale * negative + scale * softplus_rest
        return loss, scale * sigmoid(x) - positive, (other - 1.0) * (negative + softplus_rest) - x


@triton.jit
def soft_margin(x, t, other, LOSS: constexpr):
    """log(1 + e^(-t x))."""
    z = -t * x
    return softplus(z), -t * sigmoid(z)


@triton.jit
def kl_div(x, t, other, LOSS: constexpr):
    """t (log t - x), 0 where t is 0; e^t (t - x) for a target in log space."""
    if LOSS.log_space:
        p = tl.exp(t)
        return p * (t - x), -p, p * (t - x + 1.0)
    else:
        log_t = tl.log(t)
        return tl.where(t == 0, 0.0, t * log_t) - t * x, -t, log_t - x + 1.0


@triton.jit
def gaussian_nll(x, t, other, LOSS: constexpr):
    """(log v + (x - t)^2 / v) / 2, v = max(variance, eps); plus log(2 pi) / 2 if full; NaN for a negative variance."""
    variance = tl.where(other < LOSS.eps, tl.where(other < 0, float("nan"), LOSS.eps), other)
    inverse = 1.0 / variance
    d = x - t
    scaled = d * inverse
    loss = 0.5 * (tl.log(variance) + d * scaled)
    if LOSS.full:
        loss += 0.5 * LOG_2_PI
    return loss, scaled, -scaled, 0.5 * (inverse - scaled * scaled)


@triton.jit
def poisson_nll(x, t, other, LOSS: constexpr):
    """e^x - t x in log space, else x - t log(x + eps).

    If full, plus Stirling's approximation of log t!, t log t - t + log(2 pi t) / 2, where t is above 1.
    """
    if LOSS.log_space:
        rate = tl.exp(x)
        loss = rate - t * x
        dx = rate - t
        dt = -x
    else:
        log_rate = tl.log(x + LOSS.eps)
        loss = x - t * log_rate
        dx = 1.0 - t / (x + LOSS.eps)
        dt = -log_rate
    if LOSS.full:
        many = t > 1.0
        count = tl.where(many, t, 1.0)
        log_count = tl.log(count)
        loss += tl.where(many, t * log_count - t + 0.5 * (LOG_2_PI + log_count), 0.0)
        dt += tl.where(many, log_count + 0.5 / count, 0.0)
    return loss, dx, dt


@triton.jit
def hinge_embedding(x, t, other, LOSS: constexpr):
    """x where t is 1, max(0, limit - x) where it is -1, and their sum elsewhere."""
    rest = LOSS.limit - x
    loss = tl.where(t != -1.0, x, 0.0) + tl.where((t == 1.0) | (rest <= 0), 0.0, rest)
    return loss, tl.where(t != -1.0, 1.0, 0.0) - tl.where((t != 1.0) & (rest >= 0), 1.0, 0.0)


@triton.jit
def margin_ranking(x, t, other, LOSS: constexpr):
    """max(0, limit - t (x - other))."""
    d = x - other
    rest = LOSS.limit - t * d
    active = rest >= 0
    loss = tl.where(rest <= 0, 0.0, rest)
    return loss, tl.where(active, -t, 0.0), tl.where(active, -d, 0.0), tl.where(active, t, 0.0)


FUNCTIONS = {
    "bce": bce,
    "bce_with_logits": bce_with_logits,
    "gaussian_nll": gaussian_nll,
    "hinge_embedding": hinge_embedding,
    "huber": huber,
    "kl_div": kl_div,
    "l1": l1,
    "margin_ranking": margin_ranking,
    "mse": mse,
    "poisson_nll": poisson_nll,
    "smooth_l1": smooth_l1,
    "soft_margin": soft_margin,
}
